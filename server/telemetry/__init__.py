"""Counters and progress of the engine as the front end sees them."""
