"""The tasks: how each one asks and judges."""
