"""Kernels that others wrote run as they are, and agree with what MLX computes on the CPU.

The kernels are the ones of the installed mlx-lm (and mlx-vlm, if it is there), which hand their
sources to mx.fast.metal_kernel, and MLX's own, whose headers come in its wheel.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from metal_sim import LibraryKernel, MetalError, Output

pytestmark = pytest.mark.parity

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
EPSILON = {mx.float32: 2**-23, mx.float16: 2**-10, mx.bfloat16: 2**-7}


def assert_close(found: mx.array, expected: mx.array, steps: float) -> None:
    """Fail unless the largest difference is a few rounding steps of the largest value."""
    assert found.shape == expected.shape
    a, b = (np.array(x.astype(mx.float32)) for x in (found, expected))
    assert np.abs(a - b).max() <= steps * EPSILON[found.dtype] * np.abs(b).max()


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    """Return standard normal values, the same in every run."""
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """Return the norm in float32."""
    return mx.fast.rms_norm(x.astype(mx.float32), weight, eps)


@pytest.fixture(params=["mlx_lm", "mlx_vlm"])
def package(request, metal_sim, monkeypatch) -> Iterator[str]:
    """Return a package whose modules, imported in the test, make their kernels by the simulator."""
    name = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    before = set(sys.modules)
    yield name
    for module in set(sys.modules) - before:
        if module.startswith(f"{name}."):
            del sys.modules[module]


def fresh(name: str) -> ModuleType:
    """Import a module anew, so that its kernels are the simulator's."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_qk_norm(dtype, package, metal_sim):
    heads, kv_heads, head_dim = 3, 1, 48
    qkvg = normal(2, 5, 2 * (heads + kv_heads) * head_dim, dtype=dtype)
    q, k = fresh(f"{package}.kernels.qk_norm").qk_norm(
        qkvg, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, eps=1e-5, query_scale=0.25
    )
    rows = qkvg[..., : (heads + kv_heads) * head_dim].reshape(2, 5, -1, head_dim)
    normed = rms_norm(rows, None, 1e-5)
    assert_close(q, normed[..., :heads, :] * 0.25, 1)
    assert_close(k, normed[..., heads:, :], 1)
    assert len(metal_sim.launches) == 1


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_qk_norm_rope(dtype, package):
    qkvg = normal(2, 5, 2 * 4 * 64, dtype=dtype)
    q, k = fresh(f"{package}.kernels.qk_norm_rope").qk_norm_rope(
        qkvg,
        n_heads=3,
        n_kv_heads=1,
        head_dim=64,
        eps=1e-5,
        query_scale=0.25,
        rope_base=10_000.0,
        offset=3,
    )
    normed = rms_norm(qkvg[..., : 4 * 64].reshape(2, 5, 4, 64), None, 1e-5)
    rotated = mx.fast.rope(
        normed.transpose(0, 2, 1, 3), 64, traditional=True, base=10_000.0, scale=1.0, offset=3
    ).transpose(0, 2, 1, 3)
    assert_close(q, rotated[..., :3, :] * 0.25, 2)
    assert_close(k, rotated[..., 3:, :], 2)


def test_expert_routing(package):
    logits, bias = normal(6, 40), 0.1 * normal(40, seed=1)
    indices, weights = fresh(f"{package}.kernels.expert_routing").expert_routing(
        logits, bias, top_k=4, multiplier=1.5, score_eps=1e-6, route_scale=2.0
    )
    score = mx.sigmoid(logits * 1.5)
    chosen = mx.argsort(-(score + bias), axis=-1)[:, :4]
    taken = mx.take_along_axis(score, chosen, axis=-1)
    assert mx.array_equal(indices, chosen)
    assert_close(weights, taken / (taken.sum(-1, keepdims=True) + 1e-6) * 2.0, 4)


