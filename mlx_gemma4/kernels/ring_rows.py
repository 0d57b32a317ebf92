"""RingRows: packed rows of a sliding layer, in a ring and in a chunk that is not in it yet.

A position lives in slot position % capacity.  Softmax does not care about order, so kernels read
the ring where it lies, and rows of a chunk too long for it where they are: nothing is gathered or
joined.  Only the definition in plain MLX puts rows in order first.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels.interval_attention import IntervalMask, packed_attention

HEAD_DIMS = (128, 256)  # that the kernels over a ring know


@dataclass(frozen=True)
class RingRows:
    """Packed [key | value] rows of all positions that new ones may see.

    With capacity 4, window 3, and a chunk of positions 5..7 the ring still is what it was:

        slot     0  1  2  3      chunk  0  1  2
        position 4  1  2  3             5  6  7

    Attributes:
        ring: [B, K, slots, 2 * Dh]; None while nothing is past.
        chunk: [B, K, L, 2 * Dh], rows of the new positions; None if they are in the ring already.
        starts: First new position of each row of the batch.
        capacity: Slots after which the ring begins anew.
        used: Slots, from the first, that `fetch` returns if there is no chunk.
        past: Positions before the new ones that `fetch` puts in front of a chunk.
    """

    ring: mx.array | None
    chunk: mx.array | None
    starts: tuple[int, ...]
    capacity: int
    used: int
    past: int

    def fetch(self) -> mx.array:
        """Return the rows as one array [B, K, S, 2 * Dh].

        They stand in slots' order if there is no chunk, and else in that of positions; where a row
        of the batch has fewer than `past` positions, its first places hold anything.
        """
        if self.chunk is None:
            assert self.ring is not None
            return self.ring[:, :, : self.used]
        if self.ring is None or not self.past:
            return self.chunk
        positions = np.array(self.starts)[:, None] + np.arange(-self.past, 0)
        slots = mx.array(positions % self.capacity % self.ring.shape[2])
        if len(set(self.starts)) == 1:
            past = self.ring[:, :, slots[0]]  # whole rows at once
        else:
            past = mx.take_along_axis(self.ring, slots[:, None, :, None], axis=2)
        return mx.concatenate([past, self.chunk], axis=2)


def ring_attention(q: mx.array, rows: RingRows, mask: IntervalMask) -> tuple[mx.array]:
    """Return attention [B, H, L, Dh] by MLX's own operations: what kernels are defined by.

    Args:
        q: [B, H, L, Dh] floating point.
        rows: In the dtype of q, H a multiple of K.
        mask: Of L queries; its key positions are those of `rows.fetch()`.
    """
    return (packed_attention(q, rows.fetch(), q.shape[-1], mask),)
