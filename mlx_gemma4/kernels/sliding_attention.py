"""Attention of sliding layers, over a ring of packed rows: which kernel, if any, does it."""

import mlx.core as mx

from mlx_gemma4.kernels import registry, sliding_decode, sliding_tiles
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.ring_rows import RingRows, ring_attention

MAX_VERIFY_LENGTH = 16  # positions of a draft; longer chunks are prefill


def sliding_attention(q: mx.array, rows: RingRows, mask: IntervalMask) -> mx.array:
    """Return attention of each query over the keys in its interval.

    Args:
        q: [B, H, L, Dh] floating point.
        rows: Of all positions that the queries may see, H a multiple of K.
        mask: Of L queries; its key positions are those of `rows.fetch()`.

    Returns:
        [B, H, L, Dh] in the dtype of q.  Softmax accumulates in float32.
    """
    if sliding_tiles.fits(q, rows):
        if sliding_decode.fits(q, rows):
            name, launch = "sliding_decode", sliding_decode.launch
        else:
            name = "sliding_verify" if q.shape[2] <= MAX_VERIFY_LENGTH else "sliding_prefill"
            launch = sliding_tiles.launch
        if registry.is_on(name):
            return launch(q, rows, mask)[0]
    return ring_attention(q, rows, mask)[0]
