"""What people and files get."""
