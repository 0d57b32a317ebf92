"""Whether a kernel is faster than its definition, on a model's own shapes and the machine at hand.

Calls are chained where the shapes allow it, each on the last one's output, because a decoder's
layers wait for each other too: what counts is the time from one to the next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_gemma4.kernels.kernel import Case, Kernel

# One synchronisation costs as much as dozens of small launches: so many are timed together as fill
# a sample, if that is not too many.
_SAMPLE_S = 0.004
_MAX_REPEATS = 64

# What medians of a few samples differ by on a machine that does other things as well.
_NOISE = 0.05


@dataclass(frozen=True)
class Timing:
    """One case on both sides.

    Attributes:
        label: Of the case.
        plain_ms: Of one call of the definition.
        kernel_ms: Of one launch.
    """

    label: str
    plain_ms: float
    kernel_ms: float

    @property
    def gain(self) -> float:
        """How many times faster the kernel is."""
        return self.plain_ms / self.kernel_ms


def overall_gain(timings: Sequence[Timing]) -> float:
    """Return the geometric mean of the gains of all cases."""
    return prod(timing.gain for timing in timings) ** (1 / len(timings))


def is_faster(timings: Sequence[Timing]) -> bool:
    """Whether the kernel wins overall, and loses no case by more than noise."""
    return overall_gain(timings) > 1 and min(timing.gain for timing in timings) >= 1 - _NOISE


def time_kernel(
    kernel: Kernel,
    cases: Sequence[Case],
    *,
    samples: int,
    deadline: float | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Timing] | None:
    """Return a timing a case, or None if the deadline passed before the last was done.

    Args:
        kernel: Both sides of which are timed, in turns.
        cases: With the shapes of a model.
        samples: Of each side; the median counts.
        deadline: In seconds of `time.perf_counter`; looked at before every sample.
        progress: Called after each case.
    """
    timings: list[Timing] = []
    sides = (kernel.define, kernel.launch)
    for case in cases:
        if deadline is not None and time.perf_counter() > deadline:
            return None
        for side in sides:
            _seconds(side, case.arguments, 1)  # compiles, allocates
        once = max(_seconds(kernel.define, case.arguments, 1), 1e-6)
        repeats = max(1, min(_MAX_REPEATS, round(_SAMPLE_S / once)))
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(samples):
            if deadline is not None and time.perf_counter() > deadline:
                return None
            for side, measured in zip(sides, seconds, strict=True):
                measured.append(_seconds(side, case.arguments, repeats) / repeats)
        plain, ours = map(median, seconds)
        timings.append(Timing(case.label, 1e3 * plain, 1e3 * ours))
        progress()
    return timings


def _seconds(
    function: Callable[..., tuple[mx.array, ...]], arguments: Sequence[Any], repeats: int
) -> float:
    """Return how long so many calls take, until the last output is there."""
    mx.synchronize()
    start = time.perf_counter()
    first, *others = arguments
    pending: list[tuple[mx.array, ...]] = []
    for _ in range(repeats):
        outputs = function(first, *others)
        pending.append(outputs)
        if outputs[0].size == first.size and outputs[0].dtype == first.dtype:
            first = outputs[0].reshape(first.shape)
    mx.eval(pending)
    return time.perf_counter() - start
