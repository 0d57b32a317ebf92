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

# Queries of one block.  All of them see the union of their intervals: an eighth of an interval more
# than each needs; fewer than 128 rows no longer keep a matmul busy.
MIN_BLOCK_QUERIES = 128
_INTERVALS_PER_BLOCK = 8

# Queries up to which multiplying by whole packed rows is cheaper than copying a part of them.
_MAX_PACKED_LENGTH = 8


class IntervalMask:
    """The visible keys of each query, as an interval and the positions of the keys.

    Queries lo=[0, 0, 1], hi=[0, 2, 2] on key_positions=[2, 0, 1] (a ring of three) see

        0 1 0
        1 1 1
        1 0 1

    All layers of one type share a mask, and with it the pieces of the matrix made so far.

    Attributes:
        lo: [B, L] int32, first visible position of each query, 0 or more.
        hi: [B, L] int32, last visible position, inclusive.
        key_positions: [B, S] int32, position of each key; -1 marks an empty slot.
        longest: Positions of the longest interval.
    """

    def __init__(self, lo: np.ndarray, hi: np.ndarray, key_positions: np.ndarray) -> None:
        """Take the intervals; nothing is computed yet."""
        self.lo = lo
        self.hi = hi
        self.key_positions = key_positions
        self.longest = int((hi - lo).max()) + 1
        self._is_in_order = len(lo) == 1 and bool((np.diff(key_positions[0]) == 1).all())
        self._blocks: dict[tuple[int, int], tuple[slice, mx.array | None]] = {}
        self._packed: mx.array | None = None

    def last(self, count: int) -> "IntervalMask":
        """Return the mask of the last queries alone."""
        return IntervalMask(self.lo[:, -count:], self.hi[:, -count:], self.key_positions)

    def packed(self) -> mx.array:
        """Return the intervals for a kernel: [B * L * 2 or 8] int32, first and last in turn."""
        if self._packed is None:
            ends = np.stack([self.lo, self.hi], axis=-1).astype(np.int32).reshape(-1)
            # MLX passes fewer than 8 elements in another address space, which is another kernel.
            self._packed = mx.array(np.pad(ends, (0, max(0, 8 - ends.size))))
        return self._packed

    def block(self, start: int, stop: int) -> tuple[slice, mx.array | None]:
        """Return the keys that queries start..stop may see, and the matrix for these.

        Returns:
            A slice of the S keys, outside of which none is visible, and a boolean matrix
            [B, 1, queries, keys]; None where every key is visible.
        """
        if (start, stop) not in self._blocks:
            self._blocks[start, stop] = self._make_block(start, stop)
        return self._blocks[start, stop]

    def _make_block(self, start: int, stop: int) -> tuple[slice, mx.array | None]:
        lo, hi = self.lo[:, start:stop], self.hi[:, start:stop]
        keys = slice(0, self.key_positions.shape[1])
        if self._is_in_order:
            origin = int(self.key_positions[0, 0])
            keys = slice(max(0, int(lo.min()) - origin), min(keys.stop, int(hi.max()) + 1 - origin))
        positions = self.key_positions[:, None, keys]
        visible: np.ndarray = (positions >= lo[:, :, None]) & (positions <= hi[:, :, None])
        return keys, None if visible.all() else mx.array(visible[:, None])


def interval_attention(q: mx.array, k: mx.array, v: mx.array, mask: IntervalMask) -> mx.array:
    """Return attention of each query over the keys in its interval.

    Args:
        q: [B, H, L, Dk] floating point.
        k: [B, K, S, Dk], with H a multiple of K; query head h reads key head h // (H / K).
        v: [B, K, S, Dv].
        mask: Of L queries and S keys.

    Returns:
        [B, H, L, Dv] in the dtype of q.  Softmax accumulates in float32.
    """
    B, H, L, _ = q.shape
    S = k.shape[2]
    size = max(MIN_BLOCK_QUERIES, mask.longest // _INTERVALS_PER_BLOCK)
    size = max(1, min(L, size, SCORE_BLOCK_BYTES // (4 * B * H * S)))
    parts: list[mx.array] = []
    for start in range(0, L, size):
        stop = min(start + size, L)
        keys, matrix = mask.block(start, stop)
        queries = q[:, :, start:stop]
        if parts:  # one block after the other: MLX would otherwise make the scores of many at once
            queries = mx.depends([queries], [parts[-1]])[0]
        parts.append(_attend(queries, k[:, :, keys], v[:, :, keys], matrix))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def packed_attention(q: mx.array, rows: mx.array, value_start: int, mask: IntervalMask) -> mx.array:
    """Return attention over rows that hold key and value side by side.

    Args:
        q: [B, H, L, Dh] floating point.
        rows: [B, K, S, row_dims]; the key is row[:Dh], the value row[value_start:].
        value_start: First dimension of the value.
        mask: Of L queries and S keys.

    Returns:
        [B, H, L, row_dims - value_start] in the dtype of q.
    """
    Dh, row_dims = q.shape[-1], rows.shape[-1]
    if _is_on_gpu() or not reads_in_place(q):
        return interval_attention(q, rows[..., :Dh], rows[..., value_start:], mask)
    # A query is 0 where the key is not, and what is not the value is left out.
    whole = mx.pad(q, [(0, 0), (0, 0), (0, 0), (0, row_dims - Dh)])
    return interval_attention(whole, rows, rows, mask)[..., value_start:]


def reads_in_place(q: mx.array) -> bool:
    """Whether `packed_attention` copies no rows: a CPU's products copy what is a part of rows.

    For many queries, and for all that are not float32, whole rows cost more than the copy.
    """
    return _is_on_gpu() or (q.shape[2] <= _MAX_PACKED_LENGTH and q.dtype == mx.float32)


def _is_on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)


def _attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    if _is_on_gpu():
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)
    return _attend_head_rows(q, k, v, mask)


def _attend_head_rows(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Attend with the query heads of one key head as rows of one matrix.

    MLX's CPU attention copies K and V once per query head, 64 times their size at 16 heads on one.
    """
    B, H, L, Dk = q.shape
    K, S, Dv = v.shape[1:]
    k = mx.contiguous(k)  # a product would make the copy itself, transposed and thrice as slowly
    scores = (q.reshape(B, K, -1, Dk) @ k.swapaxes(-1, -2)).reshape(B, K, H // K, L, S)
    scores = scores.astype(mx.float32)
    if mask is not None:
        scores = mx.where(mask[:, :, None], scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1).astype(q.dtype)
    return (weights.reshape(B, K, -1, S) @ v).reshape(B, H, L, Dv)
