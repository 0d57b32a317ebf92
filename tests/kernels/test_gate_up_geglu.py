import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact
from quantized_truth import (
    FEW_FORMATS,
    FORMATS,
    in_float32,
    microscaled,
    product,
    quantized,
    vectors,
)

from mlx_gemma4.kernels import gate_up_geglu as op
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.gate_up_geglu import gate_up_geglu
from mlx_gemma4.kernels.kernel import dtype_name

# M, N, K: one row, an odd one; less than half a step, half, more than half, steps and half
SHAPES = [(1, 1, 64), (1, 7, 128), (1, 6, 320), (2, 3, 704), (1, 2, 3840)]


def drawn(rng, M, N, K, bits, group_size, dtype):
    gate, up = (quantized(rng, N, K, bits, group_size, dtype) for _ in range(2))
    return vectors(rng, M, K, dtype), gate, up


def truth(x, gate, up):
    g, u = product(x, gate), product(x, up)
    return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u


def plain(x, gate, up):
    out = op.define(x.astype(mx.float32), in_float32(gate), in_float32(up))[0]
    return out.astype(x.dtype)


def check(x, gate, up):
    assert_as_close(op.launch(x, gate, up), [plain(x, gate, up)], [truth(x, gate, up)])


def check_drawn(rng, M, N, K, bits, group_size, dtype=mx.float32, scale=1):
    x, gate, up = drawn(rng, M, N, K, bits, group_size, dtype)
    check(scale * x, gate, up)


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_definition(rng, M, N, K):
    arguments = drawn(rng, M, N, K, 4, 64, mx.float32)
    expected = truth(*arguments)
    (out,) = op.define(*arguments)
    assert abs(exact(out) - expected).max() <= 1e-5 * abs(expected).max()


@pytest.mark.parametrize(("dtype", "bits", "group_size"), FEW_FORMATS)
def test_kernel(rng, metal_sim, dtype, bits, group_size):
    for M, N, K in [*SHAPES, *([(1, 3, 96)] if group_size == 32 else [])]:
        check_drawn(rng, M, N, K, bits, group_size, dtype)
    assert {launch.name for launch in metal_sim.launches} == {"gate_up_geglu"}


def test_rows_of_x(rng, metal_sim):
    _, gate, up = drawn(rng, 1, 9, 320, 4, 64, mx.bfloat16)
    for M in [3, 4, 11, 18]:
        check(vectors(rng, M, 320, mx.bfloat16), gate, up)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32)])
def test_reads_both_matrices_once_at_the_12bs_width(rng, metal_sim, bits, group_size):
    metal_sim.mode = "run"
    x, gate, up = drawn(rng, 1, 64, 3840, bits, group_size, mx.bfloat16)
    check(x, gate, up)
    metal_sim.mode = "count"
    op.launch(x, gate, up)
    counts = metal_sim.launches[-1].counts
    names = ["gate", "gate_scales", "gate_biases", "up", "up_scales", "up_biases"]
    traffic = sum(counts.read[name].by_threadgroup for name in names)
    stored = sum(m.weight.nbytes + m.scales.nbytes + m.biases.nbytes for m in (gate, up))
    assert traffic <= 1.02 * stored


@pytest.mark.parametrize(("dtype", "bits", "group_size"), FEW_FORMATS[:2])
def test_a_row_of_x_gives_the_same_bits_among_others(rng, metal_sim, dtype, bits, group_size):
    metal_sim.mode = "run"
    for _ in range(12):
        M, K = int(rng.integers(2, 17)), group_size * int(rng.integers(1, 22))
        x, gate, up = drawn(rng, M, int(rng.integers(1, 6)), K, bits, group_size, dtype)
        together = exact(op.launch(x, gate, up)[0])
        alone = [exact(op.launch(x[:, m : m + 1], gate, up)[0]) for m in range(M)]
        assert np.array_equal(together, np.concatenate(alone, axis=1))


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_large_gates_stay_finite(rng, metal_sim, scale):
    x, gate, up = drawn(rng, 1, 5, 64, 4, 64, mx.float32)
    x = scale * x
    check(x, gate, up)
    assert np.isfinite(exact(op.launch(x, gate, up)[0])).all()


@pytest.mark.parametrize(
    ("M", "on", "exact_rows", "launched"),
    [
        (1, "gate_up_geglu", False, ["gate_up_geglu"]),
        (3, "gate_up_geglu", True, ["gate_up_geglu"]),
        (3, "gate_up_geglu quantized_multivector", False, ["gate_up_geglu"]),
        (3, "gate_up_geglu", False, []),
        (5, "gate_up_geglu quantized_multivector quantized_small_batch", False, 2),
        (1, "quantized_matvec", False, 2),
        (1, "", False, []),
    ],
)
def test_chooses(rng, metal_sim, M, on, exact_rows, launched):
    arguments = drawn(rng, M, 5, 64, 4, 64, mx.float32)
    with registry.forced(*on.split()):
        out = gate_up_geglu(*arguments, exact=exact_rows)
    names = [launch.name for launch in metal_sim.launches]
    assert names == ([on.split()[-1]] * launched if isinstance(launched, int) else launched)
    assert_as_close([out], op.define(*arguments), [truth(*arguments)])


def test_matrices_that_differ_are_multiplied_apart(rng, metal_sim):
    x, gate, _ = drawn(rng, 1, 8, 64, 4, 64, mx.float32)
    others = [
        quantized(rng, 8, 64, 8, 64, mx.float32),
        quantized(rng, 8, 64, 4, 32, mx.float32),
        microscaled(8, 64),
    ]
    for other in others:
        with registry.forced("gate_up_geglu"):
            out = gate_up_geglu(x, gate, other)
        assert metal_sim.launches == []
        assert exact(out).tolist() == exact(op.define(x, gate, other)[0]).tolist()


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_kernel_on_the_gpu(rng, bits, group_size, dtype):
    for M, N, K in [*SHAPES, (1, 64, 3840), (16, 64, 3840)]:
        check_drawn(rng, M, N, K, bits, group_size, dtype)
