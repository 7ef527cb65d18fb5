"""What tests share: checkpoints, engines, a plain reference, a server process."""
