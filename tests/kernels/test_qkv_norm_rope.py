from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact, rms_norm, rotate

from mlx_gemma4.kernels import qkv_norm_rope as op
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.qkv_norm_rope import HeadLayout, pack_offsets, qkv_norm_rope

# query heads, key heads, dimensions, rotated ones: with and without simdgroups that have no head
LAYOUTS = {
    "sliding": HeadLayout(4, 2, 256, 256, is_shared=False, eps=1e-6),
    "global": HeadLayout(4, 1, 512, 128, is_shared=True, eps=1e-6),
    "partly rotated": HeadLayout(3, 1, 192, 128, is_shared=False, eps=1e-6),
    "two shared rows": HeadLayout(2, 2, 256, 256, is_shared=True, eps=1e-3),
}
LAST = 262_143

# offsets of the rows of a batch, L: decode, verify, a long context, more rows than packed offsets
CALLS = {
    "decode": ([7], 1),
    "verify": ([300, 0, 81_234], 5),
    "end": ([LAST - 2], 3),
    "batch of nine": ([LAST - 1, 0, 1, 2, 3, 4, 5, 6, 131_072], 2),
}


def drawn(rng, layout, offsets, L, dtype) -> tuple[Any, ...]:
    H, K, Dh, rotated = (
        layout.num_heads,
        layout.num_key_value_heads,
        layout.head_dim,
        layout.rotated_dims,
    )

    def array(*shape):
        return mx.array(rng.normal(scale=5, size=shape)).astype(dtype)

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
        key = turned(n[..., :rotated] * exact(k_weight))
        return queries, np.concatenate([key, n[..., rotated:], n[..., :rotated]], -1)
    value = rms_norm(heads(v, K), None, layout.eps)
    return queries, np.concatenate([turned(n * exact(k_weight)), value], -1)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_definition(rng, layout, call):
    arguments = drawn(rng, LAYOUTS[layout], *CALLS[call], mx.float32)
    for ours, expected in zip(op.define(*arguments), truth(*arguments), strict=True):
        assert abs(exact(ours) - expected).max() <= 1e-5 * abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel(rng, metal_sim, layout, call, dtype):
    arguments = drawn(rng, LAYOUTS[layout], *CALLS[call], dtype)
    assert_as_close(op.launch(*arguments), op.define(*arguments), truth(*arguments))
    assert [launch.name for launch in metal_sim.launches] == ["qkv_norm_rope"]


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
        HeadLayout(2, 1, 96, 96, is_shared=False, eps=1e-6),
        HeadLayout(2, 1, 128, 64, is_shared=True, eps=1e-6),
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
    arguments = drawn(rng, LAYOUTS[layout], *CALLS[call], dtype)
    assert_as_close(op.launch(*arguments), op.define(*arguments), truth(*arguments))
