"""quantized_matvec: few rows of x times a quantized matrix, each as if it were alone.

A row of x gives the same bits however many are multiplied at once: the kernel adds in one order.
It has two records, since it is chosen for one row, where memory is the bound, and for two to four
on their own merits.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.metal_kernel import Dims, MetalKernel, pack_params
from mlx_gemma4.kernels.quantized_matrix import (
    QuantizedMatrix,
    drawn_matrix,
    drawn_vectors,
    model_shapes,
    multiply,
)

# Rows of x that a simdgroup takes, and a record covers.
MAX_VECTORS = 4

_SIMDGROUPS, _ROWS = 2, 4  # of a threadgroup; rows of the matrix in each
_GROUP_SIZE = 64  # of matrices to time
_MAX_TILES = 4  # of vectors in a threadgroup, which read the matrix from memory once

_kernel = MetalKernel(
    "quantized_matvec",
    inputs=("x", "weight", "scales", "biases", "params"),
    outputs=("out",),
)


def launch(x: mx.array, matrix: QuantizedMatrix) -> tuple[mx.array]:
    """Return x @ W^T; what W must be, `QuantizedMatrix.fits` says.

    Args:
        x: [..., K], of however many rows; the matrix is read once for 16 of them.
        matrix: W [N, K].

    Returns:
        [..., N] in the dtype of x.
    """
    *batch, K = x.shape
    M, N = x.size // K, matrix.num_rows
    assert matrix.biases is not None
    vectors, grid, threadgroup = tile(M, -(-N // (_SIMDGROUPS * _ROWS)))
    (out,) = _kernel(
        inputs=[x, matrix.weight, matrix.scales, matrix.biases, pack_params(K, N, M)],
        template=[
            ("T", x.dtype),
            ("BITS", matrix.bits),
            ("GROUP", matrix.group_size),
            ("VECTORS", vectors),
        ],
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=[(*batch, N)],
        output_dtypes=[x.dtype],
    )
    return (out,)


def tile(M: int, threadgroups: int) -> tuple[int, Dims, Dims]:
    """Return how M rows of x are shared among simdgroups.

    Args:
        M: Rows of x.
        threadgroups: That cover the matrix, two simdgroups each.

    Returns:
        Rows of x of a simdgroup (a template parameter: 1, 2, or 4), grid, and threadgroup.
    """
    vectors = min(MAX_VECTORS, 1 << (M - 1).bit_length())
    tiles = -(-M // vectors)
    deep = min(tiles, _MAX_TILES)
    grid = (32, _SIMDGROUPS * threadgroups, deep * -(-tiles // deep))
    return vectors, grid, (32, _SIMDGROUPS, deep)


def _check_cases(rows: Sequence[int], dtype: mx.Dtype) -> Sequence[Case]:
    shapes = [(12, 768, 4, 64), (9, 96, 4, 32), (8, 576, 8, 64), (3, 288, 8, 32)]
    return [
        Case(
            f"{M} x {K} by {N}, {bits} bits in {group}",
            (drawn_vectors(M, K, dtype), drawn_matrix(N, K, bits, group, dtype)),
        )
        for M in rows
        for N, K, bits, group in shapes
    ]


def tune_cases(rows: Mapping[int, Sequence[int]], sizes: Sizes) -> Sequence[Case]:
    """Return products with every matrix of a model, for given rows of x by number of bits."""
    return [
        Case(
            f"{label}, {M} x {K} by {N}, {bits} bits",
            (drawn_vectors(M, K, sizes.dtype), matrix),
        )
        for bits, of_bits in rows.items()
        for label, N, K in model_shapes(sizes)
        if K % _GROUP_SIZE == 0
        for matrix in [drawn_matrix(N, K, bits, _GROUP_SIZE, sizes.dtype)]  # one for all M
        for M in of_bits
    ]


KERNEL = registry.register(
    Kernel(
        "quantized_matvec",
        ("quantized_matvec",),
        launch,
        multiply,
        lambda dtype: _check_cases([1], dtype),
        lambda sizes: tune_cases({4: [1], 8: [1]}, sizes),
    )
)

MULTIVECTOR_KERNEL = registry.register(
    Kernel(
        "quantized_multivector",
        ("quantized_matvec",),
        launch,
        multiply,
        lambda dtype: _check_cases([2, 3], dtype),
        lambda sizes: tune_cases({4: [2, MAX_VECTORS], 8: [MAX_VECTORS]}, sizes),
    )
)
