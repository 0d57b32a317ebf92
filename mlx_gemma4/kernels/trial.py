"""Finding out what is not known of kernels on this machine: self-checks, then timings."""

import time
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_gemma4.kernels.kernel import Kernel, Sizes
from mlx_gemma4.kernels.self_check import describe, self_check
from mlx_gemma4.kernels.tuning import time_kernel
from mlx_gemma4.kernels.verdicts import Verdicts

TUNE_LIMIT_S = 20.0  # of a first start, self-checks included

_SAMPLES, _THOROUGH_SAMPLES = 5, 25


def try_kernels(
    kernels: Sequence[Kernel],
    verdicts: Verdicts,
    sizes: Sizes,
    *,
    tune: bool,
    thorough: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Fill in what verdicts lack; return whether anything was tried.

    Verdicts are written before and after each kernel is tried: an interrupted trial keeps what it
    has found, and a kernel that takes the process with it is known at the next start.

    Args:
        kernels: Those to try.
        verdicts: Of this machine; changed.
        sizes: Of the model.
        tune: Time what passed, not only check.
        thorough: Forget what is known, take more samples, and take as long as it takes.
        progress: Called with (steps done, steps in all).
    """
    if thorough:
        verdicts.forget([kernel.name for kernel in kernels], sizes.key)
    timings = verdicts.timings_of(sizes.key)
    unchecked = [k for k in kernels if k.name not in verdicts.checks]
    untimed = [
        k for k in kernels if tune and k.name not in timings and not verdicts.checks.get(k.name)
    ]
    if not unchecked and not untimed:
        return False
    deadline = None if thorough else time.perf_counter() + TUNE_LIMIT_S
    cases = {kernel.name: kernel.tune_cases(sizes) for kernel in untimed}  # lazy: no memory yet
    total = len(unchecked) + sum(map(len, cases.values()))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for kernel in unchecked:
        with verdicts.trying(kernel.name):
            verdicts.checks[kernel.name] = self_check(kernel)
        step()
    for kernel in untimed:
        if verdicts.checks[kernel.name] is not None:
            continue
        with verdicts.trying(kernel.name):
            try:
                measured = time_kernel(
                    kernel,
                    cases.pop(kernel.name),
                    samples=_THOROUGH_SAMPLES if thorough else _SAMPLES,
                    deadline=deadline,
                    progress=step,
                )
            except Exception as error:  # what small shapes have not shown
                verdicts.checks[kernel.name] = f"while it was timed: {describe(error)}"
                continue
            if measured is not None:
                timings[kernel.name] = measured
    mx.clear_cache()  # a prefill's arrays, which the model's weights may need the room of
    return True
