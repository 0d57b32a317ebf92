"""Calls of sliding attention to check and to time kernels with."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import Case
from mlx_gemma4.kernels.ring_rows import RingRows


def sliding_case(
    label: str,
    dtype: mx.Dtype,
    starts: Sequence[int],
    length: int,
    window: int,
    slack: int,
    *,
    H: int,
    K: int,
    Dh: int = 256,
    picture: tuple[int, int] | None = None,
) -> Case:
    """Return a call with drawn queries and rows.

    Args:
        label: Of the case.
        dtype: Of the arrays.
        starts: First new position of each row of the batch.
        length: New positions, L.
        window: Positions that a query sees, itself included.
        slack: Slots of the ring beyond the window.
        H: Query heads.
        K: Key heads.
        Dh: Dimensions of a head.
        picture: First and one past the last of the new positions that see each other.
    """
    B, capacity = len(starts), window + slack
    ends = [start + length for start in starts]
    is_written = all(end <= capacity or length <= slack + 1 for end in ends)
    keys = mx.random.split(mx.random.key(1000 * length + sum(starts)), 3)
    q = (0.3 * mx.random.normal((B, H, length, Dh), key=keys[0])).astype(dtype)
    slots = max(1, min(capacity, max(ends if is_written else starts)))
    ring = mx.random.normal((B, K, slots, 2 * Dh), key=keys[1]).astype(dtype)
    chunk = mx.random.normal((B, K, length, 2 * Dh), key=keys[2]).astype(dtype)
    past = min(max(starts), window - 1)

    hi = np.array(starts, np.int32)[:, None] + np.arange(length, dtype=np.int32)
    lo = np.maximum(hi - (window - 1), 0)
    if picture is not None:
        hi[:, slice(*picture)] = hi[:, [picture[1] - 1]]
    if is_written:
        at = np.arange(slots)
        key_positions = np.array([end - 1 - (end - 1 - at) % capacity for end in ends], np.int32)
    else:
        key_positions = np.array(starts, np.int32)[:, None] + np.arange(-past, length)
    mask = IntervalMask(lo, hi, np.maximum(key_positions, -1).astype(np.int32))
    rows = RingRows(ring, None if is_written else chunk, tuple(starts), capacity, slots, past)
    return Case(label, (q, rows, mask))
