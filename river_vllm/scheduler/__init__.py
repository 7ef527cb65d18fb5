"""The scheduler's part: exit layers to the outputs, approximate K/V out of exact requests."""
