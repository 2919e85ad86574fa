"""Alignments, heat maps and pages: what people look at."""
