"""Attention over all keys from attention over runs of them, and how many runs there are."""

import mlx.core as mx

from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params

# Enough threadgroups for the largest GPU to have some on each core.
_THREADGROUPS = 128

_kernel = MetalKernel("merge_splits", inputs=("partial", "state", "params"), outputs=("out",))


def num_splits(mask: IntervalMask, threadgroups: int, min_keys: int) -> int:
    """Return into how many runs the visible keys are cut.

    Args:
        mask: Whose intervals tell how many keys there are.
        threadgroups: That the launch has without cutting keys.
        min_keys: Of a run, for its start and the merge to cost little beside it.
    """
    keys = int((mask.hi.max(axis=1) - mask.lo.min(axis=1)).max()) + 1
    return max(1, min(_THREADGROUPS // threadgroups, -(-keys // min_keys)))


def merge_splits(partial: mx.array, state: mx.array, q: mx.array) -> mx.array:
    """Return attention [B, H, L, Dh] of runs of keys.

    Args:
        partial: [B, K, splits, L * H / K, Dh] float32, sums of weighted values.
        state: [B, K, splits, L * H / K, 2] float32, largest score in base 2 and sum of weights.
        q: [B, H, L, Dh]; its shape and dtype are the result's.
    """
    B, H, L, Dh = q.shape
    K, splits, rows = partial.shape[1:4]
    return _kernel(
        inputs=[partial, state, pack_params(H, K, L, splits)],
        template=[("T", q.dtype), ("DH", Dh)],
        grid=(Dh // 4, rows, B * K),
        threadgroup=(Dh // 4, 1, 1),
        output_shapes=[q.shape],
        output_dtypes=[q.dtype],
    )[0]
