"""s2s: train sequence-to-sequence translation models with selectable attention, from raw text to BLEU."""

__version__ = "0.1.0"
