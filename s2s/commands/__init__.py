"""One file per command: where the parts meet."""
