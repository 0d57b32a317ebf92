"""Caches of several conversations at once: each row of a batch has its own offset.

A prompt is read into a cache of its own, which then joins those of the batch, and its row leaves
them when the answer is complete.  Slots mean what they mean in a single cache, so nothing is moved
within a row: a short conversation has slots without a position, which no interval holds.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gemma4.cache.shared import GROWTH, SharedCache
from mlx_gemma4.cache.sliding import SlidingCache
from mlx_gemma4.kernels.ring_rows import RingRows
from mlx_gemma4.kernels.shared_rows import RowFormat, SharedRows


class RaggedSlidingCache(SlidingCache):
    """Rings of several conversations, for one sliding layer.

    Attributes:
        offsets: Positions that each row has seen, B of them; `offset` is the most.
    """

    def __init__(self, window: int, slack: int) -> None:
        """Set up a batch without rows; the arguments are those of `SlidingCache`."""
        super().__init__(window, slack)
        self.offsets: list[int] = []

    def join(self, single: SlidingCache) -> None:
        """Add the row of a cache of one conversation, which has begun.

        Raises:
            ValueError: Its ring is another one.
        """
        if (single.window, single.capacity) != (self.window, self.capacity):
            raise ValueError(
                f"a ring of {single.capacity} slots for a window of {single.window} cannot join "
                f"rings of {self.capacity} for {self.window}"
            )
        assert single.rows is not None
        self._move_to([*self.offsets, single.offset])
        self.rows = _join(self.rows, single.rows, self._slots())

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order, and forget the others."""
        self._move_to([self.offsets[index] for index in indices])
        assert self.rows is not None
        self.rows = _keep(self.rows, indices, self._slots()) if indices else None

    def key_positions(self, length: int) -> np.ndarray:
        """Return the positions of the rows that `update_and_fetch` will return, [B, S] int32.

        A slot without a row that may be seen has one below 0.

        Args:
            length: New positions of each row, L.
        """
        ends = np.array(self.offsets, np.int32)[:, None] + np.int32(length)
        slots = np.arange(min(self.capacity, int(ends.max())), dtype=np.int32)
        return ends - 1 - (ends - 1 - slots) % np.int32(self.capacity)

    def update_and_fetch(self, rows: mx.array) -> RingRows:
        """Add new positions to every row; return all that these may see.

        Args:
            rows: [B, K, L, 2 * Dh], K and V; L is at most the slack and one.

        Returns:
            Rows whose `fetch()` is [B, K, S, 2 * Dh], at `key_positions(L)`.
        """
        L, starts = rows.shape[2], tuple(self.offsets)
        assert self.capacity - self.window + 1 >= L
        assert self.rows is not None
        self._move_to([start + L for start in starts])
        slots = (np.array(starts)[:, None] + np.arange(L)) % self.capacity
        self.rows = _write(_grow(self.rows, self._slots()), slots, rows)
        return RingRows(
            ring=self.rows,
            chunk=None,
            starts=starts,
            capacity=self.capacity,
            used=min(self.offset, self.capacity),
            past=0,
        )

    def is_trimmable(self, count: int) -> bool:
        """Whether the last `count` positions can be undone: a batch takes none back."""
        return count == 0

    def _slots(self) -> int:
        return min(self.capacity, _allocated(self.offset))

    def _move_to(self, offsets: list[int]) -> None:
        self.offsets, self.offset = offsets, max(offsets, default=0)


