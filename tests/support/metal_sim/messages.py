"""What the checks say: records of the runtime, made into sentences with names and source lines."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# In the order of `Check`, `Access` and `Operation` in the C++ headers.
CHECKS = (
    "device_bounds",
    "threadgroup_bounds",
    "array_bounds",
    "device_race",
    "threadgroup_race",
    "simdgroup_race",
    "uninitialised_threadgroup_read",
    "uninitialised_device_read",
    "unwritten_output",
    "write_to_input",
    "misaligned",
    "divergence",
    "barrier_divergence",
    "inactive_source",
    "threadgroup_memory_size",
    "stack_overflow",
    "integer_division",
    "shift",
    "wild_pointer",
)
ACCESSES = ("read", "write", "atomic access")
OPERATIONS = {
    0: "a reduction over the simdgroup",
    1: "a shuffle",
    2: "a prefix operation",
    3: "a vote",
    4: "an operation of quads",
    5: "a simdgroup_matrix operation",
    6: "simdgroup_barrier",
    7: "threadgroup_barrier",
}
RETURNED = 255
LANES = 32


@dataclass(frozen=True)
class Message:
    """One finding about a kernel.

    Attributes:
        check: Which check speaks, such as "device_race".
        text: The finding, in a sentence.
        line: Of the kernel's text, from 1; None if it belongs to no line.
        source_line: That line.
        is_error: False for a warning, which never raises.
    """

    check: str
    text: str
    line: int | None = None
    source_line: str = ""
    is_error: bool = True

    def __str__(self) -> str:
        """Return the finding with its place in front."""
        place = f"line {self.line}: `{self.source_line}`\n    " if self.line else ""
        return f"{place}{'' if self.is_error else 'warning: '}{self.text} [{self.check}]"


class MetalError(RuntimeError):
    """A kernel that does not compile, or in which a check found something.

    Attributes:
        kernel: The kernel's name.
        messages: All findings, the first one first.
    """

    def __init__(self, kernel: str, messages: Sequence[Message]):
        self.kernel = kernel
        self.messages = tuple(messages)
        super().__init__(f"kernel {kernel}:\n  " + "\n  ".join(map(str, self.messages)))


class GatheringRecord(ctypes.Structure):
    """`Gathering` of runtime.h."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("simdgroup", "lanes", "operation", "line")]
    simdgroup: int
    lanes: int
    operation: int
    line: int


class MessageRecord(ctypes.Structure):
    """`Message` of runtime.h."""

    _fields_ = [
        ("check", ctypes.c_uint32),
        ("access", ctypes.c_uint32),
        ("other_access", ctypes.c_uint32),
        ("line", ctypes.c_uint32),
        ("code_offset", ctypes.c_uint64),
        ("variable_bytes", ctypes.c_uint64),
        ("offset_bytes", ctypes.c_int64),
        ("buffer", ctypes.c_int32),
        ("access_bytes", ctypes.c_uint32),
        ("group", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32),
        ("other_group", ctypes.c_uint32),
        ("other_thread", ctypes.c_uint32),
        ("num_gatherings", ctypes.c_uint32),
        ("gatherings", GatheringRecord * 8),
        ("name", ctypes.c_char * 64),
    ]
    check: int
    access: int
    other_access: int
    line: int
    code_offset: int
    variable_bytes: int
    offset_bytes: int
    buffer: int
    access_bytes: int
    group: Sequence[int]
    thread: int
    other_group: int
    other_thread: int
    num_gatherings: int
    gatherings: Sequence[GatheringRecord]
    name: bytes


@dataclass(frozen=True)
class BufferName:
    """How a buffer is called in messages: its parameter's name, and the size of an element."""

    name: str
    item_bytes: int


