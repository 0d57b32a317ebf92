"""The command `mlx-gemma4`, one module a subcommand."""
