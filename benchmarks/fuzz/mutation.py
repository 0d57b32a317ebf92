"""Bytes, PNG chunks, JSON, and template texts, changed a little by what a generator draws."""

import copy
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF)
_NUMBERS += (0x80000000, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**64 - 1)
_HEAD_BYTES = 256  # most formats tell there what they are
_MAX_BYTES = 1 << 22


def mutate_bytes(rng: Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a content with 1 to 16 changes; pieces of `others` may get into it."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6, 16))):
        rng.choice(_CHANGES)(rng, changed, others)
    return bytes(changed[:_MAX_BYTES])


def _somewhere(rng: Random, content: bytearray) -> int:
    """Return a position, as often in the head as in all of the content."""
    return rng.randrange(min(len(content), rng.choice((_HEAD_BYTES, len(content) or 1))) or 1)


def _flip(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    if content:
        content[_somewhere(rng, content)] ^= 1 << rng.randrange(8)


def _set_number(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    """Write a number that is at the edge of something over 1, 2, 4, or 8 bytes."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    at = _somewhere(rng, content)
    number = (rng.choice(_NUMBERS) + rng.randrange(-2, 3)) % (1 << 8 * size)
    content[at : at + size] = number.to_bytes(size, order)


def _set_random(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    at, size = _somewhere(rng, content), rng.choice((1, 2, 4, 16))
    content[at : at + size] = rng.randbytes(size)


def _delete(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    at = _somewhere(rng, content)
    del content[at : at + rng.choice((1, 2, 4, 16, 256))]


def _truncate(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    del content[_somewhere(rng, content) :]


def _repeat(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    """Write a piece again, up to thousands of times."""
    at = _somewhere(rng, content)
    piece = content[at : at + rng.choice((1, 4, 16, 64, 1024))]
    content[at:at] = piece * min(rng.choice((1, 1, 1, 8, 4096)), 1 + (1 << 19) // (len(piece) or 1))


def _insert(rng: Random, content: bytearray, _: Sequence[bytes]) -> None:
    at = _somewhere(rng, content)
    content[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _splice(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    """Write a piece of another content over this one."""
    if others:
        other = bytearray(rng.choice(others))
        start, at = _somewhere(rng, other), _somewhere(rng, content)
        piece = other[start : start + rng.choice((4, 16, 256, 4096))]
        content[at : at + len(piece)] = piece


_CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _set_number, _set_number, _set_random, _delete, _truncate, _repeat, _insert, _splice),
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def mutate_png(rng: Random, content: bytes) -> bytes:
    """Change a chunk of a PNG and give it a proper checksum, which would else stop every reader."""
    chunks: list[tuple[bytes, bytes]] = []
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    index = rng.randrange(len(chunks))
    kind, body = chunks[index]
    if kind == b"IDAT" and rng.random() < 0.7:
        body = zlib.compress(mutate_bytes(rng, zlib.decompress(body)))
    elif rng.random() < 0.9:
        body = mutate_bytes(rng, body)
    else:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[index])
    chunks[index] = (kind, body)
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


# Stand for what `json.dumps` would not write.
_DEEP, _DIGITS = "\ue000deep", "\ue000digits"
_ODD: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2, 3, 7, 64, 1000, 0.0, -0.0, 0.5, 1e-320)
_ODD += (1e308, float("inf"), float("-inf"), float("nan"), 2**31 - 1, 2**31, 2**53, 2**63, 2**64)
_ODD += (10**400, [], {}, [[]], [{}], "", " ", "0", "true", "null", "\x00", "\n", "\x1b[2J", "é")
_ODD += ("\ud800", "a" * 5000, "../../etc/passwd", "/dev/zero", "%s%n", "{0}", _DEEP, _DIGITS)


def mutate_json(rng: Random, document: Any, words: Sequence[Any] = ()) -> bytes:
    """Return a document as JSON text with 1 to 4 places changed, now and then no JSON at all.

    Args:
        rng: What is drawn from.
        document: What `json.loads` returns.
        words: Values that mean something to the reader.
    """
    top = [copy.deepcopy(document)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_place(rng, top, words)
    text = json.dumps(top[0] if top else None, ensure_ascii=rng.random() < 0.8)
    deep = rng.choice((50, 70, 900, 100_000))
    for ascii_only in (True, False):
        for word, raw in ((_DEEP, "[" * deep + "]" * deep), (_DIGITS, "9" * 5000)):
            text = text.replace(json.dumps(word, ensure_ascii=ascii_only), raw)
    content = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, content) if rng.random() < 0.1 else content


def _change_place(rng: Random, top: list[Any], words: Sequence[Any]) -> None:
    places = list(_places(top))
    if not places:
        return
    container, key = rng.choice(places)
    value = container[key]
    draw = rng.randrange(10)
    if draw < 3:
        container[key] = copy.deepcopy(rng.choice(_ODD))
    elif draw == 3 and words:
        container[key] = copy.deepcopy(rng.choice(words))
    elif draw == 4:
        container[key] = copy.deepcopy((lambda place: place[0][place[1]])(rng.choice(places)))
    elif draw == 5:
        del container[key]
    elif draw == 6 and isinstance(container, dict):
        other = rng.choice([k for c, k in places if isinstance(c, dict)] or [""])
        container[rng.choice((other, str(rng.choice(_ODD))[:40], *map(str, words)))] = value
    elif draw == 7:
        container[key] = rng.choice(([value], {"a": value}, str(value)[:5000], [value, value]))
    elif isinstance(value, str):
        changed = mutate_bytes(rng, value.encode("utf-8", "surrogatepass"))
        container[key] = changed.decode("utf-8", "replace")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = rng.choice((value + 1, value - 1, -value, value * 2, value // 3, [value]))
    elif isinstance(value, list):
        container[key] = value * rng.choice((2, 3, 100 if len(value) < 20 else 2))


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of each value in a document."""
    keys = list(container) if isinstance(container, dict) else range(len(container))
    for key in keys:
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


_TOKEN = re.compile(r"\{[{%#]-?|-?[}%#]\}|\w+|\s+|.", re.DOTALL)


def mutate_text(rng: Random, text: str, others: Sequence[str], words: Sequence[str]) -> str:
    """Return a text with 1 to 6 changes of words, marks, or lines."""
    tokens = _TOKEN.findall(text)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(tokens) or 1)
        size = rng.choice((1, 1, 1, 3, 10, 60))
        draw = rng.randrange(6)
        if draw == 0:
            del tokens[at : at + size]
        elif draw == 1:
            tokens[at:at] = tokens[at : at + size] * rng.choice((1, 1, 20))
        elif draw == 2:
            tokens[at : at + 1] = [rng.choice(words)]
        elif draw == 3:
            tokens.insert(at, rng.choice(words))
        elif draw == 4:
            other = _TOKEN.findall(rng.choice(others))
            start = rng.randrange(len(other) or 1)
            tokens[at : at + size] = other[start : start + rng.choice((size, 10, 60))]
        else:
            other_at = rng.randrange(len(tokens) or 1)
            piece = tokens[at : at + size]
            del tokens[at : at + size]
            tokens[other_at:other_at] = piece
    return "".join(tokens)
