"""What a conversion will take on this machine: memory by arithmetic, time by a sample."""

import os
import time
from dataclasses import dataclass

from mlx_gemma4.convert.encode import BLOCK_BYTES, blocks_of, encode_block
from mlx_gemma4.convert.plan import ConversionPlan

# Python, MLX, and NumPy without any tensor: measured on Linux with MLX 0.32.
_BASE_BYTES = 120 << 20
# Copies of a block while it is encoded: bytes, array, float32, codes.
_COPIES = 8


@dataclass(frozen=True)
class Estimate:
    """What a conversion takes, about.

    Attributes:
        peak_bytes: Of memory.
        seconds: Of work, on a quiet machine.
    """

    peak_bytes: int
    seconds: float


def estimate(plan: ConversionPlan) -> Estimate:
    """Return what a conversion takes, from one block of each kind of parameter."""
    cores = os.cpu_count() or 1
    seconds = 0.0
    of_kind: dict[object, tuple[float, int]] = {}
    for parameter in sorted(plan.parameters(), key=lambda p: -p.count):
        kind = (parameter.settings, parameter.stored_settings, parameter.rule)
        if kind not in of_kind:
            start, stop = next(blocks_of(parameter))
            began = time.perf_counter()
            encode_block(parameter, start, stop)
            rows = max(1, parameter.shape[0] if parameter.shape else 1)
            share = (stop - start) / rows
            of_kind[kind] = (time.perf_counter() - began, max(1, int(parameter.count * share)))
        spent, weights = of_kind[kind]
        seconds += spent * parameter.count / weights
    in_memory = min(8, cores) + 2
    blocks = min(in_memory * BLOCK_BYTES, plan.source_bytes)
    return Estimate(_BASE_BYTES + _COPIES * blocks // 2, seconds / cores)