@pytest.mark.parametrize("dims", [64, 512, 4096])
def test_post_expert_norm_combine(dims, package):
    experts, weight = normal(3, 4, dims, dtype=mx.bfloat16), normal(dims, dtype=mx.bfloat16, seed=1)
    weights = mx.softmax(normal(3, 4, seed=2), axis=-1)
    found = fresh(f"{package}.kernels.post_expert_norm_combine").post_expert_norm_combine(
        experts, weights, norm_weight=weight, eps=1e-5
    )
    normed = rms_norm(experts.astype(mx.float32) * weight, None, 1e-5)
    expected = (normed * weights.astype(mx.bfloat16)[..., None]).sum(-2)
    assert_close(found, expected, 2)


def test_strided_gate(package):
    """This kernel takes its inputs as they lie, by their strides."""
    x = normal(2, 5, 3, 48, dtype=mx.float16).transpose(0, 2, 1, 3)
    gate = normal(2, 5, 2 * 3 * 48, dtype=mx.float16, seed=1)[..., 3 * 48 :]
    found = fresh(f"{package}.kernels.rms_norm_sigmoid_gate").rms_norm_sigmoid_gate(
        x, gate, eps=1e-5
    )
    normed = rms_norm(x, None, 1e-5).transpose(0, 2, 1, 3).reshape(2, 5, 3 * 48)
    assert_close(found, normed * mx.sigmoid(gate.astype(mx.float32)), 1)


@pytest.mark.parametrize("dims", [128, 512, 4096])
def test_norm_add_norm(dims, package):
    module = fresh(f"{package}.kernels.norm_add_norm")
    branch, stream = normal(3, dims, dtype=mx.bfloat16), normal(3, dims, seed=1)
    alpha, beta = normal(dims, seed=2), normal(dims, seed=3)
    norm = nn.RMSNorm(dims)
    norm.weight = normal(dims, dtype=mx.bfloat16, seed=4)
    found, normed = module.norm_add_norm(
        branch,
        stream,
        alpha=alpha,
        beta=beta,
        post_weight=None,
        post_eps=1e-5,
        next_norm=norm,
    )
    post = rms_norm(branch, None, 1e-5).astype(mx.bfloat16).astype(mx.float32)
    expected = alpha * stream + beta * post
    assert mx.abs(found - expected).max().item() <= 2 * EPSILON[mx.bfloat16] * 8
    assert_close(normed, rms_norm(found, norm.weight.astype(mx.float32), norm.eps), 1)
    assert mx.array_equal(module.pre_norm(found, norm, dtype=mx.bfloat16), normed)


def test_three_gated_delta_kernels_are_bit_equal(metal_sim, monkeypatch):
    """They promise the same reduction tree, each by other means: simd_sum, shuffles, packing."""
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx_lm is not installed")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    module = fresh("mlx_lm.models.gated_delta")
    q, k = 0.1 * normal(1, 3, 1, 128), 0.1 * normal(1, 3, 1, 128, seed=1)
    v, state = normal(1, 3, 2, 16, seed=2), normal(1, 2, 16, 128, seed=3)
    g, beta = (mx.sigmoid(normal(1, 3, 2, seed=seed)) for seed in (4, 5))
    kernels = ("gated_delta_kernel_unpacked", "gated_delta_kernel_xtree", "gated_delta_kernel")
    results = [getattr(module, name)(q, k, v, g, beta, state) for name in kernels]
    for found in results[1:]:
        assert all(mx.array_equal(a, b) for a, b in zip(found, results[0], strict=True))
    assert len({launch.source for launch in metal_sim.launches}) == 3
    for found, expected in zip(
        results[0], module.gated_delta_ops(q, k, v, g, beta, state), strict=True
    ):
        assert_close(found, expected, 8)
    del sys.modules["mlx_lm.models.gated_delta"]


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_finds_races_that_mlx_lm_ships(divergence, metal_sim, monkeypatch):
    """A barrier of no memory, and none at all between a read and the next write (mlx-lm 0.32.2)."""
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx_lm is not installed")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    module = fresh("mlx_lm.tuner.losses")
    with pytest.raises(MetalError) as raised:
        getattr(module, f"_{divergence}_div_loss")(normal(2, 5000), normal(2, 5000, seed=1))
    errors = [message for message in raised.value.messages if message.is_error]
    assert {message.check for message in errors} <= {"threadgroup_race", "simdgroup_race"}
    assert any("after read" in message.text for message in errors)
    assert any("after write" in message.text for message in errors)
    del sys.modules["mlx_lm.tuner.losses"]


