"""The q4_0 grid: 32 weights on sixteen steps of one size, taken over from bfloat16 without loss.

Google's `qat-q4_0-unquantized` holds, in bfloat16, the values of a 4-bit model:

    weight = bfloat16(scale * (code - 8)),  code 0..15, one scale for 32 columns of a row

Here code and scale are found again.  Dequantizing is then, in float32 and rounded once at the end,

    weight = bfloat16(scale * code + bias),  bias = -8 * scale

which gives every weight its bits back; only a zero's sign is lost, since x - x is +0.  No step but
the last rounds, whatever the order and with or without fused operations: scales that are found have
at most 20 significant bits, and codes have 4.

What the scales were stored in is not known.  Rounding hides it: half of the blocks that come from a
float16 scale have a bfloat16 one that does as well.  So each block gets the scale that fits the
narrowest dtype, and a matrix the narrowest dtype that is exact for all of its blocks.

MLX computes in the dtype of scales and biases.  Of a random matrix quantized as llama.cpp does it,
`mx.dequantize` on a CPU (0.32.4) gives, once rounded to bfloat16, all of these weights with float32
scales, all but 1 to 5 % with float16 ones, and half of them with bfloat16 ones: product and sum
are rounded, and a weight may be 0.08 of a step away.
This package loads scales as float32 on a CPU; other runtimes, and a GPU in bfloat16, see that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_gemma4.convert.nibbles import pack_nibbles
from mlx_gemma4.errors import CheckpointError

BLOCK_SIZE = 32

# Weights in one step: its arrays stay in a core's cache.
_STEP_WEIGHTS = 1 << 17
# Largest magnitude of code - 8 in a block.  4, 2, and 1 are found as 8, and 3 as 6.
_PEAKS = (8, 7, 6, 5)
# Bits of a bfloat16 below which steps could be subnormal, so that ratios no longer tell codes.
_TINY = (127 - 122) << 7
# Bits of bfloat16 peaks from 2**-13, so that an eighth of one is a float16 number too, to 2**120.
_USUAL_BITS = ((127 - 13) << 7, (127 + 120) << 7)


@dataclass(frozen=True)
class GridFit:
    """Rows on the grid.

    Attributes:
        codes: [R, K / 8] uint32, packed as MLX has them.
        scales: [R, K / 32] float32; negative where a block needs code 0 for its positive peak.
        in_bfloat16: [R, K / 32] bool, whether this scale, and 8 times it, are bfloat16 numbers.
        in_float16: The same of float16.
        num_negative_zeros: Weights that are -0 and become +0.
    """

    codes: mx.array
    scales: mx.array
    in_bfloat16: np.ndarray
    in_float16: np.ndarray
    num_negative_zeros: int


@dataclass(frozen=True)
class ScaleDtype:
    """The dtype that the scales of a matrix need.

    Attributes:
        dtype: "BF16", "F16", or "F32": the first that is exact for all blocks.
        num_blocks: Of 32 weights.
        num_beyond_bfloat16: Blocks that no bfloat16 scale gives.
        num_beyond_float16: Blocks that no float16 scale gives.
        num_negative_zeros: Weights that are -0 and become +0.
    """

    dtype: Literal["BF16", "F16", "F32"]
    num_blocks: int
    num_beyond_bfloat16: int
    num_beyond_float16: int
    num_negative_zeros: int


def tensor_scale_dtype(fits: Iterable[GridFit]) -> ScaleDtype:
    """Return the narrowest dtype of scales that is exact for a whole matrix.

    Args:
        fits: Of all its rows, some at a time; none is kept.
    """
    blocks = beyond_bfloat16 = beyond_float16 = negative_zeros = 0
    for fit in fits:
        blocks += fit.in_bfloat16.size
        beyond_bfloat16 += int(np.count_nonzero(~fit.in_bfloat16))
        beyond_float16 += int(np.count_nonzero(~fit.in_float16))
        negative_zeros += fit.num_negative_zeros
    dtype = "BF16" if not beyond_bfloat16 else "F16" if not beyond_float16 else "F32"
    return ScaleDtype(dtype, blocks, beyond_bfloat16, beyond_float16, negative_zeros)


def fit_rows(rows: mx.array, *, first_row: int = 0) -> GridFit:
    """Find the codes and scales that rows were made from.

    Args:
        rows: [R, K], K a multiple of 32; bfloat16, or values that it has.
        first_row: Number of the first one, for messages.

    Raises:
        CheckpointError: A block lies on no grid; the first is named, and how far off it is.
    """
    bits = _bits_of(rows)
    R, K = bits.shape
    blocks = bits.reshape(-1, BLOCK_SIZE)
    packed = np.empty((len(blocks), BLOCK_SIZE // 2), np.uint8)
    scales = np.empty(len(blocks), np.float32)
    is_found = np.empty(len(blocks), np.bool_)
    num_negative_zeros = 0
    size = _STEP_WEIGHTS // BLOCK_SIZE
    for start in range(0, len(blocks), size):
        step = slice(start, start + size)
        # Blocks in columns: NumPy is ten times slower along an axis of 32.
        columns = np.ascontiguousarray(blocks[step].T)
        num_negative_zeros += int(np.count_nonzero(columns == 0x8000))
        codes, scales[step], is_found[step] = _fit(columns)
        pack_nibbles(codes, packed[step])
    if not is_found.all():
        raise _off_grid(blocks, is_found, K // BLOCK_SIZE, first_row)
    scales = scales.reshape(R, -1)
    return GridFit(
        mx.array(packed.view(np.uint32).reshape(R, -1)),
        mx.array(scales),
        _is_bfloat16(scales) & _is_bfloat16(8 * scales),
        _is_float16(scales) & _is_float16(8 * scales),
        num_negative_zeros,
    )


def _bits_of(rows: mx.array) -> np.ndarray:
    """Return the bits of rows as bfloat16, uint16."""
    rounded = rows.astype(mx.bfloat16)
    if not mx.array_equal(rounded.astype(rows.dtype), rows, equal_nan=True):
        raise CheckpointError(
            "the matrix lies on no q4_0 grid: it has values that bfloat16 lacks; take Google's "
            "qat-q4_0-unquantized checkpoint, or another recipe"
        )
    return np.array(rounded.view(mx.uint16), copy=False)


def _fit(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit blocks that stand in columns.

    Args:
        bits: [32, N] uint16, of bfloat16 weights.

    Returns:
        Codes [32, N] uint8, scales [N] float32, and whether a fit was found [N].
    """
    magnitudes, is_negative = bits & 0x7FFF, (bits >> 15).astype(np.bool_)
    peaks = magnitudes.max(axis=0)
    steps, scales, is_found = _fit_to_peak(magnitudes, peaks)
    is_found &= ~_has_both_eights(steps, is_negative)
    is_normal = (peaks >= _TINY) & (peaks < _USUAL_BITS[1])
    for peak in _PEAKS:
        (rest,) = np.nonzero(~is_found & is_normal)
        if not len(rest):
            break
        of_rest, of_scales, fits = _fit_to_interval(magnitudes[:, rest], peaks[rest], peak)
        fits &= ~_has_both_eights(of_rest, is_negative[:, rest])
        found = rest[fits]
        steps[:, found], scales[found], is_found[found] = of_rest[:, fits], of_scales[fits], True
    for index in np.nonzero(~is_found & (peaks < _TINY))[0]:
        steps[:, index], scales[index] = _fit_tiny(magnitudes[:, index])
        is_found[index] = scales[index] > 0
    # The grid has -8 and no +8: a scale below 0 makes one of the other.
    is_flipped = ((steps == 8) & ~is_negative).any(axis=0)
    np.negative(scales, out=scales, where=is_flipped)
    # 8 + steps, or 8 - steps, by arithmetic: a mask of NumPy's costs as much as all the rest.
    is_below = (is_negative ^ is_flipped).astype(np.uint8)
    steps ^= -is_below
    steps += is_below
    steps += 8
    return steps, scales, is_found


