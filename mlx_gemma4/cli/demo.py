"""`mlx-gemma4 demo`: ask the bundled checkpoint about its bundled picture, sound, and clip."""


def demo() -> int:
    """Ask the small checkpoint in this package about a picture, a sound, and a clip."""
    return 0
