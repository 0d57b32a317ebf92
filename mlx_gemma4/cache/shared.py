"""SharedCache: one row for key and value of a global layer.

In global layers key and value come from one normalised vector n: V = n, K = RoPE(n * k_norm).  Only
the rotated dimensions differ once k_norm's weight on the others is folded into the query, so a row
[K_rotated | n_plain | n_rotated] holds both: 640 values instead of 1,024 at the 12B's sizes.
"""

import mlx.core as mx
import numpy as np

GROWTH = 256


class SharedCache:
    """Rows of every position seen so far, in order, for one global layer.

    Attributes:
        offset: Positions seen so far, the position of the next token.
        rows: [B, K, allocated, Dh + rotated]; None while empty.
    """

    def __init__(self) -> None:
        """Set up an empty cache."""
        self.offset = 0
        self.rows: mx.array | None = None

    def key_positions(self, length: int) -> np.ndarray:
        """Return the positions of the rows in use after `update_and_fetch`, [S] int32.

        Args:
            length: New positions, L.
        """
        return np.arange(self.offset + length, dtype=np.int32)

    def update_and_fetch(self, rows: mx.array) -> mx.array:
        """Add the rows of new positions; return the whole buffer, of which `offset` rows are used.

        Args:
            rows: [B, K, L, Dh + rotated] of positions offset..offset + L.

        Returns:
            [B, K, allocated, Dh + rotated]; slot p holds position p.
        """
        B, K, L, D = rows.shape
        start, end = self.offset, self.offset + L
        have = 0 if self.rows is None else self.rows.shape[2]
        if have < end:
            fresh = mx.zeros((B, K, -(-(end - have) // GROWTH) * GROWTH, D), rows.dtype)
            self.rows = fresh if self.rows is None else mx.concatenate([self.rows, fresh], axis=2)
        assert self.rows is not None
        self.rows[:, :, start:end] = rows
        self.offset = end
        return self.rows

    def is_trimmable(self, count: int) -> bool:
        """Whether the last `count` positions can be undone."""
        return count <= self.offset

    def trim(self, count: int) -> None:
        """Undo the last `count` positions by moving the counter.

        Raises:
            ValueError: More positions than there are.
        """
        if not self.is_trimmable(count):
            raise ValueError(f"cannot undo {count} of {self.offset} positions")
        self.offset -= count

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 0 if self.rows is None else self.rows.nbytes

    @property
    def state(self) -> list[mx.array]:
        """Arrays to evaluate, or to save."""
        return [] if self.rows is None else [self.rows]
