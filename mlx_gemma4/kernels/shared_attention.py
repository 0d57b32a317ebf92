"""Attention of global layers over rows that hold key and value at once."""

import mlx.core as mx

from mlx_gemma4.kernels import registry, shared_decode
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.shared_rows import SharedRows

MAX_VERIFY_LENGTH = 16  # positions of a draft; longer chunks are prefill, where MLX's products win


def shared_attention(
    q: mx.array, rows: SharedRows, mask: IntervalMask, k_weight: mx.array, periods: mx.array
) -> mx.array:
    """Return attention of each query over the keys in its interval.

    Args:
        q: [B, H, L, Dh] floating point, rotated dimensions first.
        rows: Of K key heads, H a multiple of K.
        mask: Of L queries and the keys in use.
        k_weight: [rotated], k_norm's weight.
        periods: [rotated / 2] float32, positions for one radian.

    Returns:
        [B, H, L, Dh] in the dtype of q.  Softmax accumulates in float32.
    """
    if (
        q.shape[2] <= MAX_VERIFY_LENGTH
        and shared_decode.fits(q, rows, k_weight)
        and registry.is_on(shared_decode.kernel_name(rows, q.shape[-1]))
    ):
        return shared_decode.launch(q, rows, mask, k_weight, periods)[0]
    return shared_decode.define(q, rows, mask, k_weight, periods)[0]