KERNELS = "mlx/backend/metal/kernels"
TYPES = {mx.float32: "float", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}
INCLUDES = "".join(
    f'#include "{KERNELS}/{name}.h"\n'
    for name in ("utils", "sdpa_vector", "steel/gemm/gemm", "quantized_utils", "quantized")
)


def integer(value: int, dtype: mx.Dtype = mx.int32) -> mx.array:
    """Return a number as the kernels take it."""
    return mx.array(value, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_sdpa_vector_of_mlx(dtype, is_causal, metal_sim):
    H, K, L, N, Dh = 4, 2, 3, 40, 64
    q, k = normal(H, L, Dh, dtype=dtype), normal(K, N, Dh, dtype=dtype, seed=1)
    v = normal(K, N, Dh, dtype=dtype, seed=2)
    kernel = LibraryKernel(
        metal_sim, INCLUDES, "sdpa_vector", [TYPES[dtype], str(Dh)], {22: is_causal}
    )
    head, row = integer(N * Dh, mx.int64), integer(Dh, mx.int64)
    buffers: dict[int, Any] = dict(enumerate([q, k, v, Output((H, L, Dh), dtype), integer(H // K)]))
    buffers |= {5: integer(N), 6: head, 7: row, 8: head, 9: row, 10: mx.array(0.125)}
    (found,) = kernel(buffers, (H * 1024, L, 1), (1024, 1, 1))
    expected = mx.fast.scaled_dot_product_attention(
        *(x[None].astype(mx.float32) for x in (q, k, v)),
        scale=0.125,
        mask="causal" if is_causal else None,
    )[0]
    assert_close(found, expected, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_kernels_of_mlx(bits, dtype, metal_sim):
    """One row by affine_qmv_fast, and 40 rows by affine_qmm_t, which has simdgroup matrices."""
    outputs, inputs = 64, 512
    w, scales, biases = mx.quantize(normal(outputs, inputs, dtype=dtype), 64, bits)
    dense = mx.dequantize(w, scales.astype(mx.float32), biases.astype(mx.float32), 64, bits)
    x = normal(40, inputs, dtype=dtype, seed=1)
    expected = x.astype(mx.float32) @ dense.T
    none, nones, strides = integer(0), integer(0).reshape(1), integer(0, mx.int64).reshape(1)
    template = [TYPES[dtype], "64", str(bits)]

    rows = LibraryKernel(metal_sim, INCLUDES, "affine_qmv_fast", [*template, "false"])
    batch = [none, nones, strides, none, nones, strides, strides, strides]
    head = [w, scales, biases, x[:1], Output((1, outputs), dtype)]
    sizes = [integer(inputs), integer(outputs)]
    arguments = dict(enumerate([*head, *sizes, *batch]))
    (row,) = rows(arguments, (32, outputs // 4, 1), (32, 2, 1))
    assert_close(row, expected[:1], 16 if dtype == mx.float32 else 1)

    tiles = LibraryKernel(metal_sim, INCLUDES, "affine_qmm_t", [*template, "true", "false"])
    head = [w, scales, biases, x, Output((40, outputs), dtype)]
    arguments = dict(enumerate([*head, *sizes, integer(40), *batch]))
    (matrix,) = tiles(arguments, (outputs, 4, 2), (32, 2, 2))
    assert_close(matrix, expected, 16 if dtype == mx.float32 else 1)


def test_a_kernel_that_is_not_there(metal_sim):
    kernel = LibraryKernel(metal_sim, "[[kernel]] void f(device int* o [[buffer(0)]]) {}", "g")
    with pytest.raises(MetalError, match="no kernel is called g; there are: f"):
        kernel({0: Output((1,), mx.int32)}, (1, 1, 1), (1, 1, 1))
