"""The mechanisms of attention: one mechanism, one file; `KINDS` in `s2s.config` lists them."""
