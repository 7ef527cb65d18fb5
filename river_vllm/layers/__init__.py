"""Decoder layers with two precisions of their weights."""
