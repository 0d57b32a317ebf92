"""Attention over rows of a global layer in float64, one query at a time, and the kinds of rows."""

import mlx.core as mx
import numpy as np
from kernel_truth import exact, rotate

from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.shared_rows import SharedRows

# bits and whether keys are kept, by the kernel for such rows
FORMATS = {
    "shared_decode": (16, True),
    "shared_decode_int8": (8, True),
    "value_decode": (16, False),
    "value_decode_int8": (8, False),
}


def shared_truth(
    q: mx.array, rows: SharedRows, mask: IntervalMask, k_weight: mx.array, periods: mx.array
) -> np.ndarray:
    """Return attention [B, H, L, Dh]; what a row lost when it was made is no error."""
    B, H, L, Dh = q.shape
    first = int(mask.lo.min())
    keys, values = true_keys_and_values(rows, first, Dh, k_weight, periods)
    queries = exact(q)
    group = H // keys.shape[1]
    out = np.zeros(q.shape)
    for b, h, i in np.ndindex(B, H, L):
        seen = slice(mask.lo[b, i] - first, mask.hi[b, i] - first + 1)
        scores = keys[b, h // group, seen] @ queries[b, h, i]
        weights = np.exp(scores - scores.max())
        out[b, h, i] = weights / weights.sum() @ values[b, h // group, seen]
    return out


def true_keys_and_values(
    rows: SharedRows, first: int, head_dim: int, k_weight: mx.array, periods: mx.array
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and values [B, K, used - first, Dh] of rows as they are."""
    packed, rotated = exact(rows.rows[:, :, first : rows.used]), k_weight.size
    has_keys = packed.shape[-1] > head_dim
    turned, value = packed[..., :rotated], packed[..., rotated:] if has_keys else packed
    if rows.scales is not None:
        scales = exact(rows.scales[:, :, first : rows.used])
        turned, value = turned * scales[..., :1], value * scales[..., -1:]
    if not has_keys:
        weighted = value[..., head_dim - rotated :] * exact(k_weight)
        positions = np.arange(first, rows.used)[None].repeat(len(packed), 0)
        turned = rotate(weighted, positions, np.array(periods))
    return np.concatenate([turned, value[..., : head_dim - rotated]], axis=-1), value
