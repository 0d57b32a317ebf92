"""The Metal language and its library, against NumPy."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

LANES = np.arange(32)


@pytest.fixture
def evaluate(metal_sim) -> Callable[..., np.ndarray]:
    """Return a function that evaluates an expression of lane i and input a for a simdgroup."""

    def run(expression: str, a: Any = LANES, dtype: mx.Dtype = mx.float32, **options: Any) -> Any:
        kernel = metal_sim.metal_kernel(
            "probe",
            ["a"],
            ["o"],
            f"uint i = thread_position_in_grid.x;\nT x = a[i];\no[i] = {expression};",
            header=options.pop("header", ""),
        )
        (o,) = kernel(
            inputs=[mx.array(a).astype(dtype)],
            template=[("T", dtype)],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(32,)],
            output_dtypes=[options.pop("output", dtype)],
        )
        return np.array(o.astype(mx.float32) if o.dtype == mx.bfloat16 else o)

    return run


POSITIVE = np.linspace(0.1, 3, 32, dtype=np.float32)
SIGNED = np.linspace(-2, 2, 32, dtype=np.float32)
UNIT = np.linspace(-0.9, 0.9, 32, dtype=np.float32)
FUNCTIONS = {
    "exp(x)": (SIGNED, np.exp),
    "exp2(x)": (SIGNED, np.exp2),
    "log(x)": (POSITIVE, np.log),
    "log2(x)": (POSITIVE, np.log2),
    "metal::precise::sqrt(x)": (POSITIVE, np.sqrt),
    "rsqrt(x)": (POSITIVE, lambda x: 1 / np.sqrt(x)),
    "metal::fast::exp(x)": (SIGNED, np.exp),
    "sin(x)": (SIGNED, np.sin),
    "cos(x)": (SIGNED, np.cos),
    "tanh(x)": (SIGNED, np.tanh),
    "precise::tanh(x)": (SIGNED, np.tanh),
    "acos(x)": (UNIT, np.arccos),
    "pow(x, T(3))": (POSITIVE, lambda x: x**3),
    "floor(x)": (SIGNED, np.floor),
    "ceil(x)": (SIGNED, np.ceil),
    "rint(x)": (SIGNED, np.rint),
    "round(x)": (SIGNED, lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5)),
    "fract(x)": (SIGNED, lambda x: x - np.floor(x)),
    "sign(x)": (SIGNED, np.sign),
    "abs(x)": (SIGNED, np.abs),
    "clamp(x, T(-1), T(1))": (SIGNED, lambda x: np.clip(x, -1, 1)),
    "min(x, T(0))": (SIGNED, lambda x: np.minimum(x, 0)),
    "max(x, T(0))": (SIGNED, lambda x: np.maximum(x, 0)),
    "fma(x, x, x)": (SIGNED, lambda x: x * x + x),
    "select(x, T(1), x < T(0))": (SIGNED, lambda x: np.where(x < 0, 1, x)),
    "saturate(x)": (SIGNED, lambda x: np.clip(x, 0, 1)),
    "mix(x, T(1), T(0.5))": (SIGNED, lambda x: (x + 1) / 2),
    "copysign(T(1), x)": (SIGNED, lambda x: np.copysign(1, x)),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_functions(dtype, evaluate):
    size = {mx.float32: 2e-7, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    for domain in (POSITIVE, SIGNED, UNIT):
        chosen = {text: f for text, (x, f) in FUNCTIONS.items() if x is domain}
        rounded = np.array(mx.array(domain).astype(dtype).astype(mx.float32))
        for text, function in chosen.items():
            expected = function(rounded.astype(np.float64))
            found = evaluate(text, domain, dtype).astype(np.float64)
            np.testing.assert_allclose(found, expected, rtol=4 * size, atol=2 * size, err_msg=text)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("popcount(x)", [int(i).bit_count() for i in LANES]),
        ("clz(x)", [32 - int(i).bit_length() for i in LANES]),
        ("ctz(x)", [(int(i) & -int(i)).bit_length() - 1 if i else 32 for i in LANES]),
        ("mulhi(x << 28, uint(16))", LANES % 16),
        ("rotate(x, uint(31))", [(int(i) >> 1) | (int(i) & 1) << 31 for i in LANES]),
        ("extract_bits(x, 1, 3)", (LANES >> 1) & 7),
        ("insert_bits(uint(0xFF), x, 2, 3)", [(0xFF & ~(7 << 2)) | ((i & 7) << 2) for i in LANES]),
        ("reverse_bits(x) >> 27", [int(f"{i:05b}"[::-1], 2) for i in LANES]),
        ("absdiff(x, uint(7))", np.abs(LANES - 7)),
        ("as_type<uint>(float(x))", np.float32(LANES).view(np.uint32)),
        ("uint(0.5 * x)", LANES // 2),  # a literal is a float
    ],
)
def test_integers(expression, expected, evaluate):
    found = evaluate(expression, LANES, mx.uint32)
    assert found.tolist() == np.asarray(expected, np.uint32).tolist()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("float4(x, 2, 3, 4).wzyx.w", LANES),
        ("float4(float2(1, x), 3, 4).y", LANES),
        ("float4(x).z", LANES),
        ("vec<float, 4>(x, x, x, x)[2]", LANES),
        ("metal::vec<T, 2>(1, x).y", LANES),
        ("float2(half2(1, x)).y", LANES),
        ("static_cast<float4>(int4(i)).w", LANES),
        ("dot(float3(1, x, 2), float3(1, 2, 3))", 1 + 2 * LANES + 6),
        ("length(float2(3 * x, 4 * x))", 5 * LANES),
        ("float(any(float4(x) > 30))", LANES > 30),
        ("float(all(isfinite(float2(x, x))))", np.ones(32)),
        ("max(float2(x, 5), float2(7, 7)).x", np.maximum(LANES, 7)),
        ("float3(packed_float3(float3(1, 2, x))).z", LANES),
        ("float(sizeof(packed_float3)) + float(sizeof(float3)) + 0 * x", np.full(32, 28)),
        ("select(float2(x), float2(1), bool2(i > 3, true)).x", np.where(LANES > 3, 1, LANES)),
        ("float(half(x)) + float(bfloat(x))", 2 * LANES),
    ],
)
def test_vectors(expression, expected, evaluate):
    assert evaluate(expression).tolist() == np.asarray(expected, np.float32).tolist()


SQUARES = (LANES * LANES).astype(np.float32)
SIMD = {
    "simd_sum(x)": np.full(32, SQUARES.sum()),
    "simd_max(x)": np.full(32, 961),
    "simd_min(x)": np.full(32, 0),
    "simd_product(i < 5 ? 2.0f : 1.0f)": np.full(32, 32),
    "float(simd_or(1u << i) >> 1)": np.full(32, np.float32(2**31 - 1)),
    "float(simd_and(i | 8u))": np.full(32, 8),
    "float(simd_xor(i))": np.full(32, 0),
    "simd_shuffle(x, ushort(31 - i))": SQUARES[::-1],
    "simd_broadcast(x, 5)": np.full(32, 25),
    "simd_broadcast_first(x + 1)": np.full(32, 1),
    "simd_shuffle_xor(x, 3)": SQUARES[LANES ^ 3],
    "simd_shuffle_down(x, 4)": np.append(SQUARES[4:], SQUARES[28:]),
    "simd_shuffle_up(x, 4)": np.append(SQUARES[:4], SQUARES[:28]),
    "simd_shuffle_rotate_down(x, 4)": np.roll(SQUARES, -4),
    "simd_shuffle_rotate_up(x, 4)": np.roll(SQUARES, 4),
    "simd_shuffle_and_fill_down(x, -x, 4)": np.append(SQUARES[4:], -SQUARES[:4]),
    "simd_shuffle_and_fill_up(x, -x, 4)": np.append(-SQUARES[28:], SQUARES[:28]),
    "simd_prefix_inclusive_sum(x)": np.cumsum(SQUARES),
    "simd_prefix_exclusive_sum(x)": np.cumsum(SQUARES) - SQUARES,
    "float((ulong)simd_ballot(i % 2 == 0) & 0xFF)": np.full(32, 0x55),
    "float(simd_all(i < 32)) + 2 * float(simd_any(i == 7)) + 4 * simd_all(i > 0)": np.full(32, 3),
    "float(simd_is_first())": LANES == 0,
    "quad_sum(x)": SQUARES.reshape(8, 4).sum(1).repeat(4),
    "quad_max(x)": SQUARES.reshape(8, 4).max(1).repeat(4),
    "quad_broadcast(x, 1)": SQUARES.reshape(8, 4)[:, 1].repeat(4),
    "quad_shuffle_xor(x, 1)": SQUARES[LANES ^ 1],
    "simd_sum(float2(x, 1)).y": np.full(32, 32),
}


@pytest.mark.parametrize("expression", SIMD)
def test_simd_operations(expression, evaluate):
    assert evaluate(expression, SQUARES).tolist() == SIMD[expression].astype(np.float32).tolist()


def test_sum_is_a_butterfly_of_ascending_distance(evaluate):
    """The order in which a simdgroup sums decides how the sum is rounded."""
    rng = np.random.default_rng(3)
    a = (rng.standard_normal(32) * 10.0 ** rng.integers(-4, 5, 32)).astype(np.float32)
    level = a
    while len(level) > 1:
        level = level[0::2] + level[1::2]
    assert evaluate("simd_sum(x)", a).tolist() == [float(level[0])] * 32


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_narrow_types_round_after_every_operation(dtype, evaluate):
    a = np.full(32, 1 + 2**-7)
    expected = mx.array(a).astype(dtype)
    expected = expected * expected * expected
    assert evaluate("x * x * x", a, dtype).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_matrices(dtype, is_transposed, metal_sim):
    rng = np.random.default_rng(5)
    a, b, c = (rng.integers(-4, 5, (8, 8)).astype(np.float32) for _ in range(3))
    source = """
      simdgroup_matrix<T, 8, 8> x, y;
      simdgroup_float8x8 z;
      simdgroup_load(x, a, 8, ulong2(0, 0), TRANSPOSED);
      simdgroup_load(y, b);
      simdgroup_load(z, c);
      simdgroup_multiply_accumulate(z, x, y, z);
      z.thread_elements()[0] += 1;
      simdgroup_store(z, o, 8, ulong2(0, 0), TRANSPOSED);"""
    kernel = metal_sim.metal_kernel("probe", ["a", "b", "c"], ["o"], source)
    (o,) = kernel(
        inputs=[mx.array(a).astype(dtype), mx.array(b).astype(dtype), mx.array(c)],
        template=[("T", dtype), ("TRANSPOSED", is_transposed)],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(8, 8)],
        output_dtypes=[mx.float32],
    )
    expected = (a.T if is_transposed else a) @ b + c
    expected[:, ::2] += 1  # element 0 of a lane is in an even column
    assert np.array_equal(np.array(o), expected.T if is_transposed else expected)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("atomic_fetch_max_explicit(&n, i, memory_order_relaxed)", 63),
        ("atomic_fetch_min_explicit(&n, 0u, memory_order_relaxed)", 0),
        ("atomic_fetch_or_explicit(&n, 1u << (i % 8), memory_order_relaxed)", 255),
        ("atomic_fetch_and_explicit(&n, 4u, memory_order_relaxed)", 4),
        ("atomic_fetch_xor_explicit(&n, 1u, memory_order_relaxed)", 5),
        ("atomic_fetch_sub_explicit(&n, 0u, memory_order_relaxed)", 5),
        ("atomic_exchange_explicit(&n, 9u, memory_order_relaxed)", 9),
        ("uint e = 5; atomic_compare_exchange_weak_explicit(&n, &e, 8u, memory_order_relaxed, "
         "memory_order_relaxed)", 8),
    ],
)  # fmt: skip
def test_atomics_in_threadgroup_memory(operation, expected, metal_sim):
    source = f"""
      threadgroup atomic_uint n;
      uint i = thread_position_in_grid.x;
      if (i == 0) atomic_store_explicit(&n, 5u, memory_order_relaxed);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      {operation};
      threadgroup_barrier(mem_flags::mem_threadgroup);
      o[i] = atomic_load_explicit(&n, memory_order_relaxed);"""
    (o,) = metal_sim.metal_kernel("probe", [], ["o"], source)(
        inputs=[],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(64,)],
        output_dtypes=[mx.uint32],
    )
    assert o.tolist() == [expected] * 64
