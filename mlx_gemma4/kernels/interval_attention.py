"""Attention in which every query sees one interval of positions.

out[q] = softmax over {s : lo[q] <= key_positions[s] <= hi[q]} of (q . k[s]), applied to v.  The
scale is 1: Gemma 4 normalises queries and keys instead.

Keys may lie in any order, as they do in a ring: they are known by their position, not their
place.  This is the plain-MLX definition; memory is bounded by working on blocks of queries.
"""

import mlx.core as mx
import numpy as np

# Scores of one block of queries, float32: large enough to keep a matmul busy, small beside weights.
SCORE_BLOCK_BYTES = 64 << 20


def interval_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lo: np.ndarray,
    hi: np.ndarray,
    key_positions: np.ndarray,
) -> mx.array:
    """Return attention of each query over the keys in its interval.

    Queries lo=[0, 0, 1], hi=[0, 2, 2] on key_positions=[2, 0, 1] (a ring of three) see

        0 1 0
        1 1 1
        1 0 1

    Args:
        q: [B, H, L, Dk] floating point.
        k: [B, K, S, Dk], with H a multiple of K; query head h reads key head h // (H / K).
        v: [B, K, S, Dv].
        lo: [B, L] int32, first visible position of each query.
        hi: [B, L] int32, last visible position, inclusive.
        key_positions: [B, S] int32, position of each key; -1 marks an empty slot, which no query
            may see (lo >= 0).

    Returns:
        [B, H, L, Dv] in the dtype of q.  Softmax accumulates in float32.
    """
    B, H, L, _ = q.shape
    S = k.shape[2]
    block = max(1, min(L, SCORE_BLOCK_BYTES // (4 * B * H * S)))
    in_order = bool((np.diff(key_positions, axis=1) == 1).all())
    parts = []
    for start in range(0, L, block):
        rows = slice(start, start + block)
        first, last = 0, S
        if in_order and B == 1:
            # Keys outside the union of the block's intervals are masked for every query: skip them.
            origin = int(key_positions[0, 0])
            first = max(0, int(lo[:, rows].min()) - origin)
            last = min(S, int(hi[:, rows].max()) + 1 - origin)
        keys = slice(first, last)
        mask = interval_mask(lo[:, rows], hi[:, rows], key_positions[:, keys])
        parts.append(_attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], mask))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def interval_mask(lo: np.ndarray, hi: np.ndarray, key_positions: np.ndarray) -> mx.array | None:
    """Return the boolean matrix of the intervals, [B, 1, L, S]; None where every key is visible.

    Args:
        lo: [B, L] int32.
        hi: [B, L] int32, inclusive.
        key_positions: [B, S] int32.
    """
    positions = key_positions[:, None, :]
    visible: np.ndarray = (positions >= lo[:, :, None]) & (positions <= hi[:, :, None])
    return None if visible.all() else mx.array(visible[:, None])


def _attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    if mx.default_device() == mx.Device(mx.gpu):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)
    return _attend_head_rows(q, k, v, mask)


def _attend_head_rows(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Attend with the query heads of one key head as rows of one matrix.

    MLX's CPU attention copies K and V once per query head, 64 times their size at 16 heads on one.
    """
    B, H, L, Dk = q.shape
    K, S, Dv = v.shape[1:]
    scores = (q.reshape(B, K, -1, Dk) @ k.swapaxes(-1, -2)).reshape(B, K, H // K, L, S)
    scores = scores.astype(mx.float32)
    if mask is not None:
        scores = mx.where(mask[:, :, None], scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1).astype(q.dtype)
    return (weights.reshape(B, K, -1, S) @ v).reshape(B, H, L, Dv)
