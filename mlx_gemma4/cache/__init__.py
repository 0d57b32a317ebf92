"""Keys and values of past positions: a ring for sliding layers, shared rows for global ones."""
