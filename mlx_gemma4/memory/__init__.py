"""What a model needs and what a machine can hold: arithmetic on sizes, no arrays."""

from mlx_gemma4.memory.arrays import (
    PREFILL_STEPS,
    Reading,
    cache_bytes,
    parameter_bytes,
    workspace_bytes,
)
from mlx_gemma4.memory.machine import (
    MemoryLimit,
    computes_on_cpu,
    keep_resident,
    limit_buffers,
    mac_limit,
    machine_limit,
)
from mlx_gemma4.memory.plan import (
    COMPACT_KV_BITS,
    DEFAULT_CONTEXT,
    WORKSPACE_BYTES,
    MemoryPlan,
    bounded,
    check_memory,
    choose_reading,
    longest_context,
    plan_memory,
)
from mlx_gemma4.memory.units import format_bytes

__all__ = [
    "COMPACT_KV_BITS",
    "DEFAULT_CONTEXT",
    "PREFILL_STEPS",
    "WORKSPACE_BYTES",
    "MemoryLimit",
    "MemoryPlan",
    "Reading",
    "bounded",
    "cache_bytes",
    "check_memory",
    "choose_reading",
    "computes_on_cpu",
    "format_bytes",
    "keep_resident",
    "limit_buffers",
    "longest_context",
    "mac_limit",
    "machine_limit",
    "parameter_bytes",
    "plan_memory",
    "workspace_bytes",
]
