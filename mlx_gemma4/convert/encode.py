"""Rows of a parameter as they are stored, into the bytes that are written.

Every parameter goes through block by block, so that memory holds a few blocks and never a matrix:
the embedding of the 12B alone has 2 GB.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlx_gemma4.convert import microscaling
from mlx_gemma4.convert.plan import PlannedParameter
from mlx_gemma4.convert.q4_0 import fit_rows
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights import read_bytes, read_rows, row_blocks
from mlx_gemma4.weights.compressed_tensors import symmetric_biases

# Of the source, in one step: small beside what Python and MLX take themselves.
BLOCK_BYTES = 16 << 20

_MLX_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}


@dataclass(frozen=True)
class Factors:
    """Learned factors that a parameter takes before it is rounded.

    Attributes:
        rows: [R] float32, or None.
        columns: [K] float32, or None; a vector's only axis is its rows.
    """

    rows: mx.array | None = None
    columns: mx.array | None = None


@dataclass(frozen=True)
class Block:
    """What rows start..stop of a parameter become.

    Attributes:
        content: Bytes by part.
        is_finite: Whether all values of the source are.
    """

    parameter: PlannedParameter
    start: int
    stop: int
    content: Mapping[str, memoryview] = field(repr=False)
    is_finite: bool


def blocks_of(parameter: PlannedParameter) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the runs of rows in which a parameter is encoded."""
    widest = max(parameter.stored.values(), key=lambda tensor: tensor.nbytes)
    # Dequantized rows are wider than those in the file.
    share = widest.nbytes / max(1, 2 * parameter.count)
    yield from row_blocks(widest, max(1, int(BLOCK_BYTES * min(1.0, share))))


def encode_block(
    parameter: PlannedParameter, start: int, stop: int, factors: Factors | None = None
) -> Block:
    """Read rows start..stop of a parameter and return what is written for them."""
    if parameter.is_copied and factors is None:
        return _copy_block(parameter, start, stop)
    if parameter.stored_settings and parameter.stored_settings == parameter.settings:
        return _take_over_block(parameter, start, stop)
    rows = read_plain_rows(parameter, start, stop)
    is_finite = _are_finite(rows)
    if factors is not None:
        rows = _apply(factors, rows, start, stop)
    settings, weight = parameter.settings, parameter.parts["weight"]
    if settings is None:
        return Block(
            parameter,
            start,
            stop,
            {"weight": _bytes_of(rows.astype(_MLX_DTYPES[weight.dtype]))},
            is_finite,
        )
    if parameter.rule is not None and parameter.rule.grid is not None:
        parts = _encode_grid(parameter, rows, start)
    elif settings.mode == "affine":
        floats = _MLX_DTYPES[parameter.parts["scales"].dtype]
        # The dtype of the rows is that of the scales against which codes are rounded.
        rows = rows.astype(floats)
        packed, scales, biases = mx.quantize(
            rows, group_size=settings.group_size, bits=settings.bits, mode="affine"
        )
        parts = {
            "weight": packed,
            "scales": scales.astype(floats),
            "biases": biases.astype(floats),
        }
    else:
        parts = microscaling.encode(rows, settings)
    content = {part: _bytes_of(array) for part, array in parts.items()}
    return Block(parameter, start, stop, content, is_finite)


def read_plain_rows(parameter: PlannedParameter, start: int, stop: int) -> mx.array:
    """Return rows start..stop as floating point: of the file, or dequantized in float32."""
    settings = parameter.stored_settings
    stored = _read_stored(parameter, start, stop)
    if settings is None:
        return stored["weight"]
    is_affine = settings.mode == "affine"
    return mx.dequantize(
        stored["weight"],
        stored["scales"].astype(mx.float32) if is_affine else stored["scales"],
        stored["biases"].astype(mx.float32) if is_affine else None,
        group_size=settings.group_size,
        bits=settings.bits,
        mode=settings.mode,
        dtype=mx.float32,
    )


def _read_stored(parameter: PlannedParameter, start: int, stop: int) -> dict[str, mx.array]:
    """Return rows of all parts; biases that compressed-tensors leaves out follow from scales."""
    settings = parameter.stored_settings
    stored = {part: read_rows(tensor, start, stop) for part, tensor in parameter.stored.items()}
    if settings and settings.mode == "affine" and "biases" not in stored:
        stored["biases"] = symmetric_biases(stored["scales"], settings.bits)
    return stored


def _take_over_block(parameter: PlannedParameter, start: int, stop: int) -> Block:
    """Return the parts of rows that are quantized as they should be, in another notation."""
    stored = _read_stored(parameter, start, stop)
    is_finite = stored["scales"].dtype == mx.uint8 or _are_finite(stored["scales"])
    content = {
        part: _bytes_of(stored[part].astype(_MLX_DTYPES.get(tensor.dtype, stored[part].dtype)))
        for part, tensor in parameter.parts.items()
    }
    return Block(parameter, start, stop, content, is_finite)


def _copy_block(parameter: PlannedParameter, start: int, stop: int) -> Block:
    content: dict[str, memoryview] = {}
    is_finite = True
    for part, tensor in parameter.stored.items():
        row_bytes = tensor.nbytes // max(1, tensor.shape[0]) if tensor.shape else tensor.nbytes
        content[part] = memoryview(read_bytes(tensor, start * row_bytes, stop * row_bytes))
        is_finite &= not tensor.is_float or _is_finite(content[part], tensor.dtype)
    return Block(parameter, start, stop, content, is_finite)


def _is_finite(content: memoryview, dtype: str) -> bool:
    """Whether no exponent is all ones.

    A look at the bits: without its sign a number is the larger, the larger its bits are.  MLX's
    isfinite takes as long as the quantization.
    """
    bits, least = {
        "BF16": (np.uint16, 0xFF00),
        "F16": (np.uint16, 0xF800),
        "F32": (np.uint32, 0xFF000000),
    }[dtype]
    values: Any = np.frombuffer(content, bits)
    return not values.size or int((values << 1).max()) < least


def _are_finite(rows: mx.array) -> bool:
    """Whether all values are finite."""
    dtype = next(name for name, dtype in _MLX_DTYPES.items() if dtype == rows.dtype)
    return _is_finite(_bytes_of(rows), dtype)


def _apply(factors: Factors, rows: mx.array, start: int, stop: int) -> mx.array:
    rows = rows.astype(mx.float32)
    if factors.rows is not None:
        of_rows = factors.rows[start:stop]
        rows = rows * of_rows.reshape(-1, *(1 for _ in rows.shape[1:]))
    return rows if factors.columns is None else rows * factors.columns


def _encode_grid(parameter: PlannedParameter, rows: mx.array, start: int) -> dict[str, mx.array]:
    """Take over rows that lie on a grid, without loss.

    Raises:
        CheckpointError: They do not.
    """
    tensor = parameter.stored["weight"]
    try:
        fit = fit_rows(rows, first_row=start)
    except CheckpointError as error:
        raise CheckpointError(f"{tensor.file}: {tensor.name}: {error}") from None
    scales = fit.scales.astype(_MLX_DTYPES[parameter.parts["scales"].dtype])
    return {"weight": fit.codes, "scales": scales, "biases": scales * -8}


def _bytes_of(array: mx.array) -> memoryview:
    """Return the bytes of an array, in row order."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    mx.eval(array)
    return memoryview(cast(Any, np.array(array, copy=False).reshape(-1).view(np.uint8)))


def row_bytes(nbytes: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of one row of a tensor."""
    return nbytes // math.prod(shape[:1]) if shape and shape[0] else nbytes
