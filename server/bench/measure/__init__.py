"""Figures from records: pure arithmetic, no clock and no network."""
