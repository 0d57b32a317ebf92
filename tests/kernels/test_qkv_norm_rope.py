from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact, rms_norm, rotate

from mlx_gemma4.kernels import qkv_norm_rope as op
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.qkv_norm_rope import HeadLayout, pack_offsets, qkv_norm_rope
from mlx_gemma4.kernels.shared_rows import INT8_MAX, PLAIN_ROWS, RowFormat

# query heads, key heads, dimensions, rotated ones: with and without simdgroups that have no head
LAYOUTS = {
    "sliding": HeadLayout(4, 2, 256, 256, row_format=None, eps=1e-6),
    "global": HeadLayout(4, 1, 512, 128, row_format=PLAIN_ROWS, eps=1e-6),
    "partly rotated": HeadLayout(3, 1, 192, 128, row_format=None, eps=1e-6),
    "two shared rows": HeadLayout(2, 2, 256, 256, row_format=PLAIN_ROWS, eps=1e-3),
}
ROW_FORMATS = {
    "int8": RowFormat(bits=8),
    "values": RowFormat(has_keys=False),
    "int8 values": RowFormat(bits=8, has_keys=False),
}
LAYOUTS |= {
    f"{name}, {kind}": replace(LAYOUTS[name], row_format=row_format)
    for name in ("global", "two shared rows")
    for kind, row_format in ROW_FORMATS.items()
}
IN_INT8 = [name for name in LAYOUTS if "int8" in name]
LAST = 262_143

# offsets of the rows of a batch, L: decode, verify, a long context, more rows than packed offsets
CALLS = {
    "decode": ([7], 1),
    "verify": ([300, 0, 81_234], 5),
    "end": ([LAST - 2], 3),
    "batch of nine": ([LAST - 1, 0, 1, 2, 3, 4, 5, 6, 131_072], 2),
}


def drawn(rng, layout, offsets, L, dtype, scale=5.0) -> tuple[Any, ...]:
    H, K, Dh, rotated = (
        layout.num_heads,
        layout.num_key_value_heads,
        layout.head_dim,
        layout.rotated_dims,
    )

    def array(*shape):
        return mx.array(rng.normal(scale=scale, size=shape)).astype(dtype)

    B = len(offsets)
    q, k, v = (array(B, L, heads * Dh) for heads in (H, K, K))
    q_weight, k_weight = (mx.array(rng.uniform(0.2, 3, Dh)).astype(dtype) for _ in range(2))
    if layout.is_shared:
        k_weight, v = mx.contiguous(k_weight[:rotated]), None
    periods = mx.array((1e4 ** (np.arange(0, rotated, 2) / Dh)).astype(np.float32))
    return q, k, v, q_weight, k_weight, periods, pack_offsets(offsets), layout


def joined(arguments):
    parts = [a for a in arguments[:3] if a is not None]
    return mx.concatenate(parts, axis=-1), None, None, *arguments[3:]


def truth(q, k, v, q_weight, k_weight, periods, offsets, layout):
    """Return queries and rows; those of int8 are not rounded to codes."""
    B, L, _ = q.shape
    H, K, rotated = layout.num_heads, layout.num_key_value_heads, layout.rotated_dims
    positions = np.array(offsets)[:B, None] + np.arange(L)

    def heads(x, count):
        return exact(x).reshape(B, L, count, -1).swapaxes(1, 2)

    def turned(x):
        return rotate(x, positions, np.array(periods))

    queries = turned(rms_norm(heads(q, H), exact(q_weight), layout.eps))
    n = rms_norm(heads(k, K), None, layout.eps)
    if layout.is_shared:
        key = turned(n[..., :rotated] * exact(k_weight))[
            ..., : rotated * layout.row_format.has_keys
        ]
        return queries, np.concatenate([key, n[..., rotated:], n[..., :rotated]], -1)
    value = rms_norm(heads(v, K), None, layout.eps)
    return queries, np.concatenate([turned(n * exact(k_weight)), value], -1)


def parts_of(rows, layout):
    """Return what of rows [B, K, L, row_dims] has a scale of its own: the rotated key, and n."""
    return np.split(rows, [layout.rotated_dims] if layout.row_format.has_keys else [], axis=-1)


def each_scale(scales):
    """Return the scale of each part, [B, K, L, 1]."""
    return np.split(exact(scales), scales.shape[-1], axis=-1)


def assert_codes(codes, scales, expected, layout):
    """Fail unless codes are off by half a step, and by what rounding before them makes of it.

    Values are rounded to the dtype of scales, and so is 1/127 of the largest, by up to half its eps
    each; sums, sines and cosines of float32 are worth 4e-6 of a row's largest value.  The largest
    code is cut, but for less than half a step: 127 times half an eps of bfloat16 is 0.496.
    """
    half_eps = mx.finfo(scales.dtype).eps / 2
    parts = parts_of(exact(codes), layout), each_scale(scales), parts_of(expected, layout)
    for code, scale, values in zip(*parts, strict=True):
        largest = abs(values).max(-1, keepdims=True)
        exact_scale = np.where(largest, largest / INT8_MAX, 1)
        assert (abs(scale / exact_scale - 1) <= (1 + half_eps) ** 2 - 1 + 4e-6).all()
        assert (abs(code * scale - values) <= scale / 2 + (half_eps + 4e-6) * largest).all()
        assert (abs(code) <= INT8_MAX).all()


