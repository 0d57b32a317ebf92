"""Rows unpacked a block of keys at a time: the same attention, and memory that does not grow."""

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close
from shared_truth import FORMATS, shared_truth

from mlx_gemma4.kernels import online_attention as op
from mlx_gemma4.kernels import shared_decode
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.shared_rows import RowFormat, SharedRows

COMPACT = [name for name in FORMATS if name != "shared_decode"]
of_formats = pytest.mark.parametrize("row_format", COMPACT)


def call(dtype, starts, L, row_format, *, H=4, K=2, Dh=96, rotated=32):
    bits, has_keys = FORMATS[row_format]
    return shared_decode.shared_case(
        "", dtype, starts, L, H=H, K=K, Dh=Dh, rotated=rotated, bits=bits, has_keys=has_keys
    ).arguments


def check(arguments, block_keys):
    """In blocks as near to the truth as all at once."""
    q, *_ = arguments
    whole = shared_decode.define(*arguments, block_keys=10**6)
    blocks = shared_decode.define(*arguments, block_keys=block_keys)
    assert blocks[0].dtype == q.dtype
    assert_as_close(blocks, whole, [shared_truth(*arguments)])


@of_formats
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("block_keys", [1, 16, 50])
def test_blocks_of_keys(dtype, row_format, block_keys):
    check(call(dtype, [47], 3, row_format), block_keys)


@of_formats
def test_rows_of_a_batch_have_positions_of_their_own(row_format):
    check(call(mx.float32, [90, 2, 40], 5, row_format), 16)


@pytest.mark.parametrize("start", [0, 100])
def test_a_prompt_in_blocks_of_queries(start):
    L = op.BLOCK_QUERIES + 40
    check(call(mx.float32, [start], L, "shared_decode_int8", H=2, K=1), 64)


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_scores_that_are_equal_and_that_are_far_apart(scale):
    q, *rest = call(mx.float32, [90], 3, "value_decode")
    check((scale * q, *rest), 16)


def test_intervals_may_begin_late(rng):
    q, rows, mask, *rest = call(mx.float32, [60, 60], 4, "value_decode_int8")
    lo = rng.integers(20, 50, mask.lo.shape).astype(np.int32)
    mask = IntervalMask(lo, mask.hi, mask.key_positions)
    check((q, rows, mask, *rest), 16)


def test_what_no_query_sees_is_not_unpacked():
    q, rows, mask, *rest = call(mx.float32, [60], 1, "shared_decode_int8")
    seen = []

    def fetch(start, stop, after):
        seen.append((start, stop))
        return rows.keys_and_values(start, stop, q.shape[-1], *rest)

    mask = IntervalMask(mask.lo + 20, mask.hi - 10, mask.key_positions)
    mx.eval(op.online_attention(q, fetch, mask, 2, 16))
    assert seen == [(20, 36), (36, 51)]


@of_formats
@pytest.mark.parametrize(
    ("dtype", "length", "context"), [(mx.bfloat16, 1, 50_000), (mx.float32, 256, 20_000)], ids=str
)
def test_memory_does_not_grow_with_the_context(row_format, dtype, length, context):
    """A head of the 12B's size: all keys and values at once would double it."""
    peaks = []
    for used in (context, 2 * context):
        bits, has_keys = FORMATS[row_format]
        parts = RowFormat(bits, has_keys).pack(mx.zeros((1, 1, used, 640), dtype), 128)
        mx.eval(parts)
        buffer, *scales = parts
        rows = SharedRows(buffer, scales[0] if scales else None, used)
        q = mx.zeros((1, 2, length, 512), dtype)
        hi = np.arange(used - length, used, dtype=np.int32)[None]
        mask = IntervalMask(0 * hi, hi, np.arange(used, dtype=np.int32)[None])
        arguments = q, rows, mask, mx.ones(128, dtype), mx.ones(64)
        del parts, buffer, scales
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(shared_decode.define(*arguments))
        peaks.append(mx.get_peak_memory() - before)
        del arguments, rows, q
    assert peaks[1] < 1.25 * peaks[0]
    assert peaks[1] < 10 * op.BLOCK_BYTES
