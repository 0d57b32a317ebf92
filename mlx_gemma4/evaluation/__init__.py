"""How much a checkpoint differs from another: next-token distributions over a set of prompts."""
