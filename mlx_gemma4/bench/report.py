"""What `bench` found, as records and as JSON that is checked when it is read back.

A document holds no paths and no names of people, hosts, or private checkpoints, so that it can be
attached to an issue as it is.
"""

import json
import math
import os
import re
import tempfile
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from mlx_gemma4.bench.facts import KernelFinding, ModelFacts, Quality
from mlx_gemma4.bench.machine import Machine
from mlx_gemma4.bench.power import PowerFacts
from mlx_gemma4.errors import InputError, OptionError

SCHEMA = 1
WHAT = "mlx-gemma4 bench"

# Samples further apart than this, as a share of their median, are too noisy to build on.
NOISE = 0.10

_MAX_BYTES = 16 << 20
_PATH = re.compile(r"(?<![\w.)])~?(?:/[\w.@+-]+)+/?|\b[A-Za-z]:\\\S+")
_Record = TypeVar("_Record")

Measure = Literal[
    "start",
    "load",
    "first token",
    "prefill",
    "decode",
    "batch",
    "picture",
    "sound",
    "request",
    "conversion",
]


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Attributes:
        measure: What it is.
        case: What tells it from others of its kind; empty if nothing does.
        length: Positions that are read, or tokens that are generated, in each sample.
        depth: Positions that are in the cache before.
        amount: What a sample gets done, in `unit`.
        unit: "tokens", "soft tokens", "seconds of sound", "GB"; empty where only the time counts.
        samples_s: Seconds, one a round.
        reading_s: The least that the memory's bandwidth allows; None where it is no limit.
        arithmetic_s: The least that arithmetic allows.
        read_bytes: Of weights and cache, which the bandwidth has to carry in each sample.
        peak_bytes: That MLX held at most.
        planned_bytes: What `memory` had planned for it.
        samples_j: Joules that the chip took, one a round; None where they were not read.
    """

    measure: Measure
    case: str
    length: int
    depth: int
    amount: float
    unit: str
    samples_s: tuple[float, ...]
    reading_s: float | None = None
    arithmetic_s: float | None = None
    read_bytes: int | None = None
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    samples_j: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check what every property divides by."""
        if not self.samples_s or min(self.samples_s) <= 0:
            raise ValueError("samples_s needs one time or more, all above 0")
        energies = self.samples_j
        if energies is not None and (
            len(energies) != len(self.samples_s) or min(energies, default=0) < 0
        ):
            raise ValueError("samples_j needs as many energies as samples_s, none below 0")

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What a row of another document must share to be compared with this one."""
        return self.measure, self.case, self.length, self.depth

    @property
    def label(self) -> str:
        """What was measured, in words."""
        label: str = self.measure
        if self.measure in ("prefill", "decode", "request"):
            label += f" {self.length:,}" + (f" after {self.depth:,}" if self.depth else "")
        return f"{label}, {self.case}" if self.case else label

    @property
    def median_s(self) -> float:
        """The sample in the middle."""
        return median(self.samples_s)

    @property
    def rate(self) -> float | None:
        """Units a second; None where only the time counts."""
        return self.amount / self.median_s if self.unit else None

    @property
    def energy_j(self) -> float | None:
        """The energy in the middle; None where it was not read."""
        return median(self.samples_j) if self.samples_j else None

    @property
    def unit_j(self) -> float | None:
        """Joules a unit; of all of it where only the time counts."""
        energy_j = self.energy_j
        return energy_j / self.amount if self.unit and energy_j is not None else energy_j

    @property
    def power_w(self) -> float | None:
        """Watts on average, those at rest included."""
        return sum(self.samples_j) / sum(self.samples_s) if self.samples_j else None

    @property
    def spread(self) -> float:
        """Slowest less fastest, as a share of the median."""
        return (max(self.samples_s) - min(self.samples_s)) / self.median_s

    @property
    def is_noisy(self) -> bool:
        """Whether the samples are too far apart to build on."""
        return self.spread > NOISE

    @property
    def reading_share(self) -> float | None:
        """Share of the bandwidth's ceiling that was reached."""
        return self.reading_s and self.reading_s / self.median_s

    @property
    def arithmetic_share(self) -> float | None:
        """Share of the ceiling of arithmetic that was reached."""
        return self.arithmetic_s and self.arithmetic_s / self.median_s


