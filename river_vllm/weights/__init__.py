"""The river's 4-bit weights: made at load, saved and found again, or read."""
