"""Section: a part of a JSON file whose every value is checked when it is read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlx_gemma4.errors import ConfigError

_MAX_CONFIG_BYTES = 16 * 1024 * 1024
_MAX_INTEGER = 2**31 - 1
_Choice = TypeVar("_Choice", str, bool)


class Section:
    """One JSON object, whose values are checked as they are taken out."""

    def __init__(self, values: Mapping[str, Any], path: str, file: str = "config.json") -> None:
        self.values = values
        self.path = path
        self.file = file

    def name(self, key: str) -> str:
        """Return a key as messages call it."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, value: object, allowed: str) -> ConfigError:
        """Return the error for a value that is not allowed."""
        shown = json.dumps(value, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ConfigError(f"{self.file}: {self.name(key)} is {shown}; {allowed}")

    def get(self, key: str) -> Any:
        """Return a value, or None where it is missing or null."""
        return self.values.get(key)

    def section(self, key: str) -> "Section | None":
        """Return the object at a key, or None where it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, value, "it must be an object or null")
        return Section(value, self.name(key), self.file)

    def integer(
        self,
        key: str,
        default: int | None = None,
        *,
        minimum: int = 1,
        maximum: int = _MAX_INTEGER,
    ) -> int:
        """Return a whole number within bounds; without a default the key must be there."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.missing(key)
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(key, value, f"it must be a whole number from {minimum} to {maximum}")
        return value

    def number(
        self, key: str, default: float, *, minimum: float = 0.0, maximum: float = math.inf
    ) -> float:
        """Return a finite number within bounds."""
        value = self.get(key)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A whole number beyond float's range would overflow.
        if not is_number or not minimum <= value <= min(maximum, 1e30) or math.isnan(value):
            limit = "" if math.isinf(maximum) else f" and at most {maximum}"
            raise self.error(key, value, f"it must be a number, at least {minimum}{limit}")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """Return a finite number above zero."""
        value = self.number(key, default)
        if not value:
            raise self.error(key, value, "it must be above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, value, "it must be true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return one id or a list of ids as a tuple; empty where the key is missing."""
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise self.error(key, value, "it must be a token id, 0 or more, or a list of them")
        return tuple(ids)

    def require(self, key: str, only: _Choice, *, default: _Choice | None, why: str = "") -> None:
        """Refuse every value but one."""
        value = self.get(key)
        value = default if value is None else value
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            raise self.error(key, value, f"only {json.dumps(only)} is supported{why}")

    def missing(self, key: str) -> ConfigError:
        """Return the error for a key that must be there."""
        return ConfigError(
            f"{self.file}: {self.name(key)} is missing; it has no default; "
            "take the config.json that belongs to the weights"
        )


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a small JSON file."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path} has {path.stat().st_size:,} bytes; at most {_MAX_CONFIG_BYTES:,} are "
                "read; download it again"
            )
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no JSON object; download it again")
    return values
