"""River's own tasks for lm-eval, over problems in a local file."""
