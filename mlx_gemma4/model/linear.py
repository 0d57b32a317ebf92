"""Linear: the matrices of the network, plain or quantized."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma4.kernels.quantized_matmul import quantized_matmul
from mlx_gemma4.kernels.quantized_matrix import QuantizedMatrix


class QuantizedLinear(nn.QuantizedLinear):
    """`mlx.nn.QuantizedLinear` on this project's product."""

    @property
    def matrix(self) -> QuantizedMatrix:
        """The weight, as operations take it."""
        scales, biases = self["scales"], self.get("biases")
        return QuantizedMatrix(
            self["weight"], scales, biases, self.group_size, self.bits, self.mode
        )

    def __call__(self, x: mx.array) -> mx.array:
        """Map x [..., D_in] to [..., D_out]."""
        out = quantized_matmul(x, self.matrix)
        return out + self["bias"] if "bias" in self else out


class Linear(nn.Linear):
    """`mlx.nn.Linear` that `mlx.nn.quantize` turns into a `QuantizedLinear` of this project."""

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> Any:
        """Return the quantized layer; `quantize_input` stays with MLX's own."""
        if quantize_input:
            return super().to_quantized(group_size, bits, mode, quantize_input)
        return QuantizedLinear.from_linear(self, group_size, bits, mode)  # type: ignore[arg-type]
