"""Queries and cache rows from what the projections of an attention layer give, in one launch.

Heads are normalised, weighted, rotated, and laid out as attention and cache want them:

    layers with keys and values of their own    row = [key | value]
    layers whose key and value share k          row = [rotated key | plain n | rotated n]

with n = rms_norm(k): the key is row[:Dh], the value is row[rotated:].  In shared rows the
dimensions that rotate stand first, and k's weight on the others is part of q's.  They come out as
the cache keeps them, whatever its `RowFormat`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel, Sizes
from mlx_gemma4.kernels.metal_kernel import MetalKernel, pack_params
from mlx_gemma4.kernels.shared_rows import PLAIN_ROWS, RowFormat

_SIMDGROUPS = 4  # of a threadgroup: heads that one of them takes
_MIN_OFFSETS = 8  # fewer would be another kernel, see metal_kernel

_INPUTS = ("q", "k", "v", "q_weight", "k_weight", "periods", "offsets", "params")
_kernel = MetalKernel(
    "qkv_norm_rope",
    inputs=_INPUTS,
    outputs=("queries", "rows"),
    declarations="device T* scales = nullptr;\n",
)
_kernel_with_scales = MetalKernel(
    "qkv_norm_rope", inputs=_INPUTS, outputs=("queries", "rows", "scales")
)


@dataclass(frozen=True)
class HeadLayout:
    """The heads of an attention layer.

    Attributes:
        num_heads: Query heads, H.
        num_key_value_heads: K.
        head_dim: Dh.
        rotated_dims: Dimensions that rotate, the first of a head; pair (i, i + rotated_dims / 2).
        row_format: How rows of a key and value that are both made from k are kept; None where each
            has its own.
        eps: Of the norms.
    """

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    rotated_dims: int
    row_format: RowFormat | None
    eps: float

    @property
    def is_shared(self) -> bool:
        """Whether key and value are both made from k."""
        return self.row_format is not None

    @property
    def row_dims(self) -> int:
        """Values of a cache row."""
        if self.row_format is None:
            return 2 * self.head_dim
        return self.head_dim + (self.rotated_dims if self.row_format.has_keys else 0)


def pack_offsets(offsets: Sequence[int]) -> mx.array:
    """Return positions before the first new one, a row of the batch each, [8 or more] int32.

    One array serves all layers of a step.
    """
    return mx.array([*offsets, *[0] * (_MIN_OFFSETS - len(offsets))], mx.int32)


def qkv_norm_rope(
    q: mx.array,
    k: mx.array | None,
    v: mx.array | None,
    q_weight: mx.array,
    k_weight: mx.array,
    periods: mx.array,
    offsets: mx.array,
    layout: HeadLayout,
) -> tuple[mx.array, ...]:
    """Return queries, and what the cache keeps.

    Args:
        q: [B, L, H * Dh], or [B, L, (H + 2K) * Dh] with q, k and v one after the other, without v
            in a shared layout; k and v are None then.
        k: [B, L, K * Dh].
        v: [B, L, K * Dh]; None in a shared layout.
        q_weight: [Dh].
        k_weight: [Dh]; [rotated] in a shared layout.
        periods: [rotated / 2] float32, positions for one radian.
        offsets: From `pack_offsets`.
        layout: Of the layer's heads.

    Returns:
        queries [B, H, L, Dh], rows [B, K, L, row_dims], and of int8 rows scales
        [B, K, L, num_scales]; norms and angles in float32, results but codes in the dtype of q.
    """
    arrays = [a for a in (q, k, v, q_weight, k_weight) if a is not None]
    fits = _fits(layout) and q.size > 0 and len({a.dtype for a in arrays}) == 1
    run = launch if fits and registry.is_on("qkv_norm_rope") else define
    return run(q, k, v, q_weight, k_weight, periods, offsets, layout)


def define(
    q: mx.array,
    k: mx.array | None,
    v: mx.array | None,
    q_weight: mx.array,
    k_weight: mx.array,
    periods: mx.array,
    offsets: mx.array,
    layout: HeadLayout,
) -> tuple[mx.array, ...]:
    """Return the same by MLX's own operations: the definition."""
    B, L, _ = q.shape
    H, K, rotated = layout.num_heads, layout.num_key_value_heads, layout.rotated_dims
    if k is None:
        ends = [H * layout.head_dim, (H + K) * layout.head_dim]
        q, k, *rest = mx.split(q, ends[:1] if layout.is_shared else ends, axis=-1)
        v = rest[0] if rest else None

    def normed(x: mx.array, heads: int, weight: mx.array | None) -> mx.array:
        x = mx.fast.rms_norm(x.reshape(B, L, heads, -1), weight, layout.eps)
        return x.swapaxes(1, 2)  # [B, heads, L, Dh]

    def rotate(x: mx.array) -> mx.array:
        return mx.fast.rope(
            x,
            rotated,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offsets[:B],
            freqs=periods,
        )

    queries = rotate(normed(q, H, q_weight))
    if layout.row_format is not None:
        n = normed(k, K, None)
        plain, n_rotated = n[..., rotated:], n[..., :rotated]
        rows = mx.concatenate([rotate(n_rotated * k_weight), plain, n_rotated], axis=-1)
        return queries, *layout.row_format.pack(rows, rotated)
    assert v is not None
    return queries, mx.concatenate([rotate(normed(k, K, k_weight)), normed(v, K, None)], axis=-1)


