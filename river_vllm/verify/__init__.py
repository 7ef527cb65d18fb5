"""Verified mode: the river drafts, the backbone checks, the output is the backbone's own."""
