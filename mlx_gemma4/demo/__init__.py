"""The trained demo checkpoint and one sample of each medium (package data)."""
