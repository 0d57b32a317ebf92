"""What a global layer keeps of its positions, and keys and values made of it.

Key and value come from one normalised vector n = [n_plain | n_rotated]: V = n, K = RoPE(n *
k_norm), and k_norm's weight on the plain dimensions is part of the query.  A row is

    shared   [rotated key | n_plain | n_rotated]   key row[:Dh], value row[rotated:]
    value    [n_plain | n_rotated]                 the rotated key is made anew wherever it is read

either in the dtype of activations, or in int8 with a scale for the rotated key and one for n.  The
two differ by k_norm's weights: with one scale for both, n would lose by what the key is larger.
"""

from dataclasses import dataclass

import mlx.core as mx

INT8_MAX = 127.0


@dataclass(frozen=True)
class RowFormat:
    """How rows are kept.

    Attributes:
        bits: 16 is the dtype of activations, whatever that is; 8 is int8.
        has_keys: Rows are shared ones, not values alone.
    """

    bits: int = 16
    has_keys: bool = True

    @property
    def num_scales(self) -> int:
        """Scales of a row: one of each of its parts, if they are int8."""
        return 0 if self.bits == 16 else 1 + self.has_keys

    def pack(self, rows: mx.array, rotated_dims: int) -> list[mx.array]:
        """Return what is kept of shared rows: rows, and with 8 bits their scales.

        Args:
            rows: [B, K, L, rotated_dims + Dh].
            rotated_dims: Dimensions of a key that rotate.

        Returns:
            [B, K, L, row_dims], and perhaps [B, K, L, num_scales] in the dtype of `rows`.
        """
        value = rows[..., rotated_dims:]
        if self.bits == 16:
            return [rows if self.has_keys else value]
        parts = [rows[..., :rotated_dims], value] if self.has_keys else [value]
        packed = [_quantize(part) for part in parts]
        codes, scales = [part[0] for part in packed], [part[1] for part in packed]
        return [mx.concatenate(codes, axis=-1), mx.concatenate(scales, axis=-1)]


PLAIN_ROWS = RowFormat()  # shared rows as they are computed, of which the others are made


@dataclass(frozen=True)
class SharedRows:
    """Rows of all positions so far; slot p holds position p.

    Attributes:
        rows: [B, K, slots, row_dims] in the dtype of activations, or int8.
        scales: [B, K, slots, 2 or 1] of int8 rows: of the rotated key if it is there, and of n.
        used: Slots in use.
    """

    rows: mx.array
    scales: mx.array | None
    used: int

    def has_keys(self, head_dim: int) -> bool:
        """Whether the rows are shared ones, not values alone."""
        return self.rows.shape[-1] > head_dim

    def keys_and_values(
        self, start: int, stop: int, head_dim: int, k_weight: mx.array, periods: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Return keys and values [B, K, stop - start, Dh] of some positions.

        Args:
            start: First position.
            stop: One past the last.
            head_dim: Dh.
            k_weight: [rotated], k_norm's weight.
            periods: [rotated / 2] float32, positions for one radian.
        """
        rows, rotated = self.rows[:, :, start:stop], k_weight.size
        has_keys = self.has_keys(head_dim)
        if self.scales is None and has_keys:
            return rows[..., :head_dim], rows[..., rotated:]
        turned, value = rows[..., :rotated], rows[..., rotated:] if has_keys else rows
        if self.scales is not None:
            scales = self.scales[:, :, start:stop]
            turned, value = turned * scales[..., :1], value * scales[..., -1:]
        plain = value[..., : head_dim - rotated]
        if not has_keys:
            turned = mx.fast.rope(
                value[..., head_dim - rotated :] * k_weight,
                rotated,
                traditional=False,
                base=None,
                scale=1.0,
                offset=start,
                freqs=periods,
            )
        return mx.concatenate([turned, plain], axis=-1), value


def _quantize(x: mx.array) -> tuple[mx.array, mx.array]:
    """Return int8 codes like x [..., n], and scales [..., 1] in its dtype."""
    scales = mx.abs(x).max(axis=-1, keepdims=True) / INT8_MAX
    scales = mx.where(scales > 0, scales, 1)  # a row of zeros
    # Scales were rounded: the largest value may be beyond the last code.
    codes = mx.clip(mx.round(x.astype(mx.float32) / scales), -INT8_MAX, INT8_MAX)
    return codes.astype(mx.int8), scales
