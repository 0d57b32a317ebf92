import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import assert_as_close, exact
from quantized_truth import microscaled, plain, product, quantized, vectors

from mlx_gemma4.kernels import quantized_matmul as op
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.quantized_matmul import quantized_matmul
from mlx_gemma4.kernels.quantized_matrix import QuantizedMatrix

MODES = [
    ("affine", 4, 64),
    ("affine", 4, 32),
    ("affine", 8, 64),
    ("affine", 3, 64),
    ("mxfp4", 4, 32),
    ("nvfp4", 4, 16),
    ("mxfp8", 8, 32),
]


@pytest.mark.parametrize("rows", [1, 3, 4, 33])
@pytest.mark.parametrize(("mode", "bits", "group_size"), MODES)
def test_equals_the_product_with_dequantized_values(rng, monkeypatch, mode, bits, group_size, rows):
    monkeypatch.setattr(op, "BLOCK_BYTES", 4 * 192 * 5)  # blocks of five rows; the last has two
    weight = mx.array(rng.normal(size=(22, 192)).astype(np.float32))
    x = mx.array(rng.normal(size=(1, rows, 192)).astype(np.float32))
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    packed, scales, *rest = mx.quantize(weight, **settings)
    biases = rest[0] if rest else None
    matrix = QuantizedMatrix(packed, scales, biases, **settings)
    out = quantized_matmul(x, matrix)
    values = mx.dequantize(packed, scales, biases, **settings).astype(mx.float32)
    truth = np.array(x).astype(np.float64) @ np.array(values).astype(np.float64).T
    assert out.shape == (1, rows, 22)
    assert out.dtype == mx.float32
    bound = 2 * abs(np.array(matrix.multiply(x)) - truth).max() + 1e-5
    assert abs(np.array(out) - truth).max() <= bound


@pytest.mark.parametrize("rows", [3, 4])
def test_dequantizes_from_four_rows_on(monkeypatch, rows):
    calls = []
    dequantize = mx.dequantize
    monkeypatch.setattr(mx, "dequantize", lambda *a, **k: calls.append(1) or dequantize(*a, **k))
    matrix = QuantizedMatrix(*mx.quantize(mx.ones((8, 64))), 64, 4)
    quantized_matmul(mx.ones((rows, 64)), matrix)
    assert bool(calls) == (rows >= 4)


def test_matrices_are_dequantized_one_after_the_other(rng):
    """MLX would dequantize those of several layers while the first is multiplied."""
    matrices = [quantized(rng, 512, 512, 4, 64, mx.float32) for _ in range(8)]
    x = mx.array(rng.normal(size=(64, 512)).astype(np.float32))
    mx.eval(x)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for matrix in matrices:
        x = 0.05 * quantized_matmul(x, matrix)
    mx.eval(x)
    assert mx.get_peak_memory() - before < 6 * 4 * 512 * 512


def test_other_dtypes_are_left_to_mlx():
    matrix = QuantizedMatrix(*mx.quantize(mx.ones((8, 64), mx.bfloat16)), 64, 4)
    out = quantized_matmul(mx.ones((9, 64), mx.bfloat16), matrix)
    assert out.dtype == mx.bfloat16
    assert np.array(out.astype(mx.float32)).tolist() == [[64.0] * 8] * 9


@pytest.mark.parametrize(
    ("rows", "exact_rows", "launched"),
    [
        (1, False, "quantized_matvec"),
        (1, True, "quantized_matvec"),
        (2, False, "quantized_matvec"),
        (4, False, "quantized_matvec"),
        (5, False, "quantized_small_batch"),
        (16, False, "quantized_small_batch"),
        (16, True, "quantized_matvec"),
        (17, True, "quantized_matvec"),
    ],
)
def test_rows_of_x_choose_the_kernel(rng, metal_sim, rows, exact_rows, launched):
    matrix = quantized(rng, 9, 64, 4, 64, mx.bfloat16)
    x = vectors(rng, rows, 64, mx.bfloat16)
    with registry.forced("quantized_matvec", "quantized_multivector", "quantized_small_batch"):
        out = quantized_matmul(x, matrix, exact=exact_rows)
    assert [launch.name for launch in metal_sim.launches] == [launched]
    assert_as_close([out], [plain(x, matrix)], [product(x, matrix)])


@pytest.mark.parametrize(
    ("on", "rows", "is_launched"),
    [
        ("quantized_matvec", 2, False),
        ("quantized_multivector", 1, False),
        ("quantized_multivector", 2, True),
        ("quantized_matvec", 5, False),
        ("quantized_small_batch", 4, False),
        ("quantized_small_batch", 17, False),
    ],
)
def test_a_kernel_is_chosen_on_its_own_merits(rng, metal_sim, on, rows, is_launched):
    matrix = quantized(rng, 9, 64, 4, 64, mx.bfloat16)
    with registry.forced(on):
        quantized_matmul(vectors(rng, rows, 64, mx.bfloat16), matrix)
    assert len(metal_sim.launches) == is_launched


@pytest.mark.parametrize(
    "matrix",
    [
        QuantizedMatrix(*mx.quantize(mx.ones((8, 64)), 64, 3), 64, 3),
        QuantizedMatrix(*mx.quantize(mx.ones((8, 128)), 128, 4), 128, 4),
        microscaled(8, 64),
        QuantizedMatrix(*mx.quantize(mx.ones((8, 64), mx.float16), 64, 4), 64, 4),
        QuantizedMatrix(*mx.quantize(mx.ones((1, 32)), 32, 4), 32, 4),
    ],
    ids=["bits", "group", "mode", "dtypes", "words"],
)
def test_what_does_not_fit_is_left_to_mlx(metal_sim, matrix):
    x = mx.ones((2, matrix.weight.shape[1] * 32 // matrix.bits))
    with registry.forced("quantized_matvec", "quantized_multivector"):
        for exact_rows in (False, True):
            out = quantized_matmul(x, matrix, exact=exact_rows)
            assert exact(out).tolist() == exact(matrix.multiply(x)).tolist()
    assert metal_sim.launches == []


@pytest.mark.parametrize("kernels", [(), ("quantized_matvec",)], ids=["plain", "kernel"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_exact_rows_are_what_they_are_alone(rng, metal_sim, dtype, kernels):
    matrix = quantized(rng, 9, 320, 4, 64, dtype)
    x = vectors(rng, 7, 320, dtype)
    with registry.forced(*kernels):
        together = quantized_matmul(x, matrix, exact=True)
        alone = [quantized_matmul(x[:, row : row + 1], matrix) for row in range(7)]
    assert together.shape == (1, 7, 9)
    assert np.array_equal(exact(together), exact(mx.concatenate(alone, axis=1)))
