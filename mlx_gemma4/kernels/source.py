"""Metal sources from package data, as `mx.fast.metal_kernel` wants them.

MLX finds the attributes and shapes that a kernel uses by searching its text, comments included,
and rebuilds and hashes that text on every call: so comments are left out.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_PACKAGE = "mlx_gemma4.kernels.metal"
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[ \t]*$', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """One Metal kernel without comments.

    Attributes:
        header: The shared functions that it includes.
        body: What stands between the braces of the kernel; MLX makes the signature.
        sha256: Of both, in hexadecimal.
    """

    header: str
    body: str
    sha256: str


@cache
def read_source(stem: str) -> Source:
    """Return the kernel in `kernels/metal/<stem>.metal`.

    Lines `#include "name.h"` are replaced by that file, in order; a file that is included twice is
    taken once.

    Raises:
        FileNotFoundError: There is no such source, or no such file as it includes.
    """
    text = _read(f"{stem}.metal")
    header = "\n".join(_included(text, set()))
    body = _INCLUDE.sub("", text)
    parts = (_without_blank_lines(header), _without_blank_lines(body))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return Source(*parts, sha256=digest)


def _read(name: str) -> str:
    """Return a file of the package without comments."""
    return _COMMENT.sub(" ", (files(_PACKAGE) / name).read_text(encoding="utf-8"))


def _included(text: str, seen: set[str]) -> Iterator[str]:
    """Yield the files that a text includes, each after those that it includes itself."""
    for name in _INCLUDE.findall(text):
        if name not in seen:
            seen.add(name)
            included = _read(name)
            yield from _included(included, seen)
            yield _INCLUDE.sub("", included)


def _without_blank_lines(text: str) -> str:
    lines = (line.rstrip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)
