"""Matrices that lie on a grid: the dtype that their scales need, which a first reading finds."""

from collections.abc import Callable
from typing import Any

from mlx_gemma4.convert.encode import blocks_of, read_plain_rows
from mlx_gemma4.convert.plan import ConversionPlan, PlannedParameter
from mlx_gemma4.convert.q4_0 import ScaleDtype, fit_rows, tensor_scale_dtype
from mlx_gemma4.errors import CheckpointError


def find_scale_dtypes(
    plan: ConversionPlan, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Read every matrix on a grid and return what its scales need, as JSON holds it.

    Args:
        plan: With rules that name a grid.
        progress: Called with (bytes read, bytes of these matrices).

    Returns:
        "scale_dtypes", by canonical path, and "notes" of blocks that need more than bfloat16.

    Raises:
        CheckpointError: A matrix lies on no grid.
    """
    parameters = [
        parameter
        for parameter in plan.parameters()
        if parameter.rule and parameter.rule.grid and parameter.stored_settings is None
    ]
    done, total = 0, sum(parameter.source_bytes for parameter in parameters)
    found: dict[str, ScaleDtype] = {}
    for parameter in parameters:
        found[parameter.path] = _scale_dtype_of(parameter)
        done += parameter.source_bytes
        if progress:
            progress(done, total)
    notes = []
    for dtype, name, other in (("F16", "float16", "bfloat16"), ("F32", "float32", "16-bit")):
        matrices = [scale for scale in found.values() if scale.dtype == dtype]
        if matrices:
            blocks = sum(scale.num_blocks for scale in matrices)
            beyond = sum(
                scale.num_beyond_bfloat16 if dtype == "F16" else scale.num_beyond_float16
                for scale in matrices
            )
            notes.append(
                f"{len(matrices)} of {len(found)} matrices have {name} scales: {beyond:,} of their "
                f"{blocks:,} blocks have no {other} one that gives their values bit for bit"
            )
    if zeros := sum(scale.num_negative_zeros for scale in found.values()):
        notes.append(f"{zeros:,} weights that were -0 became +0")
    return {"scale_dtypes": {path: scale.dtype for path, scale in found.items()}, "notes": notes}


def _scale_dtype_of(parameter: PlannedParameter) -> ScaleDtype:
    tensor = parameter.stored["weight"]
    try:
        return tensor_scale_dtype(
            fit_rows(read_plain_rows(parameter, start, stop), first_row=start)
            for start, stop in blocks_of(parameter)
        )
    except CheckpointError as error:
        raise CheckpointError(f"{tensor.file}: {tensor.name}: {error}") from None
