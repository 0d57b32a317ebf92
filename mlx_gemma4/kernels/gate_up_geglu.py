"""The gated half of a feed-forward block: gelu(x @ gate^T) * (x @ up^T), in one launch.

The two matrices stay where they are: rows of each are read in runs of whole rows, as they would be
if the matrices were interleaved, so that moving them at load would save nothing but one address.
"""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params
from mlx_gemma4.kernels.quantized_matmul import quantized_matmul
from mlx_gemma4.kernels.quantized_matrix import QuantizedMatrix, drawn_matrix, drawn_vectors
from mlx_gemma4.kernels.quantized_matvec import MAX_VECTORS, tile

_ROWS = 4  # of each matrix in a threadgroup

_kernel = MetalKernel(
    "gate_up_geglu",
    inputs=(
        "x",
        "gate",
        "gate_scales",
        "gate_biases",
        "up",
        "up_scales",
        "up_biases",
        "params",
    ),
    outputs=("out",),
)


@partial(mx.compile, shapeless=True)
def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return gelu(gate) * up, with the tanh form of gelu (`gelu_pytorch_tanh`)."""
    return nn.gelu_approx(gate) * up


def gate_up_geglu(
    x: mx.array, gate: QuantizedMatrix, up: QuantizedMatrix, *, exact: bool = False
) -> mx.array:
    """Return gelu(x @ gate^T) * (x @ up^T).

    Args:
        x: [..., K] floating point.
        gate: [N, K].
        up: [N, K].
        exact: Each row of x gives the same bits as it does alone; see `quantized_matmul`.

    Returns:
        [..., N] in the dtype of x.
    """
    if registry.is_on("gate_up_geglu") and gate.fits(x) and up.fits(x) and gate.is_like(up):
        rows = x.size // x.shape[-1]
        is_few = rows <= MAX_VECTORS and registry.is_on("quantized_multivector")
        if rows == 1 or exact or is_few:
            return launch(x, gate, up)[0]
    return geglu(quantized_matmul(x, gate, exact=exact), quantized_matmul(x, up, exact=exact))


def define(x: mx.array, gate: QuantizedMatrix, up: QuantizedMatrix) -> tuple[mx.array]:
    """Return the same by MLX's own operations: the definition."""
    return (geglu(gate.multiply(x), up.multiply(x)),)


def launch(x: mx.array, gate: QuantizedMatrix, up: QuantizedMatrix) -> tuple[mx.array]:
    """Return the same by the Metal kernel, for however many rows of x; both matrices are alike."""
    *batch, K = x.shape
    M, N = x.size // K, gate.num_rows
    assert gate.biases is not None
    assert up.biases is not None
    vectors, grid, threadgroup = tile(M, -(-N // _ROWS))
    (out,) = _kernel(
        inputs=[
            x,
            gate.weight,
            gate.scales,
            gate.biases,
            up.weight,
            up.scales,
            up.biases,
            pack_params(K, N, M),
        ],
        template=[
            ("T", x.dtype),
            ("BITS", gate.bits),
            ("GROUP", gate.group_size),
            ("VECTORS", vectors),
        ],
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=[(*batch, N)],
        output_dtypes=[x.dtype],
    )
    return (out,)


def _case(label: str, M: int, N: int, K: int, bits: int, group: int, dtype: mx.Dtype) -> Case:
    gate, up = (drawn_matrix(N, K, bits, group, dtype, seed) for seed in (0, 1))
    return Case(label, (drawn_vectors(M, K, dtype), gate, up))


def _check_cases(dtype: mx.Dtype) -> Sequence[Case]:
    return [
        _case("4 bits, half a step left", 1, 6, 768, 4, 64, dtype),
        _case("8 bits, an odd row", 1, 3, 288, 8, 32, dtype),
        _case("three vectors", 3, 5, 576, 4, 64, dtype),
    ]


def _tune_cases(sizes: Sizes) -> Sequence[Case]:
    K, N = sizes.hidden_size, sizes.intermediate_size
    if K % 64:
        return []
    return [_case(f"decode, {bits} bits", 1, N, K, bits, 64, sizes.dtype) for bits in (4, 8)]


KERNEL = registry.register(
    Kernel("gate_up_geglu", ("gate_up_geglu",), launch, define, _check_cases, _tune_cases)
)
