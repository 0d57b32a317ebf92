"""shared_decode: few query rows over shared rows, keys split among threadgroups."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.interval_attention import IntervalMask, interval_attention
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.merge_splits import merge_splits, num_splits
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params

_THREADS, _TILE_ROWS = 256, 16
_MIN_KEYS = 128  # of a run
_LANE_RUN = 128  # dimensions that eight simdgroups read in runs of four

_kernel = MetalKernel(
    "shared_decode", inputs=("q", "rows", "intervals", "params"), outputs=("out", "state")
)


def fits(q: mx.array, rows: mx.array) -> bool:
    """Whether the kernel's lanes divide the dimensions, and all arrays have one dtype."""
    Dh, rotated = q.shape[-1], rows.shape[-1] - q.shape[-1]
    return (
        rotated > 0
        and rotated % _LANE_RUN == 0
        and Dh > rotated
        and (Dh - rotated) % _LANE_RUN == 0
        and rows.dtype == q.dtype
    )


def define(q: mx.array, rows: mx.array, mask: IntervalMask, length: int) -> tuple[mx.array]:
    """Return attention [B, H, L, Dh] by MLX's own operations: the definition.

    Args:
        q: [B, H, L, Dh].
        rows: [B, K, slots, Dh + rotated].
        mask: Of L queries and `length` keys.
        length: Slots in use.
    """
    Dh = q.shape[-1]
    used = rows[:, :, :length]
    return (interval_attention(q, used[..., :Dh], used[..., rows.shape[-1] - Dh :], mask),)


def launch(q: mx.array, rows: mx.array, mask: IntervalMask, length: int) -> tuple[mx.array]:
    """Return the same by the Metal kernel, which reads no slot outside the mask's intervals."""
    del length
    B, H, L, Dh = q.shape
    K, slots, row_dims = rows.shape[1:]
    num_rows = L * H // K
    tiles = -(-num_rows // _TILE_ROWS)
    splits = num_splits(mask, B * K * tiles, _MIN_KEYS)
    is_direct = splits == 1
    partial = (B, K, splits, num_rows)
    out, state = _kernel(
        inputs=[q, rows, mask.packed(), pack_params(H, K, L, slots, splits)],
        template=[
            ("T", q.dtype),
            ("OUT", q.dtype if is_direct else mx.float32),
            ("DH", Dh),
            ("ROTATED", row_dims - Dh),
            ("DIRECT", is_direct),
        ],
        grid=(_THREADS * tiles, K * splits, B),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[q.shape if is_direct else (*partial, Dh), (*partial, 2)],
        output_dtypes=[q.dtype if is_direct else mx.float32, mx.float32],
    )
    return (out if is_direct else merge_splits(out, state, q),)


def shared_case(
    label: str,
    dtype: mx.Dtype,
    starts: Sequence[int],
    length: int,
    *,
    H: int,
    K: int,
    Dh: int = 512,
    rotated: int = 128,
) -> Case:
    """Return a call with drawn queries and rows, causal.

    Args:
        label: Of the case.
        dtype: Of the arrays.
        starts: First new position of each row of the batch.
        length: New positions, L.
        H: Query heads.
        K: Key heads.
        Dh: Dimensions of a head.
        rotated: Of which so many rotate.
    """
    B, used = len(starts), max(starts) + length
    keys = mx.random.split(mx.random.key(1000 * length + sum(starts)), 2)
    q = (0.2 * mx.random.normal((B, H, length, Dh), key=keys[0])).astype(dtype)
    slots = -(-used // 8) * 8
    rows = mx.random.normal((B, K, slots, Dh + rotated), key=keys[1]).astype(dtype)
    hi = np.array(starts, np.int32)[:, None] + np.arange(length, dtype=np.int32)
    key_positions = np.broadcast_to(np.arange(used, dtype=np.int32), (B, used))
    mask = IntervalMask(np.zeros_like(hi), hi, key_positions)
    return Case(label, (q, rows, mask, used))


def _check_cases(dtype: mx.Dtype) -> Sequence[Case]:
    return [
        shared_case("one run", dtype, [37], 1, H=16, K=1),
        shared_case("split over keys, two rows of a batch", dtype, [300, 5], 3, H=4, K=2),
    ]


def _tune_cases(sizes: Sizes) -> Sequence[Case]:
    H, K, rotated = (
        sizes.num_attention_heads,
        sizes.num_global_key_value_heads,
        sizes.global_rotated_dims,
    )
    cases = [
        shared_case(
            f"{label} at {context}",
            sizes.dtype,
            [context],
            length,
            H=H,
            K=K,
            Dh=sizes.global_head_dim,
            rotated=rotated,
        )
        for context in (1024, 16_384)
        for label, length in (("decode", 1), ("verify 8", 8))
    ]
    return cases if fits(*cases[0].arguments[:2]) else []


KERNEL = registry.register(
    Kernel(
        "shared_decode",
        ("shared_decode", "merge_splits"),
        launch,
        define,
        _check_cases,
        _tune_cases,
    )
)
