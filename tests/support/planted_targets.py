"""Targets for the fuzzer's own tests, each with a defect that it must find."""

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from fuzz.case import Files, Target

from mlx_gemma4.errors import InputError

_MIB = 1 << 20


def read_real() -> tuple[Files, ...]:
    return ({"a": b"harmless"},)


def number_of(rng: Random, real: Sequence[Files]) -> Files:
    """Return a case whose content is a digit among letters that no defect needs."""
    return {"a": b"some letters " + str(rng.randrange(10)).encode() + b" and more"}


def sound(files: Files, folder: Path) -> None:
    if b"3" in files["a"]:
        raise InputError("3 is not allowed; take another")


def foreign_exception(files: Files, folder: Path) -> None:
    sound(files, folder)
    if b"7" in files["a"]:
        raise KeyError("planted")


def panic(files: Files, folder: Path) -> None:
    if b"7" in files["a"]:
        raise BaseException("planted")


def hang(files: Files, folder: Path) -> None:
    while b"7" in files["a"]:
        pass


def hang_in_c(files: Files, folder: Path) -> None:
    if b"7" in files["a"]:
        sum(range(10**12))


def wait(files: Files, folder: Path) -> None:
    if b"7" in files["a"]:
        time.sleep(600)


def hog(files: Files, folder: Path) -> None:
    if b"7" in files["a"]:
        _ = b"x" * (200 * _MIB)


def hog_beyond_bounds(files: Files, folder: Path) -> None:
    if b"7" in files["a"]:
        bytearray(64 * 1024 * _MIB)


def crash(files: Files, folder: Path) -> None:
    if b"7" in files["a"]:
        ctypes.string_at(1)


DEFECTS = {
    run.__name__: Target(run.__name__, read_real, number_of, run, 64 * _MIB)
    for run in (
        *(sound, foreign_exception, panic, hang, hang_in_c, wait, hog, hog_beyond_bounds, crash),
    )
}