def _has_both_eights(steps: np.ndarray, is_negative: np.ndarray) -> np.ndarray:
    """Whether a block has -8 and +8, which are not on one grid, [N] bool."""
    is_eight = steps == 8
    return (is_eight & is_negative).any(axis=0) & (is_eight & ~is_negative).any(axis=0)


def _fit_to_peak(
    magnitudes: np.ndarray, peaks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Try what llama.cpp does: the scale is an eighth of the peak, which is a bfloat16 number.

    Args:
        magnitudes: [32, N] uint16, bits of bfloat16.
        peaks: [N] uint16, the largest of each block.

    Returns:
        Steps [32, N] uint8, up to 8, scales [N], and whether they give the magnitudes [N].
    """
    is_usual = (peaks >= _USUAL_BITS[0]) & (peaks < _USUAL_BITS[1])
    largest = _as_float32(np.where(is_usual, peaks, np.uint16(_USUAL_BITS[0])))
    wanted = magnitudes.astype(np.uint32)
    wanted <<= 16
    weights = wanted.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # of blocks that are not usual
        steps = weights * (8 / largest)
        np.rint(steps, out=steps)
        products = steps * (largest / 8)
        is_found = is_usual & _is_rounded_to(products, wanted)
        steps = steps.astype(np.uint8)
    is_zero = peaks == 0
    steps[:, is_zero] = 0
    return steps, np.where(is_zero, np.float32(0), largest / 8), is_found | is_zero


def _is_rounded_to(products: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether float32 products [32, N], of blocks in columns, are bfloat16 bits once rounded.

    Args:
        products: Overwritten.
        wanted: [32, N] uint32, the lower 16 bits 0.

    Returns:
        [N] bool.
    """
    bits = products.view(np.uint32)
    half = bits >> 16
    half &= 1
    half += 0x7FFF
    bits += half
    bits ^= wanted
    return bits.max(axis=0) < 1 << 16


def _fit_to_interval(
    magnitudes: np.ndarray, peaks: np.ndarray, peak: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit blocks whose largest magnitude is `peak` steps, with the simplest scale that does.

    Each weight leaves an interval of scales that round to it; the block's is what all have in
    common.  Ends of intervals lie halfway between bfloat16 numbers and count where the weight is
    even.  float32 is exact enough to compare them with scales of up to 20 bits.

    Args:
        magnitudes: [32, N] uint16, bits of bfloat16.
        peaks: [N] uint16, the largest of each block, none tiny or huge.
        peak: 5 to 8.

    Returns:
        Steps [32, N] uint8, up to 8, scales [N] above 0, and whether they give the magnitudes [N].
    """
    wanted = magnitudes.astype(np.uint32)
    wanted <<= 16
    steps = wanted.view(np.float32) * (np.float32(peak) / _as_float32(peaks))
    steps = np.rint(steps, out=steps).astype(np.uint8)
    is_zero = steps == 0
    is_possible = ~(is_zero & (magnitudes != 0)).any(axis=0)
    # Steps that are all even are half as many of twice the size, which float16 sooner has.
    halvings = _TRAILING_ZEROS[np.bitwise_or.reduce(steps, axis=0) & 15]
    steps >>= halvings
    # A zero says nothing of the scale; the peak in its place says nothing new.
    counted = (steps + is_zero * (peak >> halvings)).astype(np.float32)
    middle = wanted + is_zero * (peaks.astype(np.uint32) << 16)
    reach = middle >> 16
    reach &= 1
    np.subtract(0x8000, reach, out=reach)
    low = middle - reach
    middle += reach
    with np.errstate(all="ignore"):  # of blocks that are not possible
        low = np.divide(low.view(np.float32), counted, out=low.view(np.float32)).max(axis=0)
        high = np.divide(middle.view(np.float32), counted, out=middle.view(np.float32)).min(axis=0)
    scales, is_possible = _simplest(low, high, is_possible & (low <= high))
    return steps, scales, is_possible & _is_rounded_to(steps * scales, wanted)


def _simplest(
    low: np.ndarray, high: np.ndarray, is_possible: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the narrowest dtype in each interval, and whether there is one.

    One that bfloat16 and float16 have, else one of bfloat16, else of float16, else one of the
    fewest bits.  Of a dtype, the number next to the middle is in the interval if any is.
    """
    low, high = np.where(is_possible, low, 1), np.where(is_possible, high, 1)
    middle = low + (high - low) / 2
    brief, half = _round_to_bfloat16(middle), _round_to_float16(middle)
    choices = [(brief, _is_float16(brief)), (half, _is_bfloat16(half))]
    choices += [(brief, True), (half, True)]
    choices += [(_round_to_bits(middle, bits), True) for bits in range(12, 21)]
    scales = np.zeros_like(middle)
    for choice, is_wanted in choices:
        is_better = (scales == 0) & is_wanted & (low <= choice) & (choice <= high)
        scales = np.where(is_better, choice, scales)
    return scales, is_possible & (scales > 0)


def _fit_tiny(magnitudes: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit one block near the end of bfloat16's range by trying every bfloat16 scale.

    Args:
        magnitudes: [32] uint16, bits of bfloat16.

    Returns:
        Steps [32] uint8, up to 8, and the scale, 0 if there is none.
    """
    scales = _as_float32(np.arange(1, int(magnitudes.max()) + 1, dtype=np.uint16))
    weights = _as_float32(magnitudes)
    steps = np.rint(weights / scales[:, None])
    is_exact = (_round_to_bfloat16(steps * scales[:, None]) == weights) & (steps <= 8)
    (fitting,) = np.nonzero(is_exact.all(axis=1))
    if not len(fitting):
        return np.zeros(BLOCK_SIZE, np.uint8), 0.0
    return steps[fitting[-1]].astype(np.uint8), float(scales[fitting[-1]])


def _off_grid(
    blocks: np.ndarray, is_found: np.ndarray, blocks_of_row: int, first_row: int
) -> CheckpointError:
    """Return the error for blocks that lie on no grid."""
    first = int(np.argmin(is_found))
    row, column = first_row + first // blocks_of_row, first % blocks_of_row * BLOCK_SIZE
    weights = _as_float32(blocks[first] & 0x7FFF).astype(np.float64)
    if (blocks[first] & 0x7FFF).max() < _USUAL_BITS[1]:
        ratios = weights / weights.max() * np.arange(1, 9)[:, None]
        off = np.abs(ratios - np.rint(ratios)).max(axis=1).min()
        how = f"a weight is {off:.2g} of a step away from the nearest of its 16 values"
    else:
        how = "there are values beyond 1e36, or not finite"
    num_off = int(np.count_nonzero(~is_found))
    return CheckpointError(
        f"the matrix lies on no q4_0 grid: in row {row:,}, columns {column:,} to "
        f"{column + BLOCK_SIZE - 1:,}, {how}; so it is in {num_off:,} of {len(blocks):,} blocks "
        "here; take Google's qat-q4_0-unquantized checkpoint, or another recipe"
    )


# Of the numbers 0 to 15, the zero for what has no steps at all.
_TRAILING_ZEROS = np.array([0, 0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0], np.uint8)


def _as_float32(bits: np.ndarray) -> np.ndarray:
    """Return the values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round_to_bits(values: np.ndarray, num_bits: int) -> np.ndarray:
    """Round float32 values, finite and normal, to significant bits: to nearest, ties to even."""
    dropped = 24 - num_bits
    bits = values.view(np.uint32)
    bits = bits + ((bits >> dropped) & 1) + np.uint32((1 << (dropped - 1)) - 1)
    bits &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return bits.view(np.float32)


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to bfloat16's, subnormal ones too."""
    return _round_to_bits(values, 8)


def _round_to_float16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to float16's, subnormal ones too."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _is_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) & 0xFFFF) == 0


def _is_float16(values: np.ndarray) -> np.ndarray:
    return _round_to_float16(values) == values
