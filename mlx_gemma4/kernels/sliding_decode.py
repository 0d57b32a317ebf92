"""sliding_decode: few query rows over a ring, keys split among threadgroups."""

from collections.abc import Sequence

import mlx.core as mx

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.merge_splits import merge_splits, num_splits
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params
from mlx_gemma4.kernels.ring_rows import HEAD_DIMS, RingRows, ring_attention
from mlx_gemma4.kernels.sliding_cases import sliding_case

_THREADS = 128
_MIN_KEYS = 64  # of a run
_MAX_ROWS = 4  # query rows of one key head, which stay in registers

_kernel = MetalKernel(
    "sliding_decode", inputs=("q", "ring", "intervals", "params"), outputs=("out", "state")
)


def fits(q: mx.array, rows: RingRows) -> bool:
    """Whether there are few enough rows, all keys of which lie in the ring."""
    if rows.chunk is not None or rows.ring is None or rows.ring.dtype != q.dtype:
        return False
    return q.shape[-1] in HEAD_DIMS and q.shape[2] * q.shape[1] // rows.ring.shape[1] <= _MAX_ROWS


def launch(q: mx.array, rows: RingRows, mask: IntervalMask) -> tuple[mx.array]:
    """Return attention [B, H, L, Dh] of queries of which each key head has at most 4 rows.

    Args:
        q: [B, H, L, Dh], Dh 128 or 256.
        rows: Without a chunk, in the dtype of q.
        mask: Of the L queries.
    """
    assert rows.ring is not None
    B, H, L, Dh = q.shape
    K, slots = rows.ring.shape[1:3]
    num_rows = L * H // K
    splits = num_splits(mask, B * K, _MIN_KEYS)
    is_direct = splits == 1
    partial = (B, K, splits, num_rows)
    out, state = _kernel(
        inputs=[
            q,
            rows.ring,
            mask.packed(),
            pack_params(H, K, L, slots, rows.capacity, splits),
        ],
        template=[
            ("T", q.dtype),
            ("OUT", q.dtype if is_direct else mx.float32),
            ("DH", Dh),
            ("ROWS", num_rows),
            ("DIRECT", is_direct),
        ],
        grid=(_THREADS, splits, B * K),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[q.shape if is_direct else (*partial, Dh), (*partial, 2)],
        output_dtypes=[q.dtype if is_direct else mx.float32, mx.float32],
    )
    return (out if is_direct else merge_splits(out, state, q),)


def _check_cases(dtype: mx.Dtype) -> Sequence[Case]:
    return [
        sliding_case("wrapped ring", dtype, [90], 1, 48, 4, H=4, K=2),
        sliding_case("two rows of a batch", dtype, [3, 161], 2, 48, 4, H=2, K=1),
        sliding_case("split over keys", dtype, [500], 1, 256, 4, H=2, K=1),
    ]


def _tune_cases(sizes: Sizes) -> Sequence[Case]:
    H, K = sizes.num_attention_heads, sizes.num_key_value_heads
    if sizes.head_dim not in HEAD_DIMS or H // K > _MAX_ROWS:
        return []
    window = sizes.sliding_window
    return [
        sliding_case(
            "decode", sizes.dtype, [4 * window], 1, window, 16, H=H, K=K, Dh=sizes.head_dim
        )
    ]


KERNEL = registry.register(
    Kernel(
        "sliding_decode",
        ("sliding_decode", "merge_splits"),
        launch,
        ring_attention,
        _check_cases,
        _tune_cases,
    )
)
