"""How fast the model can be on a chip, and how fast it is."""
