"""Attention of global layers over rows that hold key and value at once."""

import mlx.core as mx

from mlx_gemma4.kernels import registry, shared_decode
from mlx_gemma4.kernels.interval_attention import IntervalMask

MAX_VERIFY_LENGTH = 16  # positions of a draft; longer chunks are prefill, where MLX's products win


def shared_attention(q: mx.array, rows: mx.array, mask: IntervalMask, length: int) -> mx.array:
    """Return attention of each query over the keys in its interval.

    Args:
        q: [B, H, L, Dh] floating point, rotated dimensions first.
        rows: [B, K, slots, Dh + rotated], H a multiple of K; slot p holds position p: its key is
            row[:Dh], its value row[rotated:].
        mask: Of L queries and `length` keys.
        length: Slots in use.

    Returns:
        [B, H, L, Dh] in the dtype of q.  Softmax accumulates in float32.
    """
    if (
        q.shape[2] <= MAX_VERIFY_LENGTH
        and shared_decode.fits(q, rows)
        and registry.is_on("shared_decode")
    ):
        return shared_decode.launch(q, rows, mask, length)[0]
    return shared_decode.define(q, rows, mask, length)[0]
