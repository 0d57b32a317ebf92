"""mxfp4, nvfp4, and mxfp8: small floats that share one scale in 8 bits.

For a 4-bit code `mx.quantize` on a CPU compares every weight with all sixteen values of the format,
which takes the best part of an hour for the 12B.  A code follows from 16 bits of weight / scale, so
here it is looked up, in a table that MLX's own operations have filled.  Codes and scales are those
of `mx.quantize` on the CPU, bit for bit, more than ten times as fast.

On a GPU, and for mxfp8 anywhere, `mx.quantize` itself is used.  Metal's rounds ties to even, where
the CPU's rounds them towards zero: a conversion on a Mac differs from one on Linux in those codes.

Source: mlx/ops.cpp, fp_quantize, as `mx.export_to_dot` draws it for MLX 0.32.4.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.convert.nibbles import pack_nibbles

# Weights in one step: its arrays stay in a core's cache.
_STEP_WEIGHTS = 1 << 17
_MAGNITUDES_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# float32 ratios from here on are so large that MLX's differences to all values round to the same.
_LARGEST_RATIO = np.float32(2**20)


def encode(rows: mx.array, settings: QuantizationSettings) -> dict[str, mx.array]:
    """Quantize rows to what `mx.quantize` gives.

    Args:
        rows: [R, K] bfloat16, float16, or float32, finite.
        settings: Of mode mxfp4, nvfp4, or mxfp8.

    Returns:
        "weight", [R, K * bits / 32] uint32, and "scales", [R, K / group_size] uint8.
    """
    if settings.mode == "mxfp8" or mx.default_device() == mx.Device(mx.gpu):
        return _encode_with_mlx(rows, settings)
    group_size = settings.group_size
    groups = _bits_of(rows).reshape(-1, group_size)
    starts = range(0, len(groups), _STEP_WEIGHTS // group_size)
    steps = [slice(start, start + _STEP_WEIGHTS // group_size) for start in starts]
    largest = np.empty(len(groups), groups.dtype)
    all_but_sign = groups.dtype.type(np.iinfo(groups.dtype).max >> 1)
    for step in steps:
        np.max(_in_columns(groups[step]) & all_but_sign, axis=0, out=largest[step])
    largest = mx.array(largest).view(rows.dtype)
    stored, scales = _find_scales(largest, settings.mode)
    divisors = np.array(scales.astype(mx.float32))
    if rows.dtype == mx.float32 and _has_large_ratios(np.array(largest), divisors):
        return _encode_with_mlx(rows, settings)
    table = _code_table(settings.mode, rows.dtype)
    packed = np.empty((len(groups), group_size // 2), np.uint8)
    for step in steps:
        index = _ratio_index(_in_columns(groups[step]), divisors[step], rows.dtype)
        pack_nibbles(table.take(index), packed[step])
    return {
        "weight": mx.array(packed.view(np.uint32).reshape(len(rows), -1)),
        "scales": stored.reshape(len(rows), -1),
    }


def _encode_with_mlx(rows: mx.array, settings: QuantizationSettings) -> dict[str, mx.array]:
    weight, scales, *_ = mx.quantize(
        rows, group_size=settings.group_size, bits=settings.bits, mode=settings.mode
    )
    return {"weight": weight, "scales": scales}


def _bits_of(rows: mx.array) -> np.ndarray:
    """Return the bits of floats as uint16 or uint32, where they are."""
    return np.array(rows.view(mx.uint32 if rows.dtype == mx.float32 else mx.uint16), copy=False)


def _has_large_ratios(largest: np.ndarray, scales: np.ndarray) -> bool:
    """Whether a group has ratios whose code hangs on bits that the table does not see."""
    return bool(((largest / _LARGEST_RATIO > scales) & (scales > 0)).any())


def _in_columns(groups: np.ndarray) -> np.ndarray:
    """Return groups [N, group_size] as contiguous [group_size, N]."""
    return np.ascontiguousarray(groups.T)


def _find_scales(largest: mx.array, mode: str) -> tuple[mx.array, mx.array]:
    """Return the scales of groups as they are stored and as floats.

    The operations, and the dtype of each, are those of `mx.quantize`.

    Args:
        largest: [N], the largest magnitude in each group, in the dtype of the weights.
        mode: mxfp4 or nvfp4.

    Returns:
        [N] uint8, and [N] in the dtype of the weights.
    """
    dtype = largest.dtype
    wanted = largest / mx.array(_MAGNITUDES_E2M1[-1], dtype)
    if mode == "nvfp4":
        stored = mx.to_fp8(wanted.astype(mx.float32))
        return stored, mx.from_fp8(stored, dtype=dtype)
    rounded = mx.round(mx.log2(wanted)).astype(mx.int32)
    is_below = mx.power(2.0, rounded.astype(mx.float32)) < wanted.astype(mx.float32)
    exponents = mx.where(is_below, rounded + 1, rounded).astype(dtype)
    exponents = mx.where(wanted == 0, mx.array(0, dtype), exponents)
    stored = (exponents + mx.array(127, dtype)).astype(mx.uint8)
    return stored, mx.power(mx.array(2, dtype), exponents)


def _ratio_index(bits: np.ndarray, scales: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """Return weight / scale, rounded to the dtype of the weights, as an index of the table.

    Args:
        bits: [group_size, N], those of the weights.
        scales: [N] float32.
        dtype: Of the weights.

    Returns:
        [group_size, N] uint16: all bits of a 16-bit float; of float32 the upper ones, the lowest
        of them set if any of those below is.  No code begins at a ratio with a bit as low as that.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if dtype == mx.float16:
            ratio = bits.view(np.float16) / scales
            return ratio.astype(np.float16).view(np.uint16)
        if dtype == mx.bfloat16:
            bits = bits.astype(np.uint32)
            bits <<= 16
        ratio = bits.view(np.float32) / scales
    upper = ratio.view(np.uint32)
    if dtype == mx.bfloat16:  # to nearest, ties to even
        half = upper >> 16
        half &= 1
        half += 0x7FFF
        upper += half
        upper >>= 16
        return upper.astype(np.uint16)
    is_between = (upper & 0xFFFF) != 0
    upper >>= 16
    upper |= is_between
    return upper.astype(np.uint16)


@lru_cache(maxsize=6)
def _code_table(mode: str, dtype: mx.Dtype) -> np.ndarray:
    """Return the code of each index of `_ratio_index`, [65536] uint8.

    What decides between two codes is their distance in the arithmetic of `mx.quantize`; of equal
    ones it takes the first.
    """
    indices = np.arange(1 << 16, dtype=np.uint16)
    if dtype == mx.float32:
        ratios = mx.array(indices.astype(np.uint32) << 16).view(mx.float32)
    else:
        ratios = mx.array(indices).view(dtype)
    values = mx.array([*_MAGNITUDES_E2M1, *(-value for value in _MAGNITUDES_E2M1)], dtype)
    if mode == "nvfp4":
        ratios, values = ratios.astype(mx.float32), values.astype(mx.float32)
    return np.array(mx.argmin(mx.abs(ratios[:, None] - values), axis=-1).astype(mx.uint8))
