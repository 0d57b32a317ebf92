"""What a machine can hold: the GPU's own limit on a Mac, most of memory elsewhere."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_gemma4.memory.units import format_bytes

# Share of the memory of a machine without a GPU's own limit that other programs leave.
_USABLE_SHARE = 0.9
# What macOS lets the GPU use: 12.7 of 17.2 GB on a Mac with 16 GB, a little more on larger ones.
_MAC_SHARE = 0.74
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class MemoryLimit:
    """What this machine can hold.

    Attributes:
        limit_bytes: For weights, cache, and everything else.
        source: Where the number comes from, for messages.
    """

    limit_bytes: int
    source: str


def computes_on_cpu() -> bool:
    """Whether MLX computes on the CPU, where attention copies more."""
    import mlx.core as mx  # here, since planning itself needs no device

    return mx.default_device() == mx.Device(mx.cpu)


def machine_limit() -> MemoryLimit:
    """Return what this machine can hold: the GPU's recommendation on a Mac, else most of memory."""
    import mlx.core as mx

    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if mx.default_device() == mx.Device(mx.gpu):
        recommended = mx.device_info().get("max_recommended_working_set_size")
        if recommended:
            return MemoryLimit(int(recommended), "the GPU of this Mac can use")
    if sys.platform == "linux" and (contained := _container_bytes()) is not None:
        physical_bytes = min(physical_bytes, contained)
    return MemoryLimit(int(physical_bytes * _USABLE_SHARE), "this machine can hold")


def keep_resident() -> None:
    """Have macOS keep MLX's arrays in memory, up to what it lets the GPU use.

    It would otherwise compress or page out a model that rests for a while.  Elsewhere nothing is
    done.
    """
    import mlx.core as mx

    if computes_on_cpu():
        return
    if recommended := mx.device_info().get("max_recommended_working_set_size"):
        mx.set_wired_limit(int(recommended))


def limit_buffers(most_bytes: int) -> None:
    """Have MLX keep so many bytes of freed arrays at most, for arrays to come.

    As it comes, it keeps on a Mac whatever a prompt has needed at any time, up to the GPU's limit:
    memory that other programs lack.  A lower limit that was set before stays.
    """
    import mlx.core as mx

    before = mx.set_cache_limit(most_bytes)
    if before < most_bytes:
        mx.set_cache_limit(before)


def mac_limit(memory_bytes: int) -> MemoryLimit:
    """Return what the GPU of a Mac with so much memory can use, about."""
    source = f"of {format_bytes(memory_bytes)} macOS leaves the GPU about"
    return MemoryLimit(int(memory_bytes * _MAC_SHARE), source)


def _container_bytes() -> int | None:
    """Return the memory limit of a Linux container, or None outside one."""
    try:
        content = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(content) if content.isdecimal() else None  # "max": no limit
