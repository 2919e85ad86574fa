"""Encoders, decoders and what they are made of."""
