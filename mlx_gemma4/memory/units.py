"""Bytes as people read them."""


def format_bytes(count: int) -> str:
    """Return a size in decimal units, as shops and Hubs count: 23.9 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
