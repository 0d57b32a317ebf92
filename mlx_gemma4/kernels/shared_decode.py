"""shared_decode: few query rows over rows of a global layer, keys split among threadgroups.

One source serves every kind of rows.  Each kind has a verdict of its own, since what it must beat
differs: the definition unpacks all but shared rows of 16 bits, a block of keys at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.interval_attention import (
    IntervalMask,
    interval_attention,
    packed_attention,
    reads_in_place,
)
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.merge_splits import merge_splits, num_splits
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params
from mlx_gemma4.kernels.online_attention import num_block_keys, online_attention
from mlx_gemma4.kernels.shared_rows import RowFormat, SharedRows

_THREADS, _TILE_ROWS = 256, 16
_MIN_KEYS = 128  # of a run
_LANE_RUN = 128  # dimensions that eight simdgroups read in runs of four

_kernel = MetalKernel(
    "shared_decode",
    inputs=("q", "rows", "scales", "k_weight", "periods", "intervals", "params"),
    outputs=("out", "state"),
)


def kernel_name(rows: SharedRows, head_dim: int) -> str:
    """Return under which name the kernel is registered for such rows."""
    kind = "shared_decode" if rows.has_keys(head_dim) else "value_decode"
    return kind if rows.scales is None else f"{kind}_int8"


def fits(q: mx.array, rows: SharedRows, k_weight: mx.array) -> bool:
    """Whether the kernel's lanes divide the dimensions, and all arrays have one dtype."""
    Dh, rotated = q.shape[-1], k_weight.size
    dtype = rows.rows.dtype if rows.scales is None else rows.scales.dtype
    return (
        rotated > 0
        and rotated % _LANE_RUN == 0
        and Dh > rotated
        and (Dh - rotated) % _LANE_RUN == 0
        and dtype == q.dtype
    )


def define(
    q: mx.array,
    rows: SharedRows,
    mask: IntervalMask,
    k_weight: mx.array,
    periods: mx.array,
    block_keys: int | None = None,
) -> tuple[mx.array]:
    """Return attention [B, H, L, Dh] by MLX's own operations: the definition.

    Args:
        q: [B, H, L, Dh].
        rows: Of one key head for H / K query heads.
        mask: Of L queries and the keys in use.
        k_weight: [rotated].
        periods: [rotated / 2] float32.
        block_keys: Keys that are unpacked at a time; None is as many as bounded memory allows, or
            all where nothing need be unpacked.
    """
    Dh, key_heads = q.shape[-1], rows.rows.shape[1]
    size = num_block_keys(q, key_heads) if block_keys is None else block_keys

    def fetch(start: int, stop: int, after: list[mx.array]) -> tuple[mx.array, mx.array]:
        waiting = replace(rows, rows=mx.depends([rows.rows], after)[0])
        return waiting.keys_and_values(start, stop, Dh, k_weight, periods)

    is_packed = rows.scales is None and rows.has_keys(Dh)
    if is_packed and block_keys is None and reads_in_place(q):
        return (packed_attention(q, rows.rows[:, :, : rows.used], k_weight.size, mask),)
    if rows.used <= size:
        keys, values = rows.keys_and_values(0, rows.used, Dh, k_weight, periods)
        return (interval_attention(q, keys, values, mask),)
    return (online_attention(q, fetch, mask, key_heads, size),)


def launch(
    q: mx.array, rows: SharedRows, mask: IntervalMask, k_weight: mx.array, periods: mx.array
) -> tuple[mx.array]:
    """Return the same by the Metal kernel, which reads no slot outside the mask's intervals."""
    B, H, L, Dh = q.shape
    K, slots = rows.rows.shape[1:3]
    num_rows = L * H // K
    tiles = -(-num_rows // _TILE_ROWS)
    splits = num_splits(mask, B * K * tiles, _MIN_KEYS)
    is_direct = splits == 1
    partial_shape = (B, K, splits, num_rows)
    out, state = _kernel(
        inputs=[
            q,
            rows.rows,
            q if rows.scales is None else rows.scales,
            k_weight,
            periods,
            mask.packed(),
            pack_params(H, K, L, slots, splits),
        ],
        template=[
            ("T", q.dtype),
            ("R", rows.rows.dtype),
            ("OUT", q.dtype if is_direct else mx.float32),
            ("DH", Dh),
            ("ROTATED", k_weight.size),
            ("HAS_KEYS", rows.has_keys(Dh)),
            ("HAS_SCALES", rows.scales is not None),
            ("DIRECT", is_direct),
        ],
        grid=(_THREADS * tiles, K * splits, B),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[q.shape if is_direct else (*partial_shape, Dh), (*partial_shape, 2)],
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
    bits: int = 16,
    has_keys: bool = True,
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
        bits: Of the rows, see `RowFormat`.
        has_keys: Likewise.
    """
    B, used = len(starts), max(starts) + length
    keys = mx.random.split(mx.random.key(1000 * length + sum(starts)), 3)
    q = (0.2 * mx.random.normal((B, H, length, Dh), key=keys[0])).astype(dtype)
    slots = -(-used // 8) * 8
    drawn = mx.random.normal((B, K, slots, rotated + Dh), key=keys[1]).astype(dtype)
    buffer, *scales = RowFormat(bits, has_keys).pack(drawn, rotated)
    k_weight = mx.random.uniform(0.5, 2.0, (rotated,), key=keys[2]).astype(dtype)
    periods = 10_000.0 ** (mx.arange(0, rotated, 2, dtype=mx.float32) / Dh)
    hi = np.array(starts, np.int32)[:, None] + np.arange(length, dtype=np.int32)
    key_positions = np.broadcast_to(np.arange(used, dtype=np.int32), (B, used))
    mask = IntervalMask(np.zeros_like(hi), hi, key_positions)
    rows = SharedRows(buffer, scales[0] if scales else None, used)
    return Case(label, (q, rows, mask, k_weight, periods))


def _check_cases(bits: int, has_keys: bool, dtype: mx.Dtype) -> Sequence[Case]:
    case = partial(shared_case, dtype=dtype, bits=bits, has_keys=has_keys)
    return [
        case("one run", starts=[37], length=1, H=16, K=1),
        case("split over keys, two rows of a batch", starts=[300, 5], length=3, H=4, K=2),
    ]


def _tune_cases(bits: int, has_keys: bool, sizes: Sizes) -> Sequence[Case]:
    cases = [
        shared_case(
            f"{label} at {context}",
            sizes.dtype,
            [context],
            length,
            H=sizes.num_attention_heads,
            K=sizes.num_global_key_value_heads,
            Dh=sizes.global_head_dim,
            rotated=sizes.global_rotated_dims,
            bits=bits,
            has_keys=has_keys,
        )
        for context in (1024, 16_384)
        for label, length in (("decode", 1), ("verify 8", 8))
    ]
    q, rows, _, k_weight, _ = cases[0].arguments
    return cases if fits(q, rows, k_weight) else []


KERNELS = [
    registry.register(
        Kernel(
            name,
            ("shared_decode", "merge_splits"),
            launch,
            define,
            partial(_check_cases, bits, has_keys),
            partial(_tune_cases, bits, has_keys),
        )
    )
    for name, bits, has_keys in (
        ("shared_decode", 16, True),
        ("shared_decode_int8", 8, True),
        ("value_decode", 16, False),
        ("value_decode_int8", 8, False),
    )
]
