"""QuantizedMatrix: a matrix as `mx.quantize` packs it, and cases for the kernels that take it."""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_gemma4.kernels.kernel import Sizes

_BITS, _GROUP_SIZES = (4, 8), (32, 64)
_DTYPES = (mx.float32, mx.float16, mx.bfloat16)

# MLX passes a smaller array in another address space; and kernels count values in 32 bits.
_MIN_WORDS, _MAX_VALUES = 8, 1 << 32


@dataclass(frozen=True)
class QuantizedMatrix:
    """W [N, K], of whose rows `group_size` neighbours share a scale and a bias.

    Attributes:
        weight: [N, K * bits / 32] uint32.
        scales: [N, K / group_size].
        biases: Like `scales`; None in modes without.
        group_size: Columns that share a scale.
        bits: Of a value.
        mode: Of `mx.quantize`.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int
    bits: int
    mode: str = "affine"

    @property
    def num_rows(self) -> int:
        """N, the size of a product's last axis."""
        return self.weight.shape[0]

    def multiply(self, x: mx.array) -> mx.array:
        """Return x @ W^T, [..., N], by MLX's own operation."""
        return mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )

    def fits(self, x: mx.array) -> bool:
        """Whether kernels can multiply x by it; how many rows x has does not matter."""
        return (
            self.mode == "affine"
            and self.bits in _BITS
            and self.group_size in _GROUP_SIZES
            and self.biases is not None
            and x.dtype == self.scales.dtype == self.biases.dtype
            and x.dtype in _DTYPES
            and x.size > 0
            and _MIN_WORDS <= self.weight.size <= _MAX_VALUES * self.bits // 32
        )

    def is_like(self, other: "QuantizedMatrix") -> bool:
        """Whether another matrix has the same shape and settings."""
        return (
            self.weight.shape == other.weight.shape
            and self.scales.dtype == other.scales.dtype
            and (self.group_size, self.bits, self.mode)
            == (other.group_size, other.bits, other.mode)
        )


def multiply(x: mx.array, matrix: QuantizedMatrix) -> tuple[mx.array]:
    """Return x @ W^T by MLX's own operation: the definition of every product's kernel."""
    return (matrix.multiply(x),)


def drawn_matrix(
    N: int, K: int, bits: int, group_size: int, dtype: mx.Dtype, seed: int = 0
) -> QuantizedMatrix:
    """Return a matrix whose product keeps about the scale of x, for cases.

    Codes, scales, and biases are drawn, not quantized: a model's shapes take no time.
    """
    keys = mx.random.split(mx.random.key(seed + 31 * N + K), 3)
    words = N * K * bits // 32
    weight = mx.random.split(keys[0], words // 2).reshape(N, -1)  # a key is two drawn words
    step = 4 / (2**bits * K**0.5)
    scales = mx.random.uniform(0.5 * step, step, (N, K // group_size), key=keys[1])
    shifts = mx.random.uniform(0.4, 0.6, scales.shape, key=keys[2])
    biases = -(2**bits) * scales * shifts
    return QuantizedMatrix(weight, scales.astype(dtype), biases.astype(dtype), group_size, bits)


def drawn_vectors(M: int, K: int, dtype: mx.Dtype) -> mx.array:
    """Return x [1, M, K], for cases."""
    return mx.random.normal((1, M, K), key=mx.random.key(M + K)).astype(dtype)


def model_shapes(sizes: Sizes) -> Iterator[tuple[str, int, int]]:
    """Yield label, N and K of every product of a decoder's layers, q, k, and v joined."""
    D, H = sizes.hidden_size, sizes.num_attention_heads
    heads, global_heads = H * sizes.head_dim, H * sizes.global_head_dim
    yield "q, k, v", heads + 2 * sizes.num_key_value_heads * sizes.head_dim, D
    yield "o", D, heads
    global_keys = sizes.num_global_key_value_heads * sizes.global_head_dim
    yield "global q, k", global_heads + global_keys, D
    yield "global o", D, global_heads
    yield "gate or up", sizes.intermediate_size, D
    yield "down", D, sizes.intermediate_size
