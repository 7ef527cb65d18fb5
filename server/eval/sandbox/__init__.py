"""Programs of a model, run in processes of their own under limits. No security boundary."""
