"""SharedCache: one row for key and value of a global layer.

In global layers key and value come from one normalised vector n: V = n, K = RoPE(n * k_norm).  Only
the rotated dimensions differ once k_norm's weight on the others is folded into the query, so a row
[K_rotated | n_plain | n_rotated] holds both: 640 values instead of 1,024 at the 12B's sizes.
`RowFormat` has smaller ones.
"""

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels.shared_rows import PLAIN_ROWS, RowFormat, SharedRows

# Slots are allocated in steps.  A buffer that is full grows by an eighth, so that all its copies
# together are some nine times its rows, and not hundreds of times as with steps of one size.
GROWTH = 256
_SHARE = 8


class SharedCache:
    """Rows of every position seen so far, in order, for one global layer.

    Attributes:
        offset: Positions seen so far, the position of the next token.
        row_format: How rows are kept; whoever makes them makes them so.
        context_tokens: Positions that are planned: room for them is made at once.
        limit_tokens: Positions that memory allows: no more are allocated while they suffice; None
            if it is not known.
        state: Arrays to evaluate or to save, [B, K, allocated, ...] each: rows, and the scales of
            int8 ones; empty before the first position.  What was saved is put back by setting this
            and `offset`.
    """

    def __init__(
        self,
        row_format: RowFormat = PLAIN_ROWS,
        context_tokens: int = 0,
        *,
        are_bits_open: bool = False,
    ) -> None:
        """Set up an empty cache.

        Args:
            row_format: Of 16 bits, or as somebody wants it.
            context_tokens: See the class.
            are_bits_open: Nobody has said how many bits rows have: `choose_bits` may, before the
                first position.
        """
        self.offset = 0
        self.row_format = row_format
        self.context_tokens = context_tokens
        self.limit_tokens: int | None = None
        self.state: list[mx.array] = []
        self._are_bits_open = are_bits_open

    @property
    def are_bits_open(self) -> bool:
        """Whether `choose_bits` may still change what `row_format` says."""
        return self._are_bits_open and not self.state

    def choose_bits(self, bits: int) -> None:
        """Settle for good how many bits rows have.

        Raises:
            ValueError: It is settled already, and otherwise.
        """
        if bits != self.row_format.bits:
            if not self.are_bits_open:
                raise ValueError(f"rows have {self.row_format.bits} bits already, not {bits}")
            self.row_format = replace(self.row_format, bits=bits)
        self._are_bits_open = False

    def key_positions(self, length: int) -> np.ndarray:
        """Return the positions of the rows in use after `update_and_fetch`, [S] int32.

        Args:
            length: New positions, L.
        """
        return np.arange(self.offset + length, dtype=np.int32)

    def update_and_fetch(self, parts: Sequence[mx.array]) -> SharedRows:
        """Add the rows of new positions; return all.

        Args:
            parts: In `row_format`, of positions offset..offset + L: rows, and the scales of int8
                ones, [B, K, L, ...] each.
        """
        start, end = self.offset, self.offset + parts[0].shape[2]
        self._allocate(parts, end)
        for array, part in zip(self.state, parts, strict=True):
            array[:, :, start:end] = part
        self.offset = end
        buffer, *scales = self.state
        return SharedRows(buffer, scales[0] if scales else None, end)

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
    def allocated(self) -> int:
        """Positions for which there is room."""
        return self.state[0].shape[2] if self.state else 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self.state)

    def _allocate(self, parts: Sequence[mx.array], end: int) -> None:
        """Have room for `end` positions of arrays like `parts`."""
        have = self.allocated
        if have >= end:
            return
        wanted = max(have + have // _SHARE, end)
        if end <= self.context_tokens:
            wanted = self.context_tokens
        elif self.limit_tokens is not None and end <= self.limit_tokens:
            wanted = min(wanted, self.limit_tokens)
        more = -(-wanted // GROWTH) * GROWTH - have
        fresh = [mx.zeros((*part.shape[:2], more, part.shape[3]), part.dtype) for part in parts]
        self.state = (
            [mx.concatenate([old, new], axis=2) for old, new in zip(self.state, fresh, strict=True)]
            if self.state
            else fresh
        )