def check(arguments: tuple[Any, ...]) -> None:
    """Fail unless the kernel is right in the rows' own form, and packs as the definition does."""
    layout = arguments[-1]
    outputs, plain, expected = op.launch(*arguments), op.define(*arguments), truth(*arguments)
    assert [(a.shape, a.dtype) for a in outputs] == [(a.shape, a.dtype) for a in plain]
    if layout.is_shared and layout.row_format.bits == 8:
        assert_as_close(outputs[:1], plain[:1], expected[:1])
        assert_codes(outputs[1], outputs[2], expected[1], layout)
    else:
        assert_as_close(outputs, plain, expected)
    if layout.is_shared:
        unpacked: tuple[Any, ...] = (*arguments[:-1], replace(layout, row_format=PLAIN_ROWS))
        queries, rows = op.launch(*unpacked)
        packed = queries, *layout.row_format.pack(rows, layout.rotated_dims)
        assert all(mx.array_equal(*pair).item() for pair in zip(outputs, packed, strict=True))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_definition(rng, layout, call):
    arguments = drawn(rng, LAYOUTS[layout], *CALLS[call], mx.float32)
    outputs, expected = op.define(*arguments), truth(*arguments)
    if len(outputs) == 3:
        assert_codes(*outputs[1:], expected[1], LAYOUTS[layout])
        outputs, expected = outputs[:1], expected[:1]
    for ours, wanted in zip(outputs, expected, strict=True):
        assert abs(exact(ours) - wanted).max() <= 1e-5 * abs(wanted).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel(rng, metal_sim, layout, call, dtype):
    arguments = drawn(rng, LAYOUTS[layout], *CALLS[call], dtype)
    op.launch(*arguments)
    assert [launch.name for launch in metal_sim.launches] == ["qkv_norm_rope"]
    check(arguments)


@pytest.mark.parametrize("layout", IN_INT8)
def test_codes_are_the_definitions_but_for_ties(rng, metal_sim, layout):
    layout = LAYOUTS[layout]
    arguments = drawn(rng, layout, *CALLS["batch of nine"], mx.float32)
    (_, ours, _), (_, plain, scales) = op.launch(*arguments), op.define(*arguments)
    rows = exact(ours), exact(plain), truth(*arguments)[1]
    parts = (parts_of(array, layout) for array in rows)
    for our_codes, codes, values, scale in zip(*parts, each_scale(scales), strict=True):
        steps = values / scale
        to_tie = abs(abs(steps - np.round(steps)) - 0.5)
        assert ((our_codes == codes) | (to_tie < 1e-3)).all()
        assert (our_codes == codes).mean() > 0.999


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_codes_of_small_and_large_values(rng, metal_sim, scale, dtype):
    """Small ones are as small as eps; keys are a hundred times their n."""
    layout = LAYOUTS["global, int8"]
    *rest, k_weight, periods, offsets, _ = drawn(rng, layout, [3, 500], 2, dtype, scale)
    check((*rest, 100 * k_weight, periods, offsets, layout))


@pytest.mark.parametrize("layout", IN_INT8)
def test_zeros_have_a_scale_of_one(rng, metal_sim, layout):
    layout = LAYOUTS[layout]
    q, k, *rest = drawn(rng, layout, [3], 3, mx.bfloat16)
    k[:, 1] = 0
    _, codes, scales = op.launch(q, k, *rest)
    assert not exact(codes[:, :, 1]).any()
    assert (exact(scales[:, :, 1]) == 1).all()
    assert exact(codes[:, :, ::2]).any(-1).all()
    assert (exact(scales[:, :, ::2]) < 1).all()
    check((q, k, *rest))


def test_a_rotated_key_of_zeros_leaves_n_as_it_is(rng, metal_sim):
    *first, k_weight, periods, offsets, layout = drawn(
        rng, LAYOUTS["global, int8"], [3], 1, mx.bfloat16
    )
    arguments: tuple[Any, ...] = (*first, 0 * k_weight, periods, offsets, layout)
    _, codes, scales = op.launch(*arguments)
    assert not exact(codes[..., :128]).any()
    assert exact(scales[..., 0]).item() == 1
    assert abs(exact(codes[..., 128:])).max() == INT8_MAX
    check(arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_array_of_projections_gives_the_same(rng, metal_sim, layout):
    arguments = drawn(rng, LAYOUTS[layout], *CALLS["verify"], mx.bfloat16)
    for function in (op.define, op.launch):
        outputs = zip(function(*arguments), function(*joined(arguments)), strict=True)
        assert all(mx.array_equal(apart, joint).item() for apart, joint in outputs)


def test_chooses(rng, metal_sim):
    arguments = drawn(rng, LAYOUTS["sliding"], [3], 1, mx.float32)
    with registry.forced("qkv_norm_rope"):
        qkv_norm_rope(*arguments)
    assert len(metal_sim.launches) == 1
    with registry.forced():
        qkv_norm_rope(*arguments)
    assert len(metal_sim.launches) == 1


@pytest.mark.parametrize(
    "layout",
    [
        HeadLayout(2, 1, 96, 96, row_format=None, eps=1e-6),
        HeadLayout(2, 1, 128, 64, row_format=PLAIN_ROWS, eps=1e-6),
    ],
    ids=["head", "rotated"],
)
def test_what_does_not_fit_is_defined(rng, metal_sim, layout):
    arguments = drawn(rng, layout, [3], 2, mx.float32)
    with registry.forced("qkv_norm_rope"):
        outputs = qkv_norm_rope(*arguments)
    assert metal_sim.launches == []
    for ours, expected in zip(outputs, truth(*arguments), strict=True):
        assert abs(exact(ours) - expected).max() <= 1e-5 * abs(expected).max()


def test_offsets_have_room_for_eight(rng):
    assert np.array(pack_offsets([5])).tolist() == [5, 0, 0, 0, 0, 0, 0, 0]
    assert pack_offsets(range(11)).shape == (11,)


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_on_the_gpu(rng, layout, call, dtype):
    check(drawn(rng, LAYOUTS[layout], *CALLS[call], dtype))
