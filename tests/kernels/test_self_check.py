from dataclasses import dataclass

import mlx.core as mx
import pytest
from fake_kernels import fake_kernel, raises

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel
from mlx_gemma4.kernels.self_check import self_check


def test_the_same_agrees():
    assert self_check(fake_kernel()) is None


def test_an_exception_is_an_answer():
    complaint = self_check(fake_kernel(kernel=raises))
    assert complaint == (
        "bfloat16, small: RuntimeError: [metal::Device] Unable to build metal library"
    )


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (lambda x: 2.1 * x, "off by 0.047"),
        (lambda x: x + x + mx.where(x == 3, 0.5, 0).astype(x.dtype), "off by 0.031"),
        (lambda x: x * mx.array(float("nan"), x.dtype), "off by nan"),
        (lambda x: mx.full(x.shape, float("inf"), x.dtype), "off by inf"),
        (lambda x: (x + x)[None], "output 0 is (1, 8) bfloat16"),
        (lambda x: (x + x).astype(mx.float32), "output 0 is (8,) float32"),
    ],
    ids=["scaled", "one value", "nan", "inf", "shape", "dtype"],
)
def test_a_mismatch_is_told(kernel, says):
    complaint = self_check(fake_kernel(kernel=kernel))
    assert complaint is not None
    assert complaint.startswith("bfloat16, small: ")
    assert says in complaint


def test_every_dtype_is_checked():
    def kernel(x):
        return x + x + (1 if x.dtype == mx.float32 else 0)

    complaint = self_check(fake_kernel(kernel=kernel))
    assert complaint is not None
    assert complaint.startswith("float32, small")


def test_a_missing_output_is_told():
    def cases(dtype):
        return [Case("two", (mx.ones((4,), dtype),))]

    kernel = Kernel("two", (), lambda x: (x,), lambda x: (x, x), cases, lambda _: [])
    assert self_check(kernel) == "bfloat16, two: 1 outputs instead of 2"


def test_rounding_in_another_order_agrees():
    x = mx.random.normal((4, 512), key=mx.random.key(1))

    def define(x):
        return (mx.sum(x * x, axis=-1),)

    def launch(x):
        return (mx.sum(mx.square(x.astype(mx.float32)), axis=-1).astype(x.dtype),)

    def cases(dtype):
        return [Case("sum", (x.astype(dtype),))]

    assert self_check(Kernel("sum", (), launch, define, cases, lambda _: [])) is None


def codes_kernel(launch):
    x = 0.5 + mx.arange(1000.0) * 0.125

    def define(x):
        return (mx.round(x).astype(mx.int8),)

    def cases(dtype):
        return [Case("codes", (x.astype(dtype),))]

    return Kernel("codes", (), launch, define, cases, lambda _: [])


def test_one_code_at_a_tie_agrees():
    def launch(x):
        return ((mx.round(x) + (x == 0.5)).astype(mx.int8),)

    assert self_check(codes_kernel(launch)) is None


@pytest.mark.parametrize(
    "launch",
    [
        lambda x: (mx.floor(x).astype(mx.int8),),
        lambda x: (mx.where(x == 5.5, 0, mx.round(x)).astype(mx.int8),),
    ],
    ids=["cut", "one code"],
)
def test_other_codes_are_told(launch):
    complaint = self_check(codes_kernel(launch))
    assert complaint is not None
    assert "of its largest code on average" in complaint


def test_the_truth_has_float32_in_records_too():
    seen = []

    def define(pair):
        seen.append(pair)
        return (pair.first * pair.count,)

    def cases(dtype):
        return [Case("pair", (Pair(mx.ones((4,), dtype), 3),))]

    assert self_check(Kernel("pair", (), define, define, cases, lambda _: [])) is None
    assert [pair.count for pair in seen] == [3] * len(seen)
    assert [pair.first.dtype for pair in seen[:3]] == [mx.bfloat16, mx.bfloat16, mx.float32]


@dataclass(frozen=True)
class Pair:
    first: mx.array
    count: int


@pytest.mark.parametrize("name", sorted(registry.KERNELS))
def test_every_kernel_passes(metal_sim, name):
    assert self_check(registry.KERNELS[name]) is None
    assert metal_sim.launches


@pytest.mark.metal
@pytest.mark.parametrize("name", sorted(registry.KERNELS))
def test_every_kernel_passes_on_the_gpu(name):
    assert self_check(registry.KERNELS[name]) is None
