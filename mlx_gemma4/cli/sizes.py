"""Sizes as people write them: 128k tokens, 16GB, 120s."""

import math
import re

from mlx_gemma4.errors import OptionError

_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]*)")
# Contexts are counted in powers of two: 256k is 262,144 tokens.
_TOKENS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_BYTES = {
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def parse_tokens(option: str, text: str) -> int:
    """Return a number of tokens: 8000, 128k, 1m.

    Raises:
        OptionError: It is none.
    """
    return _whole(option, text, _TOKENS, "a number of tokens such as 8000, 128k, or 1m")


def parse_memory(option: str, text: str) -> int:
    """Return bytes: 16GB is 16 * 10^9, 16GiB is 16 * 2^30.

    Raises:
        OptionError: It is no size.
    """
    return _whole(option, text, _BYTES, "a size such as 16GB, 16GiB, or 800MB")


def parse_seconds(option: str, text: str) -> float:
    """Return seconds: 120s, 2m, 1.5h.

    Raises:
        OptionError: It is no time.
    """
    return _scaled(option, text, _SECONDS, "a time such as 120s, 2m, or 1h")


def _whole(option: str, text: str, units: dict[str, int], allowed: str) -> int:
    return math.floor(_scaled(option, text, units, allowed))


def _scaled(option: str, text: str, units: dict[str, int], allowed: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    value = float(match[1]) * factor if match and factor is not None else 0.0
    if value <= 0:
        raise OptionError(f"{option} is {text[:80]!r}; allowed is {allowed}, above 0")
    return value
