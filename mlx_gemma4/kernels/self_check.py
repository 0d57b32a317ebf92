"""Whether a kernel computes what its definition does, on the machine at hand.

The truth is the definition in float32 on the CPU.  A kernel may be twice as far from it as the
definition in the kernel's own dtype, and 1e-5 of the largest value more: that is what rounding in
another order can do, and no more.  Integers are codes, of which one at a tie may be the next one:
they may be as far on average.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels.kernel import Case, Kernel, dtype_name

DTYPES = (mx.bfloat16, mx.float16, mx.float32)

_ERROR_RATIO = 2.0
_ERROR_FLOOR = 1e-5


def self_check(kernel: Kernel) -> str | None:
    """Return why a kernel is not to be used, in a few words; None if it agrees.

    Every small case runs in every dtype.  Whatever goes wrong is an answer, never an exception:
    a Metal compiler's error comes when the outputs are evaluated, here.
    """
    for dtype in DTYPES:
        for case in kernel.check_cases(dtype):
            try:
                complaint = _compare(kernel, case)
            except Exception as error:  # of the compiler, the driver, or the launcher
                complaint = describe(error)
            if complaint:
                return f"{dtype_name(dtype)}, {case.label}: {complaint}"
    return None


def describe(error: Exception) -> str:
    """Return the type of an error and the first line of what it says, at most 200 characters."""
    first, _, _ = str(error).strip().partition("\n")
    return f"{type(error).__name__}: {first}"[:200]


def _compare(kernel: Kernel, case: Case) -> str | None:
    outputs = kernel.launch(*case.arguments)
    mx.eval(outputs)
    plain = kernel.define(*case.arguments)
    mx.eval(plain)
    with mx.stream(mx.cpu):
        truth = kernel.define(*(_as_float32(argument) for argument in case.arguments))
        mx.eval(truth)
    if len(outputs) != len(plain):
        return f"{len(outputs)} outputs instead of {len(plain)}"
    for index, (ours, theirs, exact) in enumerate(zip(outputs, plain, truth, strict=True)):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            return f"output {index} is {ours.shape} {dtype_name(ours.dtype)}"
        error, allowed = relative_error(ours, exact), relative_error(theirs, exact)
        allowed = _ERROR_RATIO * allowed + _ERROR_FLOOR
        if not error <= allowed:  # also where the error is not a number
            what = "largest code on average" if _is_code(exact) else "largest value"
            return f"output {index} is off by {error:.2g} of its {what}, not {allowed:.2g}"
    return None


def relative_error(values: mx.array, truth: mx.array) -> float:
    """Return the largest difference from the truth over the truth's largest magnitude.

    Of integers it is the mean difference.
    """
    ours, exact = (np.array(a.astype(mx.float32), np.float64) for a in (values, truth))
    differences = abs(ours - exact)
    difference = differences.mean() if _is_code(truth) else differences.max()
    return float(difference / max(abs(exact).max(), np.finfo(np.float32).tiny))


def _is_code(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.integer)


def _as_float32(argument: Any) -> Any:
    """Return an argument with float32 in place of other floating-point values, also in records."""
    if isinstance(argument, mx.array):
        is_floating = mx.issubdtype(argument.dtype, mx.floating)
        return argument.astype(mx.float32) if is_floating else argument
    if is_dataclass(argument) and not isinstance(argument, type):
        parts = {f.name: getattr(argument, f.name) for f in fields(argument) if f.init}
        return replace(argument, **{name: _as_float32(part) for name, part in parts.items()})
    return argument
