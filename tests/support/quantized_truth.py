"""Quantized matrices for tests of kernels, and what they are exactly."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
from kernel_truth import exact

from mlx_gemma4.kernels.quantized_matrix import QuantizedMatrix

FORMATS = [(4, 64), (4, 32), (8, 64), (8, 32)]  # bits, group size

# Each dtype, each number of bits, and each group size, where not all combinations are needed.
FEW_FORMATS = [
    (mx.bfloat16, 4, 64),
    (mx.float16, 8, 32),
    (mx.float32, 4, 32),
    (mx.bfloat16, 8, 64),
]


def quantized(
    rng: np.random.Generator, N: int, K: int, bits: int, group_size: int, dtype: mx.Dtype
) -> QuantizedMatrix:
    """Return a drawn matrix [N, K] as `mx.quantize` packs it."""
    weight = mx.array(rng.normal(size=(N, K)) / K**0.5).astype(dtype)
    return QuantizedMatrix(*mx.quantize(weight, group_size, bits), group_size, bits)


def microscaled(N: int, K: int) -> QuantizedMatrix:
    """Return a matrix of ones [N, K] in a mode without biases."""
    packed, scales, *_ = mx.quantize(mx.ones((N, K)), 32, 4, "mxfp4")
    return QuantizedMatrix(packed, scales, None, 32, 4, "mxfp4")


def vectors(rng: np.random.Generator, M: int, K: int, dtype: mx.Dtype) -> mx.array:
    """Return x [1, M, K], a few of whose values are far larger, as a network's are."""
    x = rng.normal(size=(1, M, K))
    x[..., rng.integers(K, size=3)] *= 30
    return mx.array(x).astype(dtype)


def dequantized(matrix: QuantizedMatrix) -> np.ndarray:
    """Return W [N, K] in float64, without rounding: scale * code + bias."""
    packed = np.array(matrix.weight).view(np.uint8)
    codes = packed
    if matrix.bits == 4:
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    assert matrix.biases is not None
    groups = codes.reshape(len(packed), -1, matrix.group_size).astype(np.float64)
    out = groups * exact(matrix.scales)[..., None] + exact(matrix.biases)[..., None]
    return out.reshape(len(packed), -1)


def in_float32(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """Return the same matrix with scales and biases in float32.

    MLX's CPU backend sums in the dtype of x, its GPU in float32: what is plain and rounds once is
    the product in float32.
    """
    assert matrix.biases is not None
    scales, biases = (array.astype(mx.float32) for array in (matrix.scales, matrix.biases))
    return replace(matrix, scales=scales, biases=biases)


def plain(x: mx.array, matrix: QuantizedMatrix) -> mx.array:
    """Return x @ W^T by MLX, summed in float32 and rounded once."""
    return in_float32(matrix).multiply(x.astype(mx.float32)).astype(x.dtype)


def product(x: mx.array, matrix: QuantizedMatrix) -> np.ndarray:
    """Return x @ W^T in float64."""
    return exact(x) @ dequantized(matrix).T
