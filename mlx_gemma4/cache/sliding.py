"""SlidingCache: keys and values of the last positions, in a ring.

A position lives in slot position % capacity, so nothing is ever moved: the softmax does not care
about the order of keys, and RoPE is already in them.  capacity = window + slack; the slack slots
keep what a rejected draft or a short chunk would otherwise overwrite, so that undoing positions
means moving a counter.
"""

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels.ring_rows import RingRows

# Slots are allocated in steps, so that a short prompt does not pay for a whole window.
GROWTH = 256


class SlidingCache:
    """Ring of packed [K | V] rows for one sliding layer.

    Attributes:
        offset: Positions seen so far, the position of the next token.
        window: Positions that a query sees, itself included (`config.sliding_window`).
        capacity: Slots of the ring.
        rows: [B, K, slots, 2 * Dh], allocated as needed up to capacity; None while empty.
    """

    def __init__(self, window: int, slack: int) -> None:
        """Set up an empty ring.

        Args:
            window: `config.sliding_window`.
            slack: Slots beyond the window; slack + 1 positions can always be undone, and a chunk
                of so many is written in place.
        """
        self.window = window
        self.capacity = window + slack
        self.offset = 0
        self.rows: mx.array | None = None
        self._written = 0  # positions ever written: those before _written - capacity are lost

    def key_positions(self, length: int) -> np.ndarray:
        """Return the positions of the rows that `update_and_fetch` will return, [S] int32.

        -1 marks a slot without a row that may be seen.

        Args:
            length: New positions, L.
        """
        start, end = self.offset, self.offset + length
        if end > self.capacity and self._fits(length):
            # The slot of an undone position claims the position one capacity earlier.  It does not
            # hold it, but that one is outside the window of every query still to come.
            slots = np.arange(self.capacity, dtype=np.int32)
            return end - 1 - (end - 1 - slots) % self.capacity
        first = 0 if end <= self.capacity else start - self._past()
        return np.arange(first, end, dtype=np.int32)

    def update_and_fetch(self, rows: mx.array) -> RingRows:
        """Add the rows of new positions; return every row that these positions may see.

        Args:
            rows: [B, K, L, 2 * Dh], K and V of positions offset..offset + L.

        Returns:
            Rows whose `fetch()` is [B, K, S, 2 * Dh], at `key_positions(L)`.
        """
        B, _, L, _ = rows.shape
        start, end = self.offset, self.offset + L
        fits, past = self._fits(L), self._past()
        before: mx.array | None = None
        if not fits and self.rows is not None:
            before = self.rows[...]  # writing changes what self.rows is, not what it was
        kept = min(L, self.capacity)
        self._write(rows[:, :, L - kept :], end - kept)
        self.offset = end
        return RingRows(
            ring=self.rows if fits else before,
            chunk=None if fits else rows,
            starts=(start,) * B,
            capacity=self.capacity,
            used=min(end, self.capacity),
            past=past,
        )

    def is_trimmable(self, count: int) -> bool:
        """Whether the last `count` positions can be undone with every visible key still there."""
        first_visible = max(0, self.offset - count - self.window + 1)
        return count <= self.offset and first_visible >= self._written - self.capacity

    def trim(self, count: int) -> None:
        """Undo the last `count` positions by moving the counter.

        Raises:
            ValueError: More positions than the slack keeps.
        """
        if not self.is_trimmable(count):
            raise ValueError(
                f"cannot undo {count} of {self.offset} positions; the ring keeps "
                f"{self.capacity - self.window + 1}"
            )
        self.offset -= count

    def rows_in_order(self) -> mx.array:
        """Return the rows kept of the last positions, in their order, [B, K, kept, 2 * Dh].

        It is what `restore` takes, whatever the capacity was.
        """
        first = max(0, self._written - self.capacity)
        assert self.rows is not None
        assert first < self.offset
        slots = np.arange(first, self.offset, dtype=np.int32) % self.capacity
        return mx.take(self.rows, mx.array(slots), axis=2)

    def restore(self, rows: mx.array, offset: int) -> None:
        """Go on from rows that another ring kept.

        Args:
            rows: [B, K, kept, 2 * Dh] of positions offset - kept..offset.
            offset: Positions seen so far.

        Raises:
            ValueError: The next position would see more than was kept.
        """
        kept = rows.shape[2]
        if not min(offset, self.window - 1) <= kept <= offset or not kept:
            raise ValueError(f"{kept} rows of {offset} positions; the window is {self.window}")
        rows = rows[:, :, max(0, kept - self.capacity) :]
        first = offset - rows.shape[2]
        # The slot of a position that was not kept gets another's row: it is never seen.
        slots = min(self.capacity, -(-offset // GROWTH) * GROWTH)
        places = np.zeros(slots, np.int32)
        positions = np.arange(first, offset, dtype=np.int32)
        places[positions % self.capacity] = positions - first
        self.rows = mx.take(rows, mx.array(places), axis=2)
        self.offset = offset
        self._written = first + self.capacity if first else offset

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 0 if self.rows is None else self.rows.nbytes

    @property
    def state(self) -> list[mx.array]:
        """Arrays to evaluate, or to save."""
        return [] if self.rows is None else [self.rows]

    def _fits(self, length: int) -> bool:
        """Whether new rows can be written first: the first of them still sees its whole window."""
        return self.offset + length <= self.capacity or length <= self.capacity - self.window + 1

    def _past(self) -> int:
        """Return how many earlier positions the next one sees."""
        return min(self.offset, self.window - 1)

    def _write(self, rows: mx.array, start: int) -> None:
        B, K, L, D = rows.shape
        slots = min(self.capacity, -(-(start + L) // GROWTH) * GROWTH)
        have = 0 if self.rows is None else self.rows.shape[2]
        if have < slots:
            fresh = mx.zeros((B, K, slots - have, D), rows.dtype)
            self.rows = fresh if self.rows is None else mx.concatenate([self.rows, fresh], axis=2)
        assert self.rows is not None
        self._written = max(self._written, start + L)
        first = start % self.capacity
        head = min(L, self.capacity - first)
        self.rows[:, :, first : first + head] = rows[:, :, :head]
        if head < L:
            self.rows[:, :, : L - head] = rows[:, :, head:]
