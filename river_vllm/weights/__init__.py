"""Where the river's 4-bit groups come from: made at load, saved and found again, or read."""
