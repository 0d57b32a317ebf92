"""Launches: buffers in the runtime's memory, every thread of a grid, and what came of it."""

import ctypes
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from metal_sim.diagnostics import locate
from metal_sim.messages import (
    CHECKS,
    BufferName,
    Message,
    MessageRecord,
    describe,
)
from metal_sim.toolchain import runtime_path

MODES = {"run": 0, "check": 1, "count": 2}
Dims = tuple[int, int, int]


@dataclass
class Buffer:
    """An argument of a kernel.

    Attributes:
        name: The parameter's.
        content: Its bytes [n] uint8; those of an output are replaced by what the kernel wrote.
        item_bytes: Bytes of an element, for messages.
        offset_bytes: Where in the content the kernel's pointer points to.
        is_output: Whether the kernel may write.
        is_initialised: Of an output, whether its content may be read and left as it is.
    """

    name: str
    content: np.ndarray
    item_bytes: int
    offset_bytes: int = 0
    is_output: bool = False
    is_initialised: bool = False


@dataclass(frozen=True)
class Bytes:
    """Bytes of one buffer that were read, or written, counted three ways.

    Attributes:
        by_lane: Every access of every lane.
        by_threadgroup: Distinct bytes of each threadgroup, summed: traffic if a threadgroup's
            accesses are cached and others' are not.
        distinct: Distinct bytes of the launch: traffic if the caches were perfect.
    """

    by_lane: int
    by_threadgroup: int
    distinct: int


@dataclass(frozen=True)
class Counts:
    """What a launch did, in mode "count"; `read` and `written` are by the buffers' names."""

    read: dict[str, Bytes]
    written: dict[str, Bytes]
    threadgroup_bytes_read: int
    threadgroup_bytes_written: int
    barriers: int
    simdgroup_barriers: int
    simd_operations: int
    shuffles: int
    matrix_operations: int
    matrix_flops: int
    atomics: int
    threadgroups: int


@dataclass(frozen=True)
class Outcome:
    """What a launch left beside its outputs."""

    messages: list[Message] = field(default_factory=list)
    counts: Counts | None = None


TOTALS = (
    "threadgroup_bytes_read",
    "threadgroup_bytes_written",
    "barriers",
    "simdgroup_barriers",
    "simd_operations",
    "shuffles",
    "matrix_operations",
    "matrix_flops",
    "atomics",
    "threadgroups",
)


class CountsRecord(ctypes.Structure):
    """`Counts` of runtime.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in TOTALS]


# The runtime keeps one launch at a time.
_lock = threading.Lock()


@cache
def runtime() -> ctypes.CDLL:
    """Return the runtime, loaded so that kernels find its functions."""
    library = ctypes.CDLL(str(runtime_path()), mode=ctypes.RTLD_GLOBAL)
    library.metal_sim_create_buffer.restype = ctypes.c_void_p
    library.metal_sim_create_buffer.argtypes = [
        ctypes.c_uint32,
        ctypes.c_uint64,
        ctypes.c_uint32,
        ctypes.c_uint32,
    ]
    library.metal_sim_messages.restype = ctypes.POINTER(MessageRecord)
    library.metal_sim_counts.restype = ctypes.POINTER(CountsRecord)
    library.metal_sim_launch.restype = None
    if not library.metal_sim_create():
        raise MemoryError("the simulator cannot reserve its address space; see `ulimit -v`")
    assert library.metal_sim_message_bytes() == ctypes.sizeof(MessageRecord)
    return library


@cache
def load_entry(path: Path) -> int:
    """Return the address of a compiled kernel's entry."""
    runtime()
    library = ctypes.CDLL(str(path))
    address = ctypes.cast(library.metal_sim_entry, ctypes.c_void_p).value
    assert address is not None
    return address


def launch(
    path: Path,
    text: str,
    buffers: Sequence[Buffer],
    grid: Dims,
    threadgroup: Dims,
    mode: str,
    seed: int,
) -> Outcome:
    """Run a compiled kernel, and replace the content of its outputs.

    Args:
        path: Its library.
        text: What it was compiled from, for messages.
        buffers: Its arguments, in the order of [[buffer(i)]].
        grid: Threads in each dimension.
        threadgroup: Threads of a threadgroup; not more than the grid has.
        mode: "run", "check" or "count"; the library was compiled for it.
        seed: Of the order of execution; 0 is the natural order.
    """
    entry = load_entry(path)
    library = runtime()
    with _lock:
        try:
            pointers = (ctypes.c_void_p * max(1, len(buffers)))()
            for index, buffer in enumerate(buffers):
                pointers[index] = place(library, index, buffer) + buffer.offset_bytes
            library.metal_sim_launch(
                ctypes.c_void_p(entry),
                pointers,
                (ctypes.c_uint32 * 3)(*grid),
                (ctypes.c_uint32 * 3)(*threadgroup),
                MODES[mode],
                ctypes.c_uint64(seed),
            )
            for index, buffer in enumerate(buffers):
                if buffer.is_output and buffer.content.nbytes:
                    start = (pointers[index] or 0) - buffer.offset_bytes
                    ctypes.memmove(buffer.content.ctypes.data, start, buffer.content.nbytes)
            num_groups = math.prod(-(-g // t) for g, t in zip(grid, threadgroup, strict=True))
            messages = read_messages(library, path, text, buffers, num_groups)
            counts = read_counts(library, buffers) if mode == "count" else None
        finally:
            for index in range(len(buffers)):
                library.metal_sim_destroy_buffer(index)
    return Outcome(messages, counts)


def place(library: ctypes.CDLL, index: int, buffer: Buffer) -> int:
    """Put a buffer's content into the runtime's memory and return its address."""
    size = buffer.content.nbytes
    address = library.metal_sim_create_buffer(index, size, buffer.is_output, buffer.is_initialised)
    if address is None:
        raise MemoryError(f"no memory for buffer {buffer.name} of {size} bytes")
    if size:
        ctypes.memmove(address, buffer.content.ctypes.data, size)
    return address


def read_messages(
    library: ctypes.CDLL, path: Path, text: str, buffers: Sequence[Buffer], num_groups: int
) -> list[Message]:
    """Return the findings of the launch, each line's once."""
    names = {i: BufferName(b.name, b.item_bytes) for i, b in enumerate(buffers)}
    lines = text.split("\n")
    messages: dict[tuple[str, int | None, str], Message] = {}
    records = library.metal_sim_messages()
    for i in range(library.metal_sim_num_messages()):
        record = records[i]
        check = CHECKS[record.check]
        line = locate(path, record.code_offset) if record.code_offset else record.line or None
        source_line = lines[line - 1].strip() if line and line <= len(lines) else ""
        message = Message(check, describe(record, names, num_groups), line, source_line)
        # Accesses of one line differ by their instructions, which no reader knows apart.
        messages.setdefault((check, line, "" if line else message.text), message)
    return list(messages.values())


def read_counts(library: ctypes.CDLL, buffers: Sequence[Buffer]) -> Counts:
    """Return the counts of the launch."""
    read, written = {}, {}
    numbers = (ctypes.c_uint64 * 6)()
    for index, buffer in enumerate(buffers):
        library.metal_sim_buffer_counts(index, numbers)
        read[buffer.name] = Bytes(*numbers[:3])
        written[buffer.name] = Bytes(*numbers[3:])
    record = library.metal_sim_counts().contents
    totals = {name: getattr(record, name) for name in TOTALS}
    return Counts(read=read, written=written, **totals)
