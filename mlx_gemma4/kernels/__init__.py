"""Operations with a Metal kernel or a plain-MLX definition: arrays in, arrays out, no Gemma.

Importing the package imports every operation that has a kernel, and so registers all kernels.
"""

from mlx_gemma4.kernels import (
    gate_up_geglu,
    qkv_norm_rope,
    quantized_matmul,
    residual_norms,
    shared_attention,
    sliding_attention,
)

__all__ = [
    "gate_up_geglu",
    "qkv_norm_rope",
    "quantized_matmul",
    "residual_norms",
    "shared_attention",
    "sliding_attention",
]
