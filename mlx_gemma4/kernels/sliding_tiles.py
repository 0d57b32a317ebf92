"""sliding_tiles: many query rows over a ring and a chunk, by matrix products of tiles.

One source serves two purposes, which are checked, timed, and switched apart: verifying a draft,
where few rows need keys to be split among threadgroups, and reading a prompt, where none is.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.merge_splits import merge_splits, num_splits
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params
from mlx_gemma4.kernels.ring_rows import HEAD_DIMS, RingRows, ring_attention
from mlx_gemma4.kernels.sliding_cases import sliding_case

_kernel = MetalKernel(
    "sliding_tiles",
    inputs=("q", "ring", "chunk", "intervals", "chunk_starts", "params"),
    outputs=("out", "state"),
)

_MIN_KEYS = 64  # of a run
_NEVER = 2**31 - 1  # the position of a chunk that there is not


def fits(q: mx.array, rows: RingRows) -> bool:
    """Whether the kernel knows the size of the heads, and all arrays have one dtype."""
    arrays = [a for a in (rows.ring, rows.chunk) if a is not None]
    return q.shape[-1] in HEAD_DIMS and all(a.dtype == q.dtype for a in arrays)


def launch(q: mx.array, rows: RingRows, mask: IntervalMask) -> tuple[mx.array]:
    """Return attention [B, H, L, Dh].

    Args:
        q: [B, H, L, Dh], Dh 128 or 256.
        rows: In the dtype of q.
        mask: Of the L queries.
    """
    B, H, L, Dh = q.shape
    chunk = rows.ring if rows.chunk is None else rows.chunk
    ring = chunk if rows.ring is None else rows.ring
    assert chunk is not None
    assert ring is not None
    K = ring.shape[1]
    num_rows = L * H // K
    row_groups = 1 if num_rows <= 8 else 2 if num_rows <= 16 else 4
    tiles = -(-num_rows // (8 * row_groups))
    splits = num_splits(mask, B * K * tiles, _MIN_KEYS)
    is_direct = splits == 1
    starts = [_NEVER] * B if rows.chunk is None else list(rows.starts)
    partial = (B, K, splits, num_rows)
    out, state = _kernel(
        inputs=[
            q,
            ring,
            chunk,
            mask.packed(),
            pack_params(*starts),
            pack_params(H, K, L, ring.shape[2], rows.capacity, chunk.shape[2], splits),
        ],
        template=[
            ("T", q.dtype),
            ("OUT", q.dtype if is_direct else mx.float32),
            ("DH", Dh),
            ("ROW_GROUPS", row_groups),
            ("KEYS", 128 // (2 * q.dtype.size)),
            ("DIRECT", is_direct),
        ],
        grid=(64 * row_groups * tiles, K * splits, B),
        threadgroup=(64 * row_groups, 1, 1),
        output_shapes=[q.shape if is_direct else (*partial, Dh), (*partial, 2)],
        output_dtypes=[q.dtype if is_direct else mx.float32, mx.float32],
    )
    return (out if is_direct else merge_splits(out, state, q),)


def _verify_cases(dtype: mx.Dtype) -> Sequence[Case]:
    return [
        sliding_case("wrapped ring", dtype, [90], 3, 48, 16, H=4, K=2),
        sliding_case("split over keys", dtype, [500], 5, 256, 16, H=2, K=1),
    ]


def _prefill_cases(dtype: mx.Dtype) -> Sequence[Case]:
    return [
        sliding_case("ring and chunk", dtype, [90], 45, 48, 4, H=4, K=2),
        sliding_case("a picture", dtype, [0], 70, 32, 4, H=2, K=1, picture=(20, 61)),
    ]


def _tune_cases(sizes: Sizes, lengths: Sequence[int]) -> Sequence[Case]:
    if sizes.head_dim not in HEAD_DIMS:
        return []
    H, K, window = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.sliding_window
    return [
        sliding_case(
            f"{length} positions",
            sizes.dtype,
            [4 * window],
            length,
            window,
            16,
            H=H,
            K=K,
            Dh=sizes.head_dim,
        )
        for length in lengths
    ]


SOURCES = ("sliding_tiles", "merge_splits")

VERIFY = registry.register(
    Kernel(
        "sliding_verify",
        SOURCES,
        launch,
        ring_attention,
        _verify_cases,
        lambda sizes: _tune_cases(sizes, (4, 8, 16)),
    )
)
PREFILL = registry.register(
    Kernel(
        "sliding_prefill",
        SOURCES,
        launch,
        ring_attention,
        _prefill_cases,
        lambda sizes: _tune_cases(sizes, (512, 2048)),
    )
)
