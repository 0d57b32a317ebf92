import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.kernels import quantized_matmul as op
from mlx_gemma4.kernels.quantized_matmul import quantized_matmul

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
    out = quantized_matmul(x, packed, scales, biases, **settings)
    matrix = mx.dequantize(packed, scales, biases, **settings).astype(mx.float32)
    truth = np.array(x).astype(np.float64) @ np.array(matrix).astype(np.float64).T
    assert out.shape == (1, rows, 22)
    assert out.dtype == mx.float32
    stock = mx.quantized_matmul(x, packed, scales, biases, True, **settings)
    bound = 2 * abs(np.array(stock) - truth).max() + 1e-5
    assert abs(np.array(out) - truth).max() <= bound


@pytest.mark.parametrize("rows", [3, 4])
def test_dequantizes_from_four_rows_on(monkeypatch, rows):
    calls = []
    dequantize = mx.dequantize
    monkeypatch.setattr(mx, "dequantize", lambda *a, **k: calls.append(1) or dequantize(*a, **k))
    packed, scales, biases = mx.quantize(mx.ones((8, 64)))
    x = mx.ones((rows, 64))
    quantized_matmul(x, packed, scales, biases, group_size=64, bits=4, mode="affine")
    assert bool(calls) == (rows >= 4)


def test_other_dtypes_are_left_to_mlx():
    packed, scales, biases = mx.quantize(mx.ones((8, 64), mx.bfloat16))
    x = mx.ones((9, 64), mx.bfloat16)
    out = quantized_matmul(x, packed, scales, biases, group_size=64, bits=4, mode="affine")
    assert out.dtype == mx.bfloat16
    assert np.array(out.astype(mx.float32)).tolist() == [[64.0] * 8] * 9