@dataclass(frozen=True)
class Document:
    """Everything that one run of `bench` found.

    Attributes:
        date: In UTC, to the minute.
        machine: Where.
        model: What.
        rows: The measures.
        quality: Of the checkpoint, where it is known.
        kernels: Findings, if every kernel was checked and timed anew.
        notes: What was left out or is to be known, one line each.
        power: What energies are; None if there are none.
    """

    date: str
    machine: Machine
    model: ModelFacts
    rows: tuple[Row, ...]
    quality: Quality | None
    kernels: tuple[KernelFinding, ...]
    notes: tuple[str, ...]
    power: PowerFacts | None = None

    def to_json(self) -> str:
        """Return it as JSON, without paths."""
        document = {"what": WHAT, "schema": SCHEMA, **asdict(self)}
        return json.dumps(_without_paths(document), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Return the document in a text.

        Args:
            text: What `to_json` has returned.
            name: Of the file, for messages.

        Raises:
            InputError: It is none, of another version, or damaged.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{name} is not JSON ({error}); give what bench --json wrote"
            ) from None
        if not isinstance(document, dict) or document.pop("what", None) != WHAT:
            raise InputError(f"{name} is no document of bench; give what bench --json wrote")
        if (schema := document.pop("schema", None)) != SCHEMA:
            raise InputError(
                f"{name} has version {str(schema)[:20]}; this program reads version {SCHEMA}; "
                "measure again, or take the program that wrote it"
            )
        try:
            return _read(cls, document, "")
        except ValueError as error:
            raise InputError(f"{name} is damaged: {error}; measure again") from None


def read_document(path: Path) -> Document:
    """Return the document in a file.

    Raises:
        InputError: There is none.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has more than {_MAX_BYTES:,} bytes; no document of bench has")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a file of bench") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; give what bench --json wrote") from None
    return Document.from_json(text, path.name)


def check_writable(option: str, path: Path) -> None:
    """Refuse a path that cannot be written, before what takes long.

    Raises:
        OptionError: It cannot be.
    """
    folder = path.parent
    if path.is_dir():
        raise OptionError(f"{option} is {path}, a folder; give the name of a file")
    if not folder.is_dir():
        raise OptionError(f"{option} is {path}, but there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"{option} is {path}, but {folder} cannot be written; choose another")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp's own is for one user alone
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _without_paths(value: Any) -> Any:
    """Return a document in whose texts every path is replaced."""
    if isinstance(value, str):
        return _PATH.sub("<path>", value)
    if isinstance(value, Mapping):
        return {key: _without_paths(part) for key, part in value.items()}
    return [_without_paths(part) for part in value] if isinstance(value, list | tuple) else value


def _read(kind: Any, value: Any, place: str) -> Any:
    """Return a value of JSON as the type that a record declares.

    Raises:
        ValueError: It has another type; the message names the place.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_record(kind, value, place)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _read(kind, value, place)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{place} is {str(value)[:60]!r}")
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], part, f"{place}[{i}]") for i, part in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], part, f"{place}.{key}") for key, part in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif origin is None and type(value) is kind:
        return value
    raise ValueError(f"{place} is {str(value)[:60]!r}")


def _read_record(kind: Any, value: Any, place: str) -> Any:
    """Return a record; what has a default may be missing, as in a document of before it was."""
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    have = set(value) if isinstance(value, dict) else set()
    if not isinstance(value, dict) or not needed <= have <= known:
        wrong = ", ".join(sorted(str(name)[:40] for name in (needed - have) | (have - known))[:3])
        raise ValueError(f"{place or 'the document'} lacks or does not know {wrong}")
    parts = {
        name: _read(hints[name], part, f"{place}.{name}".lstrip("."))
        for name, part in value.items()
    }
    try:
        return kind(**parts)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
