"""Calls of sliding attention: rows where a cache would have them, and NaN everywhere else.

A slot that no query may see holds NaN in what the kernels get, and zero in what the definition in
plain MLX gets, which multiplies hidden values by zero.
"""

from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np
from kernel_truth import assert_as_close, exact

from mlx_gemma4.inputs import Modality, SoftTokenSpan
from mlx_gemma4.kernels import sliding_decode, sliding_tiles
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.ring_rows import RingRows, ring_attention
from mlx_gemma4.model.intervals import interval_sliding

# What is made of drawn queries q and keys k, so that scores have standard deviation 5; weights
# that differ by orders of magnitude; one key far above all others; no difference at all.
SCORES = ("drawn", "far apart", "one above all", "equal")
LAUNCHES = {"sliding_decode": sliding_decode.launch, "sliding_tiles": sliding_tiles.launch}


@dataclass(frozen=True)
class RingCall:
    """A call, by what decides it.

    Attributes:
        dtype: Of the arrays.
        starts: First new position of each row of the batch.
        length: New positions, L.
        window: Positions that a query sees, itself included.
        slack: Slots of the ring beyond the window.
        H: Query heads.
        K: Key heads.
        Dh: Dimensions of a head.
        blocks: Images among the new positions, first and one past the last of each.
        scores: One of `SCORES`.
    """

    dtype: mx.Dtype = mx.float32
    starts: tuple[int, ...] = (0,)
    length: int = 1
    window: int = 16
    slack: int = 4
    H: int = 2
    K: int = 1
    Dh: int = 128
    blocks: tuple[tuple[int, int], ...] = ()
    scores: str = "drawn"

    def __str__(self) -> str:
        """Return a short name for a list of tests."""
        parts = [
            dtype_name(self.dtype),
            f"{self.length} at {','.join(map(str, self.starts))}",
            f"window {self.window}+{self.slack}",
            f"{self.H} on {self.K} x {self.Dh}",
        ]
        parts += [f"block {start}:{stop}" for start, stop in self.blocks]
        return ", ".join(parts + [self.scores] * (self.scores != "drawn"))

    @property
    def capacity(self) -> int:
        """Slots after which the ring begins anew."""
        return self.window + self.slack

    @property
    def is_in_ring(self) -> bool:
        """Whether a cache writes the new rows before they are read; otherwise they are a chunk."""
        fits_whole = max(self.starts) + self.length <= self.capacity
        return fits_whole or self.length <= self.slack + 1

    @cached_property
    def drawn(self) -> tuple[mx.array, mx.array]:
        """Queries [B, H, L, Dh], and rows [B, K, positions, 2 * Dh] of all positions."""
        rng = np.random.default_rng([*self.starts, self.length, self.window, self.H, self.K])
        B, positions = len(self.starts), max(self.starts) + self.length
        q = 5 / np.sqrt(self.Dh) * rng.normal(size=(B, self.H, self.length, self.Dh))
        rows = rng.normal(size=(B, self.K, positions, 2 * self.Dh))
        if self.scores == "far apart":
            q *= 40
        elif self.scores == "equal":
            rows[..., : self.Dh] = rows[:, :, :1, : self.Dh]
        elif self.scores == "one above all":
            rows[:, :, ::5, : self.Dh] = 30 * q[:, :: self.H // self.K, :1]
        return mx.array(q).astype(self.dtype), mx.array(rows).astype(self.dtype)

    @cached_property
    def mask(self) -> IntervalMask:
        """Intervals of the new positions, and the positions of `RingRows.fetch()`."""
        spans = [SoftTokenSpan(a, b - a, Modality.IMAGE) for a, b in self.blocks]
        parts = [interval_sliding(s, self.length, self.window, spans) for s in self.starts]
        lo, hi = (np.concatenate([getattr(p, name) for p in parts]) for name in ("lo", "hi"))
        ends = np.array(self.starts)[:, None] + self.length
        if self.is_in_ring:
            slots = np.arange(self._num_slots)
            keys = ends - 1 - (ends - 1 - slots) % self.capacity
        else:
            keys = ends + np.arange(-self.length - self._past, 0)
        return IntervalMask(lo, hi, np.maximum(keys, -1).astype(np.int32))

    def rows(self, hidden: float) -> RingRows:
        """Return the rows as a cache has them.

        Args:
            hidden: What slots hold that no query sees.
        """
        _, rows = self.drawn
        known = np.array(rows.astype(mx.float32))
        B, K, _, row_dims = known.shape
        ring = np.full((B, K, self._num_slots, row_dims), hidden, np.float32)
        for b, start in enumerate(self.starts):
            stop = start + self.length if self.is_in_ring else start
            visible = np.arange(self.mask.lo[b].min(), stop)
            ring[b, :, visible % self.capacity] = known[b, :, visible]
        has_ring = self.is_in_ring or self._past > 0
        chunk = [known[b, :, start : start + self.length] for b, start in enumerate(self.starts)]
        return RingRows(
            ring=mx.array(ring).astype(self.dtype) if has_ring else None,
            chunk=None if self.is_in_ring else mx.array(np.stack(chunk)).astype(self.dtype),
            starts=self.starts,
            capacity=self.capacity,
            used=self._num_slots,
            past=self._past,
        )

    @property
    def _past(self) -> int:
        return min(max(self.starts), self.window - 1)

    @property
    def _num_slots(self) -> int:
        written = max(self.starts) + (self.length if self.is_in_ring else 0)
        return max(1, min(self.capacity, written))

    @cached_property
    def truth(self) -> np.ndarray:
        """Attention [B, H, L, Dh] in NumPy, float64, on the exact values of the arrays."""
        q, rows = map(exact, self.drawn)
        B, K, _, row_dims = rows.shape
        q = q.reshape(B, K, -1, self.length, self.Dh)
        out = np.empty_like(q)
        for b, lo, hi, i in self._intervals():
            seen = rows[b, :, lo : hi + 1]
            scores = q[b, :, :, i] @ seen[..., : self.Dh].swapaxes(1, 2)  # [K, group, keys]
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            out[b, :, :, i] = weights @ seen[..., row_dims // 2 :]
        return out.reshape(B, self.H, self.length, self.Dh)

    def _intervals(self) -> list[tuple[int, int, int, int]]:
        lo, hi = self.mask.lo, self.mask.hi
        return [(b, int(lo[b, i]), int(hi[b, i]), i) for b, i in np.ndindex(*lo.shape)]

    def plain(self) -> mx.array:
        """Return what plain MLX makes of it."""
        return ring_attention(self.drawn[0], self.rows(0.0), self.mask)[0]

    def launch(self, name: str) -> mx.array:
        """Return what a kernel makes of it, with NaN in all slots that no query sees."""
        return LAUNCHES[name](self.drawn[0], self.rows(np.nan), self.mask)[0]

    def check(self, name: str) -> None:
        """Fail if a kernel is further from the truth than it may be."""
        assert_as_close([self.launch(name)], [self.plain()], [self.truth])