# {access}: what was done to {name}[{index}], {bytes} bytes at byte {offset}; {other}: what was done
# before, and by whom.
SENTENCES = {
    "device_bounds": "{access} of {bytes} bytes at byte {offset} of {name}, which has {size} bytes "
    "(index {index})",
    "threadgroup_bounds": "{access} of {bytes} bytes at byte {offset} of {name}, which has {size} "
    "bytes (index {index})",
    "array_bounds": "index {offset} is outside of an array of type {name}",
    "device_race": "{access} of {name}[{index}] after {other}, with no barrier that orders device "
    "memory between them",
    "threadgroup_race": "{access} of {name}[{index}] after {other} of another simdgroup, with no "
    "threadgroup_barrier(mem_flags::mem_threadgroup) between them",
    "simdgroup_race": "{access} of {name}[{index}] after {other} of the same simdgroup, with no "
    "simdgroup_barrier(mem_flags::mem_threadgroup) between them",
    "uninitialised_threadgroup_read": "read of {name}[{index}], which nobody has written",
    "uninitialised_device_read": "read of {name}[{index}], which nobody has written",
    "unwritten_output": "{bytes} of {size} bytes of output {name} were never written, the first at "
    "index {index}",
    "write_to_input": "write to input {name}[{index}]",
    "misaligned": "{access} of {bytes} bytes at an address that is {offset} bytes past a multiple "
    "of {bytes}",
    "divergence": "lanes of a simdgroup have parted: {gatherings}",
    "barrier_divergence": "not all threads come to one barrier: {gatherings}",
    "inactive_source": "the value of lane {other_lane}, which has returned",
    "threadgroup_memory_size": "threadgroup memory of {size} bytes, with {name}; 32768 are allowed",
    "stack_overflow": "private memory of more than 256 KB",
    "integer_division": "integer division by zero, or of the smallest integer by -1",
    "shift": "shift by {offset} bits, which is not less than the operand has",
    "wild_pointer": "access to memory that is no buffer's",
}
# What belongs to a threadgroup, and what belongs to the launch, and not to a thread.
OF_THREADGROUP = {"divergence", "barrier_divergence", "threadgroup_memory_size"}
OF_LAUNCH = {"unwritten_output"}


def describe(record: MessageRecord, buffers: Mapping[int, BufferName], num_groups: int) -> str:
    """Return the sentence for a record of the runtime."""
    check = CHECKS[record.check]
    name, index = element_of(record, buffers)
    other = f"{ACCESSES[record.other_access]} by thread {record.other_thread}"
    if num_groups > 1 and check == "device_race":
        other += f" of threadgroup number {record.other_group}"
    sentence = SENTENCES[check].format(
        access=ACCESSES[record.access],
        bytes=record.access_bytes,
        offset=record.offset_bytes,
        size=record.variable_bytes,
        name=name,
        index=index,
        other=other,
        other_lane=record.other_thread % LANES,
        gatherings=describe_gatherings(record),
    )
    return sentence + where(record, check)


def where(record: MessageRecord, check: str) -> str:
    """Return the thread or the threadgroup that a record is about."""
    if check in OF_LAUNCH:
        return ""
    group = "threadgroup ({}, {}, {})".format(*record.group)
    if check in OF_THREADGROUP:
        return f"; {group}"
    thread = record.thread
    return f"; thread {thread} (simdgroup {thread // LANES}, lane {thread % LANES}) of {group}"


def element_of(record: MessageRecord, buffers: Mapping[int, BufferName]) -> tuple[str, int]:
    """Return the name of what a record is about, and the index of the element."""
    if record.buffer >= 0 and record.buffer in buffers:
        buffer = buffers[record.buffer]
        return buffer.name, record.offset_bytes // buffer.item_bytes
    # A type comes as 'float[4]', or as 'Alias' (aka 'float[4]') with an alias of the rewriter's.
    name = record.name.decode(errors="replace").split("(aka ")[-1].strip("')")
    return name, record.offset_bytes // (record.access_bytes or 1)


def describe_gatherings(record: MessageRecord) -> str:
    """Return which lanes wait where."""
    parts = []
    for gathering in record.gatherings[: record.num_gatherings]:
        lanes = f"lanes {gathering.lanes:#010x} of simdgroup {gathering.simdgroup}"
        if gathering.operation == RETURNED:
            parts.append(f"{lanes} have returned")
        else:
            parts.append(
                f"{lanes} wait at {OPERATIONS[gathering.operation]}, line {gathering.line}"
            )
    return "; ".join(parts)
