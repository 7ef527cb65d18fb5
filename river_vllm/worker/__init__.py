"""The engine side of a step: which row belongs to which request, and what became of it."""
