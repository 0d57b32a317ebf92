"""The q4_0 grid: what was rounded to bfloat16 is found again, bit for bit, or refused.

All of the grid is written out here in NumPy, as its definition and as llama.cpp quantizes.
"""

import time

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.convert import q4_0
from mlx_gemma4.convert.q4_0 import GridFit, ScaleDtype, fit_rows, tensor_scale_dtype
from mlx_gemma4.errors import CheckpointError

R, K = 24, 256
NEGATIVE_ZERO = 0x8000


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to nearest and ties to even; uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_bfloat16(bits: np.ndarray) -> mx.array:
    return mx.array(bits).view(mx.bfloat16)


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def draw_scales(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Scales [R, K / 32] of both signs and of sizes over three orders of magnitude."""
    sizes = np.exp(rng.normal(-6, 1, (R, K // 32))) * rng.choice([-1, 1], (R, K // 32))
    return round_to(sizes.astype(np.float32), dtype)


def on_grid(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The definition: bfloat16 bits [R, K] of scale * (code - 8)."""
    return bfloat16_bits(np.repeat(scales, 32, axis=1) * (codes.astype(np.float32) - 8))


def unpack(codes: mx.array) -> np.ndarray:
    """Codes [R, K] of packed [R, K / 8], the first in the lowest bits."""
    words = np.array(codes)[..., None] >> (4 * np.arange(8, dtype=np.uint32))
    return (words & 15).reshape(len(codes), -1)


def dequantized_bits(fit: GridFit, dtype: str = "F32") -> np.ndarray:
    """What the fit promises: scale * code + bias in float32, rounded to bfloat16."""
    scales = np.repeat(round_to(np.array(fit.scales), dtype), 32, axis=1)
    biases = round_to(np.float32(-8) * scales, dtype)
    return bfloat16_bits(scales * unpack(fit.codes).astype(np.float32) + biases)


def assert_lossless(fit: GridFit, bits: np.ndarray, dtype: str = "F32") -> None:
    wanted = np.where(bits == NEGATIVE_ZERO, 0, bits)
    assert np.array_equal(dequantized_bits(fit, dtype), wanted)
    assert fit.num_negative_zeros == np.count_nonzero(bits == NEGATIVE_ZERO)


def quantize_as_llama(weights: np.ndarray, dtype: str) -> np.ndarray:
    """Return bfloat16 bits of weights after llama.cpp's q4_0.

    Source: ggml-quants.c, quantize_row_q4_0_ref and dequantize_row_q4_0.
    """
    blocks = weights.reshape(-1, 32)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scales = (peaks / -8).astype(np.float32)
    inverse = np.where(scales == 0, 0, 1 / np.where(scales == 0, 1, scales)).astype(np.float32)
    codes = np.minimum(15, (blocks * inverse + np.float32(8.5)).astype(np.int8))
    stored = round_to(scales, dtype)
    return bfloat16_bits((stored * (codes.astype(np.float32) - 8)).reshape(weights.shape))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_grid_is_found_bit_for_bit(rng: np.random.Generator, dtype: str) -> None:
    bits = on_grid(draw_scales(rng, dtype), rng.integers(0, 16, (R, K)))
    fit = fit_rows(as_bfloat16(bits))
    assert fit.codes.shape == (R, K // 8)
    assert fit.codes.dtype == mx.uint32
    assert fit.scales.shape == (R, K // 32)
    assert fit.scales.dtype == mx.float32
    found = tensor_scale_dtype([fit])
    assert found.dtype == dtype
    assert_lossless(fit, bits, dtype)
    assert_lossless(fit, bits)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_what_llama_cpp_quantizes_is_found(rng: np.random.Generator, dtype: str) -> None:
    weights = rng.standard_normal((R, K), np.float32) * np.float32(0.02)
    weights[3] = 0
    weights[4, 40:] = 0
    bits = quantize_as_llama(weights, dtype)
    fit = fit_rows(as_bfloat16(bits))
    assert (np.array(fit.scales) < 0).any()
    assert (np.array(fit.scales) > 0).any()
    assert fit.num_negative_zeros > 0
    assert_lossless(fit, bits, tensor_scale_dtype([fit]).dtype)
    assert tensor_scale_dtype([fit]).dtype == dtype


def test_blocks_that_need_more_are_counted(rng: np.random.Generator) -> None:
    """Every dtype's blocks counted by trying all bfloat16 and float16 scales, one by one."""
    scales = np.abs(draw_scales(rng, "F32"))
    codes = rng.integers(0, 15, (R, K))
    codes[:, ::32] = 0
    bits = on_grid(scales, codes)
    wanted = {"BF16": 0, "F16": 0}
    for row, column in np.ndindex(scales.shape):
        block = slice(32 * column, 32 * column + 32)
        near = scales[row, column] * np.linspace(0.99, 1.01, 2_001, dtype=np.float32)
        for dtype in wanted:
            tried = np.unique(round_to(near, dtype))[:, None]
            same = bfloat16_bits(tried * (codes[row, block] - 8)) == bits[row, block]
            wanted[dtype] += not same.all(axis=1).any()
    assert 0 < wanted["F16"] < wanted["BF16"]
    found = tensor_scale_dtype(fit_rows(as_bfloat16(bits[k : k + 8])) for k in (0, 8, 16))
    assert found == ScaleDtype("F32", scales.size, wanted["BF16"], wanted["F16"], 0)


@pytest.mark.parametrize("peak", range(1, 8))
def test_blocks_that_use_few_steps(rng: np.random.Generator, peak: int) -> None:
    bits = on_grid(draw_scales(rng, "F16"), 8 + rng.integers(-peak, peak + 1, (R, K)))
    fit = fit_rows(as_bfloat16(bits))
    assert fit.in_float16.all()
    assert_lossless(fit, bits, "F16")
    if peak < 3:  # two values, or one: the larger is a bfloat16 number, and so is half of it
        assert fit.in_bfloat16.all()


@pytest.mark.parametrize("exponent", [-133, -130, -126, -120, -24, -17, -14, 0, 13, 100, 116])
def test_blocks_of_any_size(rng: np.random.Generator, exponent: int) -> None:
    """From subnormal bfloat16 to 1e35; in float16's range both dtypes have the scale."""
    significands = rng.integers(128, 256, (R, K // 32)) if exponent > -126 else 2
    scales = np.broadcast_to(np.ldexp(np.float32(1), exponent), (R, K // 32)) * significands
    scales = scales.astype(np.float32) / np.float32(128 if exponent > -126 else 1)
    bits = on_grid(scales, rng.integers(0, 16, (R, K)))
    fit = fit_rows(as_bfloat16(bits))
    assert fit.in_bfloat16.all()
    assert fit.in_float16.all() == (-17 <= exponent <= 11)
    assert_lossless(fit, bits, "BF16")


def test_zeros_are_zeros() -> None:
    bits = np.zeros((2, 64), np.uint16)
    bits[1, ::2] = NEGATIVE_ZERO
    fit = fit_rows(as_bfloat16(bits))
    assert tensor_scale_dtype([fit]) == ScaleDtype("BF16", 4, 0, 0, 32)
    assert_lossless(fit, bits, "BF16")


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_mlx_dequantizes_to_the_same_weights(rng: np.random.Generator, dtype: str) -> None:
    bits = on_grid(draw_scales(rng, "F16"), rng.integers(0, 16, (R, K)))
    fit = fit_rows(as_bfloat16(bits))
    scales = fit.scales.astype({"F32": mx.float32, "F16": mx.float16}[dtype])
    weights = mx.dequantize(fit.codes, scales, -8 * scales, group_size=32, bits=4)
    found = np.array(weights.astype(mx.bfloat16).view(mx.uint16)).astype(int)
    away = np.abs(found - np.where(bits == NEGATIVE_ZERO, 0, bits))
    if dtype == "F32":
        assert not away.any()
    else:
        assert away.max() <= 1  # rounded twice
        assert (away > 0).mean() < 0.1


def test_steps_do_not_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = on_grid(draw_scales(rng, "F16"), rng.integers(0, 16, (R, K)))
    whole = fit_rows(as_bfloat16(bits))
    monkeypatch.setattr(q4_0, "_STEP_WEIGHTS", 5 * 32)
    pieces = fit_rows(as_bfloat16(bits))
    assert mx.array_equal(pieces.codes, whole.codes)
    assert mx.array_equal(pieces.scales, whole.scales)
    assert np.array_equal(pieces.in_bfloat16, whole.in_bfloat16)


def test_float32_rows_are_taken_if_bfloat16_has_them(rng: np.random.Generator) -> None:
    bits = on_grid(draw_scales(rng, "BF16"), rng.integers(0, 16, (R, K)))
    rows = as_bfloat16(bits).astype(mx.float32)
    assert_lossless(fit_rows(rows), bits)
    with pytest.raises(CheckpointError, match="no q4_0 grid: it has values that bfloat16 lacks"):
        fit_rows(rows * 1.001)


def test_one_weight_off_the_grid_is_named(rng: np.random.Generator) -> None:
    scales = np.abs(draw_scales(rng, "F16"))
    codes = rng.integers(0, 16, (R, K))
    codes[:, ::32] = 0
    bits = on_grid(scales, codes)
    off = (scales[17, 4] * np.float32(2.3)).astype(np.float32)
    bits[17, 4 * 32 + 5] = bfloat16_bits(off[None])[0]
    with pytest.raises(CheckpointError) as caught:
        fit_rows(as_bfloat16(bits), first_row=1000)
    message = str(caught.value)
    assert "in row 1,017, columns 128 to 159, a weight is 0.3 of a step away" in message
    assert f"so it is in 1 of {R * K // 32} blocks here" in message
    assert "take Google's qat-q4_0-unquantized checkpoint" in message


def test_a_last_bit_is_enough_to_be_refused(rng: np.random.Generator) -> None:
    """The grid is exact: a weight one unit in the last place away is on none."""
    codes = rng.integers(0, 16, (1, 32))
    codes[0, :8] = np.arange(0, 8)
    bits = on_grid(np.full((1, 1), 0.0625, np.float32), codes)
    fit_rows(as_bfloat16(bits))
    bits[0, 3] += 1
    with pytest.raises(CheckpointError, match=r"in 1 of 1 blocks"):
        fit_rows(as_bfloat16(bits))


def test_plus_and_minus_eight_are_not_on_one_grid() -> None:
    codes = np.arange(32)[None] % 17
    bits = on_grid(np.full((1, 1), 0.01, np.float32), codes)
    with pytest.raises(CheckpointError, match="no q4_0 grid"):
        fit_rows(as_bfloat16(bits))
    even = on_grid(np.full((1, 1), 0.01, np.float32), codes // 2 * 2)  # -8 to 8 by twos: 4 steps
    assert_lossless(fit_rows(as_bfloat16(even)), even)


def test_random_weights_lie_on_no_grid(rng: np.random.Generator) -> None:
    bits = bfloat16_bits(rng.standard_normal((R, K), np.float32))
    with pytest.raises(
        CheckpointError, match=rf"in row 0, columns 0 to 31.* in {R * K // 32:,} of"
    ):
        fit_rows(as_bfloat16(bits))


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC0, 0x7F00])
def test_values_that_are_no_weights_are_refused(value: int) -> None:
    bits = np.zeros((2, 64), np.uint16)
    bits[1, 40] = value
    with pytest.raises(
        CheckpointError, match="in row 1, columns 32 to 63, there are values beyond"
    ):
        fit_rows(as_bfloat16(bits))


@pytest.mark.parametrize(("dtype", "least_mb_per_s"), [("BF16", 60), ("F16", 20)])
def test_is_fast_enough_for_twelve_billion(
    rng: np.random.Generator, dtype: str, least_mb_per_s: float
) -> None:
    """A third of what a quiet machine does, in processor time."""
    weights = rng.standard_normal((256, 3840), np.float32) * np.float32(0.02)
    rows = as_bfloat16(quantize_as_llama(weights, dtype))
    mx.eval(rows)
    times = []
    for _ in range(3):
        start = time.process_time()
        fit_rows(rows)
        times.append(time.process_time() - start)
    assert rows.nbytes / min(times) > 1e6 * least_mb_per_s
