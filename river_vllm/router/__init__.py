"""Which rows of a step are on which path, decided between decoder layers."""