class RaggedSharedCache(SharedCache):
    """Rows of several conversations, for one global layer.

    Attributes:
        offsets: Positions that each row has seen, B of them; `offset` is the most.
    """

    def __init__(self, row_format: RowFormat) -> None:
        """Set up a batch without rows."""
        super().__init__(row_format)
        self.offsets: list[int] = []

    def join(self, single: SharedCache) -> None:
        """Add the row of a cache of one conversation, which has begun.

        Raises:
            ValueError: It keeps its rows in another form.
        """
        if single.row_format != self.row_format:
            raise ValueError(f"rows in {single.row_format} cannot join those in {self.row_format}")
        self._move_to([*self.offsets, single.offset])
        ours = self.state or [None] * len(single.state)
        self.state = [
            _join(array, theirs, _allocated(self.offset))
            for array, theirs in zip(ours, single.state, strict=True)
        ]

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order, and forget the others."""
        self._move_to([self.offsets[index] for index in indices])
        arrays = self.state if indices else []
        self.state = [_keep(array, indices, _allocated(self.offset)) for array in arrays]

    def update_and_fetch(self, parts: Sequence[mx.array]) -> SharedRows:
        """Add new positions to every row; return all, at `key_positions(L)`.

        Args:
            parts: In `row_format`: rows, and the scales of int8 ones, [B, K, L, ...] each.
        """
        L = parts[0].shape[2]
        slots = np.array(self.offsets)[:, None] + np.arange(L)
        self._move_to([offset + L for offset in self.offsets])
        self.state = [
            _write(_grow(array, _allocated(self.offset)), slots, part)
            for array, part in zip(self.state, parts, strict=True)
        ]
        buffer, *scales = self.state
        return SharedRows(buffer, scales[0] if scales else None, self.offset)

    def is_trimmable(self, count: int) -> bool:
        """Whether the last `count` positions can be undone: a batch takes none back."""
        return count == 0

    def _move_to(self, offsets: list[int]) -> None:
        self.offsets, self.offset = offsets, max(offsets, default=0)


RaggedCache = list[RaggedSlidingCache | RaggedSharedCache]  # one a layer


def make_ragged(prompt_cache: Sequence[SlidingCache | SharedCache]) -> RaggedCache:
    """Return caches without rows, which caches like these can join."""
    return [
        RaggedSlidingCache(layer_cache.window, layer_cache.capacity - layer_cache.window)
        if isinstance(layer_cache, SlidingCache)
        else RaggedSharedCache(layer_cache.row_format)
        for layer_cache in prompt_cache
    ]


def join_row(batch: RaggedCache, prompt_cache: Sequence[SlidingCache | SharedCache]) -> None:
    """Add a conversation to every layer.

    One layer after the other, so that no more than one is in memory twice.
    """
    for ragged, single in zip(batch, prompt_cache, strict=True):
        if isinstance(ragged, RaggedSlidingCache):
            assert isinstance(single, SlidingCache)
            ragged.join(single)
        else:
            assert isinstance(single, SharedCache)
            ragged.join(single)
        mx.eval(ragged.state)


def keep_rows(batch: RaggedCache, indices: Sequence[int]) -> None:
    """Keep these conversations in every layer, in this order, and forget the others."""
    for ragged in batch:
        ragged.keep(indices)
        mx.eval(ragged.state)


def offsets_of(
    prompt_cache: Sequence[SlidingCache | SharedCache] | None, batch: int
) -> Sequence[int]:
    """Return the position of each row's next token: the same for all if the cache is not ragged.

    Args:
        prompt_cache: One a layer; None if nothing is past.
        batch: Rows, B.
    """
    first = prompt_cache[0] if prompt_cache else None
    if isinstance(first, RaggedSlidingCache | RaggedSharedCache):
        return first.offsets
    return [first.offset if first else 0] * batch


def _allocated(end: int) -> int:
    """Return the slots for positions up to `end`."""
    return -(-end // GROWTH) * GROWTH


def _grow(array: mx.array, slots: int) -> mx.array:
    """Return rows [B, K, have, D] with `slots` slots, or more if they had them."""
    B, K, have, D = array.shape
    if have >= slots:
        return array
    return mx.concatenate([array, mx.zeros((B, K, slots - have, D), array.dtype)], axis=2)


def _join(ours: mx.array | None, theirs: mx.array, slots: int) -> mx.array:
    """Return the rows of both, with `slots` slots."""
    arrays = [_grow(array, slots)[:, :, :slots] for array in (ours, theirs) if array is not None]
    return mx.contiguous(mx.concatenate(arrays))


def _keep(array: mx.array, indices: Sequence[int], slots: int) -> mx.array:
    """Return some rows, with `slots` slots."""
    return array[:, :, :slots][mx.array(list(indices), mx.int32)]


def _write(array: mx.array, slots: np.ndarray, rows: mx.array) -> mx.array:
    """Return `array` [B, K, S, D] with rows [B, K, L, D] at the slots [B, L] of each."""
    places = mx.array(slots.astype(np.int32))
    array[mx.arange(len(slots))[:, None], :, places] = rows.swapaxes(1, 2)
    return array
