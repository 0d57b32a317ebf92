"""quantized_small_batch: up to 16 rows of x times a quantized matrix, by simdgroup matrices."""

from collections.abc import Sequence

import mlx.core as mx

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params
from mlx_gemma4.kernels.quantized_matrix import (
    QuantizedMatrix,
    drawn_matrix,
    drawn_vectors,
    multiply,
)
from mlx_gemma4.kernels.quantized_matvec import tune_cases

MAX_ROWS = 16

_THREADS, _ROWS, _FRAGMENT = 128, 16, 8

_kernel = MetalKernel(
    "quantized_small_batch",
    inputs=("x", "weight", "scales", "biases", "params"),
    outputs=("out",),
)


def launch(x: mx.array, matrix: QuantizedMatrix) -> tuple[mx.array]:
    """Return x @ W^T; what W must be, `QuantizedMatrix.fits` says.

    Args:
        x: [..., K], of at most 16 rows.
        matrix: W [N, K].

    Returns:
        [..., N] in the dtype of x.
    """
    *batch, K = x.shape
    M, N = x.size // K, matrix.num_rows
    assert matrix.biases is not None
    (out,) = _kernel(
        inputs=[x, matrix.weight, matrix.scales, matrix.biases, pack_params(K, N, M)],
        template=[
            ("T", x.dtype),
            ("BITS", matrix.bits),
            ("GROUP", matrix.group_size),
            ("COLUMNS", -(-M // _FRAGMENT)),
        ],
        grid=(_THREADS * -(-N // _ROWS), 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(*batch, N)],
        output_dtypes=[x.dtype],
    )
    return (out,)


def _check_cases(dtype: mx.Dtype) -> Sequence[Case]:
    shapes = [(5, 20, 320, 4, 64), (8, 16, 96, 4, 32), (9, 33, 128, 8, 64), (16, 7, 288, 8, 32)]
    return [
        Case(
            f"{M} x {K} by {N}, {bits} bits in {group}",
            (drawn_vectors(M, K, dtype), drawn_matrix(N, K, bits, group, dtype)),
        )
        for M, N, K, bits, group in shapes
    ]


def _tune_cases(sizes: Sizes) -> Sequence[Case]:
    return tune_cases({4: [8, MAX_ROWS], 8: [8]}, sizes)


KERNEL = registry.register(
    Kernel(
        "quantized_small_batch",
        ("quantized_small_batch",),
        launch,
        multiply,
        _check_cases,
        _tune_cases,
    )
)
