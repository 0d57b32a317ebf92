"""How fast this model can be on a chip, and how fast it is."""
