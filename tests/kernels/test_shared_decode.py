from collections import Counter
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact
from shared_truth import FORMATS, shared_truth

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels import shared_decode as op
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.shared_attention import shared_attention
from mlx_gemma4.kernels.shared_rows import SharedRows

# H, K, Dh, rotated
HEADS = [(16, 1, 512, 128), (2, 1, 512, 128), (4, 2, 256, 128), (3, 1, 384, 256), (1, 1, 256, 128)]
of_formats = pytest.mark.parametrize("row_format", FORMATS)
of_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def call(dtype, starts, L, heads=(2, 1, 512, 128), row_format="shared_decode"):
    H, K, Dh, rotated = heads
    bits, has_keys = FORMATS[row_format]
    case = op.shared_case(
        "", dtype, starts, L, H=H, K=K, Dh=Dh, rotated=rotated, bits=bits, has_keys=has_keys
    )
    return case.arguments


def check(arguments, metal_sim):
    plain = op.define(*arguments)
    assert metal_sim.launches == []
    assert_as_close(op.launch(*arguments), plain, [shared_truth(*arguments)])


@of_formats
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads(metal_sim, heads, row_format):
    check(call(mx.float32, [21], 2, heads, row_format), metal_sim)


@of_formats
@of_dtypes
@pytest.mark.parametrize("L", [1, 7])
def test_lengths(metal_sim, dtype, L, row_format):
    check(call(dtype, [40], L, (2, 1, 256, 128), row_format), metal_sim)


def test_a_draft_of_sixteen(metal_sim):
    check(call(mx.bfloat16, [40], 16), metal_sim)


@pytest.mark.parametrize("context", [0, 1, 14, 15, 16, 17, 30, 31, 32])
def test_contexts_around_a_tile_of_keys(metal_sim, context):
    for row_format in ("shared_decode", "value_decode_int8"):
        check(call(mx.float32, [context], 1, (2, 1, 256, 128), row_format), metal_sim)
        metal_sim.clear()


@of_formats
@pytest.mark.parametrize("context", [128, 255, 700])
def test_keys_are_split(metal_sim, context, row_format):
    check(call(mx.float32, [context], 3, (2, 1, 256, 128), row_format), metal_sim)
    launched = Counter(launch.name for launch in metal_sim.launches)
    assert launched == {"shared_decode": 1, "merge_splits": 1}


@of_formats
def test_rows_of_a_batch_have_positions_of_their_own(metal_sim, row_format):
    check(call(mx.float16, [500, 3, 131], 2, (4, 2, 256, 128), row_format), metal_sim)


@of_formats
def test_the_12b(metal_sim, row_format):
    check(call(mx.bfloat16, [515], 5, (16, 1, 512, 128), row_format), metal_sim)


@of_dtypes
@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_scores_that_are_equal_and_that_are_far_apart(metal_sim, dtype, scale):
    for row_format in FORMATS:
        q, *rest = call(dtype, [300], 2, (2, 1, 256, 128), row_format)
        check((scale * q, *rest), metal_sim)
        metal_sim.clear()


def test_intervals_may_begin_late(metal_sim, rng):
    """Left padding, and image_attention="all": any run of positions."""
    q, rows, mask, *rest = call(mx.float32, [60, 60], 4)
    lo = rng.integers(0, 50, mask.lo.shape).astype(np.int32)
    mask = IntervalMask(lo, mask.hi, mask.key_positions)
    check((q, rows, mask, *rest), metal_sim)


@pytest.mark.parametrize(
    ("dtype", "row_format"), [(mx.float32, "value_decode"), (mx.bfloat16, "value_decode_int8")]
)
def test_keys_are_rotated_at_the_end_of_a_long_context(metal_sim, dtype, row_format):
    """Angles reach 262,143 radians, where float32 has a step of 0.016."""
    q, rows, _, *rest = call(dtype, [40], 1, (2, 1, 256, 128), row_format)
    end = 262_144
    slots = [(0, 0), (0, 0), (end - rows.rows.shape[2], 0), (0, 0)]
    scales = None if rows.scales is None else mx.pad(rows.scales, slots)
    rows = SharedRows(mx.pad(rows.rows, slots), scales, end)
    lo = np.array([[end - 41]], np.int32)
    mask = IntervalMask(lo, lo + 40, np.arange(end, dtype=np.int32)[None])
    check((q, rows, mask, *rest), metal_sim)


@of_formats
def test_what_lies_outside_of_all_intervals_is_not_read(metal_sim, row_format):
    q, rows, *rest = call(mx.float32, [37], 1, row_format=row_format)
    expected = op.launch(q, rows, *rest)[0]
    poison = {"rows": rows.rows, "scales": rows.scales}
    for name, array in poison.items():
        if array is not None:
            bad = mx.full((1, 1, 50, array.shape[-1]), mx.nan).astype(array.dtype)
            poison[name] = mx.concatenate([array[:, :, : rows.used], bad], axis=2)
    poisoned = replace(rows, **poison)
    assert exact(op.launch(q, poisoned, *rest)[0]).tolist() == exact(expected).tolist()


@of_formats
def test_each_row_is_read_once(metal_sim, row_format):
    metal_sim.mode = "count"
    arguments = call(mx.bfloat16, [1023], 1, (16, 1, 512, 128), row_format)
    rows = arguments[1]
    op.launch(*arguments)
    read = metal_sim.launches[0].counts.read
    for name, array in (("rows", rows.rows), ("scales", rows.scales)):
        used = 0 if array is None else 1024 * array.shape[-1] * array.dtype.size
        assert used <= read[name].by_threadgroup <= 1.03 * used


def test_chooses(metal_sim):
    for row_format in FORMATS:
        arguments = q, rows, *rest = call(mx.float32, [5], 2, row_format=row_format)
        metal_sim.clear()
        with registry.forced(row_format):
            out = shared_attention(*arguments)
            assert [launch.name for launch in metal_sim.launches] == ["shared_decode"]
            shared_attention(*call(mx.float32, [5], 17, row_format=row_format))  # a prompt
            shared_attention(q.astype(mx.float16), rows, *rest)
            shared_attention(*call(mx.float32, [5], 2, (2, 1, 96, 32), row_format))
        with registry.forced(*set(FORMATS) - {row_format}):
            plain = shared_attention(*arguments)
        assert len(metal_sim.launches) == 1
        np.testing.assert_allclose(exact(out), exact(plain), atol=2e-5)


@pytest.mark.metal
@of_formats
@of_dtypes
@pytest.mark.parametrize("context", [15, 700, 9000])
def test_kernel_on_the_gpu(dtype, context, row_format):
    arguments = call(dtype, [context], 3, (16, 1, 512, 128), row_format)
    assert_as_close(op.launch(*arguments), op.define(*arguments), [shared_truth(*arguments)])