def launch(
    q: mx.array,
    k: mx.array | None,
    v: mx.array | None,
    q_weight: mx.array,
    k_weight: mx.array,
    periods: mx.array,
    offsets: mx.array,
    layout: HeadLayout,
) -> tuple[mx.array, ...]:
    """Return the same by the Metal kernel; the layout fits it, and all dtypes are equal."""
    B, L, _ = q.shape
    H, K, Dh = layout.num_heads, layout.num_key_value_heads, layout.head_dim
    if k is None:
        k = v = q
        starts = H * Dh, (H + K) * Dh
    else:
        v = k if v is None else v
        starts = 0, 0
    # Row lengths and starts in elements: one kernel reads both forms of its input.
    params = pack_params(
        H, K, L, q.shape[-1], starts[0], k.shape[-1], starts[1], v.shape[-1], float(layout.eps)
    )
    heads = H + (K if layout.is_shared else 2 * K)
    row_format = layout.row_format or PLAIN_ROWS  # heads of their own are plain, too
    num_scales = row_format.num_scales
    kernel = _kernel_with_scales if num_scales else _kernel
    row_dtype = mx.int8 if num_scales else q.dtype
    outputs = [
        ((B, H, L, Dh), q.dtype),
        ((B, K, L, layout.row_dims), row_dtype),
        *([((B, K, L, num_scales), q.dtype)] if num_scales else []),
    ]
    return tuple(
        kernel(
            inputs=[q, k, v, q_weight, k_weight, periods, offsets, params],
            template=[
                ("T", q.dtype),
                ("R", row_dtype),
                ("DH", Dh),
                ("ROTATED", layout.rotated_dims),
                ("SHARED", layout.is_shared),
                ("HAS_KEYS", row_format.has_keys),
                ("HAS_SCALES", num_scales > 0),
            ],
            grid=(32, -(-heads // _SIMDGROUPS) * _SIMDGROUPS, B * L),
            threadgroup=(32, _SIMDGROUPS, 1),
            output_shapes=[shape for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
        )
    )


def _fits(layout: HeadLayout) -> bool:
    """Whether the kernel's lanes divide heads and rotated pairs."""
    return layout.head_dim % 64 == 0 and layout.rotated_dims % 128 == 0


def _case(
    label: str, offsets: Sequence[int], L: int, layout: HeadLayout, dtype: mx.Dtype, is_joint: bool
) -> Case:
    """Return a call with drawn arrays and the periods of a base of 10,000."""
    H, K, Dh = layout.num_heads, layout.num_key_value_heads, layout.head_dim
    heads = [H, K] if layout.is_shared else [H, K, K]
    keys = mx.random.split(mx.random.key(Dh + L), 3)
    joint = mx.random.normal((len(offsets), L, sum(heads) * Dh), key=keys[0]).astype(dtype)
    parts: list[mx.array | None] = [joint, None, None]
    if not is_joint:
        ends = [H * Dh, (H + K) * Dh][: len(heads) - 1]
        parts = [*map(mx.contiguous, mx.split(joint, ends, axis=-1)), None][:3]
    q_weight = mx.random.uniform(0.5, 2.0, (Dh,), key=keys[1]).astype(dtype)
    k_weight = mx.random.uniform(0.5, 2.0, (Dh,), key=keys[2]).astype(dtype)
    if layout.is_shared:
        k_weight = mx.contiguous(k_weight[: layout.rotated_dims])
    periods = 10_000.0 ** (mx.arange(0, layout.rotated_dims, 2, dtype=mx.float32) / Dh)
    return Case(label, (*parts, q_weight, k_weight, periods, pack_offsets(offsets), layout))


def _check_cases(dtype: mx.Dtype) -> Sequence[Case]:
    own = HeadLayout(3, 1, 256, 256, row_format=None, eps=1e-6)
    shared = HeadLayout(2, 1, 512, 128, row_format=PLAIN_ROWS, eps=1e-6)
    kinds = {
        "shared rows": PLAIN_ROWS,
        "values alone": RowFormat(has_keys=False),
        "shared rows in int8": RowFormat(bits=8),
        "values alone in int8": RowFormat(bits=8, has_keys=False),
    }
    return [
        _case("keys and values", [5, 261_000], 3, own, dtype, is_joint=False),
        *(
            _case(
                f"{kind}, joint",
                [0, 131_071, 7],
                2,
                replace(shared, row_format=row_format),
                dtype,
                is_joint=True,
            )
            for kind, row_format in kinds.items()
        ),
    ]


def _tune_cases(sizes: Sizes) -> Sequence[Case]:
    sliding = HeadLayout(
        sizes.num_attention_heads,
        sizes.num_key_value_heads,
        sizes.head_dim,
        sizes.head_dim,
        row_format=None,
        eps=1e-6,
    )
    shared = HeadLayout(
        sizes.num_attention_heads,
        sizes.num_global_key_value_heads,
        sizes.global_head_dim,
        sizes.global_rotated_dims,
        row_format=PLAIN_ROWS,
        eps=1e-6,
    )
    return [
        _case(f"{kind} {label}", [1000], L, layout, sizes.dtype, is_joint=False)
        for kind, layout in (("sliding", sliding), ("global", shared))
        for label, L in (("decode", 1), ("verify 8", 8), ("prefill 2048", 2048))
        if _fits(layout)
    ]


KERNEL = registry.register(
    Kernel("qkv_norm_rope", ("qkv_norm_rope",), launch, define, _check_cases, _tune_cases)
)
