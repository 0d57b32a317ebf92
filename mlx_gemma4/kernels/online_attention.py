"""Attention over keys and values that are made a block at a time.

Where rows must be unpacked before they are multiplied, unpacking all of a long context would take
more memory than the cache saves.  Here a block of them is made, used, and forgotten; an online
softmax keeps the largest score and the sum of weights of each query.
"""

from collections.abc import Callable

import mlx.core as mx

from mlx_gemma4.kernels.interval_attention import IntervalMask

# Keys and values [B, K, stop - start, Dh] of positions start..stop, made after other arrays.
FetchBlock = Callable[[int, int, list[mx.array]], tuple[mx.array, mx.array]]

# Of scores, keys, and values of a block.  MLX launches operations ahead of those that run, and has
# up to nine times as much at once.
BLOCK_BYTES = 16 << 20

# So many share a block of keys: making it is then small beside using it.
BLOCK_QUERIES = 256

_LEAST = -1e30  # not infinite: a difference of two of them must not be NaN


def num_block_keys(q: mx.array, key_heads: int) -> int:
    """Return how many keys a block has, by its scores, keys, and values.

    Args:
        q: [B, H, L, Dh].
        key_heads: K.
    """
    B, H, L, Dh = q.shape
    key_bytes = 4 * H * min(L, BLOCK_QUERIES) + 2 * key_heads * Dh * q.dtype.size
    return max(1, BLOCK_BYTES // (B * key_bytes))


def online_attention(
    q: mx.array, fetch: FetchBlock, mask: IntervalMask, key_heads: int, block_keys: int
) -> mx.array:
    """Return attention of each query over the keys in its interval.

    Args:
        q: [B, H, L, Dh] floating point.
        fetch: Makes keys and values.
        mask: Of L queries; key p has position p.
        key_heads: K; H is a multiple of it.
        block_keys: Keys of a block.

    Returns:
        [B, H, L, Dh] in the dtype of q.  Softmax accumulates in float32.
    """
    L = q.shape[2]
    parts: list[mx.array] = []
    for start in range(0, L, BLOCK_QUERIES):
        stop = min(start + BLOCK_QUERIES, L)
        queries = q[:, :, start:stop]
        if parts:  # one block after the other: see interval_attention
            queries = mx.depends([queries], [parts[-1]])[0]
        parts.append(_attend(queries, fetch, mask, slice(start, stop), key_heads, block_keys))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _attend(
    q: mx.array,
    fetch: FetchBlock,
    mask: IntervalMask,
    queries: slice,
    key_heads: int,
    block_keys: int,
) -> mx.array:
    B, H, L, Dh = q.shape
    lo, hi = mask.lo[:, queries], mask.hi[:, queries]
    ends = mask.packed()[: 2 * mask.lo.size].reshape(B, -1, 2)[:, None, None, queries]
    rows = q.reshape(B, key_heads, -1, Dh)  # the query heads of one key head
    largest = mx.full((*rows.shape[:3], 1), _LEAST, mx.float32)
    total = mx.zeros_like(largest)
    out = mx.zeros(rows.shape, mx.float32)
    last = int(hi.max()) + 1
    for start in range(int(lo.min()), last, block_keys):
        stop = min(start + block_keys, last)
        # Not before the last block is forgotten; without `total` its weights would stay.
        k, v = fetch(start, stop, [out, total])
        scores = (rows @ k.swapaxes(-1, -2)).astype(mx.float32)
        if lo.max() > start or hi.min() < stop - 1:
            positions = mx.arange(start, stop)
            is_visible = (positions >= ends[..., :1]) & (positions <= ends[..., 1:])
            of_heads = scores.reshape(B, key_heads, -1, L, stop - start)
            scores = mx.where(is_visible, of_heads, -mx.inf).reshape(scores.shape)
        highest = mx.maximum(largest, scores.max(axis=-1, keepdims=True))
        weights = mx.exp(scores - highest)
        factor = mx.exp(largest - highest)
        total = total * factor + weights.sum(axis=-1, keepdims=True)
        out = out * factor + weights.astype(q.dtype) @ v
        largest = highest
    return (out / total).astype(q.dtype).reshape(B, H, L, Dh)
