from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES, assert_as_close, exact

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels import shared_decode as op
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.shared_attention import shared_attention

# H, K, Dh, rotated
HEADS = [(16, 1, 512, 128), (2, 1, 512, 128), (4, 2, 256, 128), (3, 1, 384, 256), (1, 1, 256, 128)]


def truth(q, rows, mask):
    """Every query on its own, in float64."""
    q, rows = exact(q), exact(rows)
    B, H, L, Dh = q.shape
    group = H // rows.shape[1]
    out = np.zeros(q.shape)
    for b, h, i in np.ndindex(B, H, L):
        seen = rows[b, h // group, mask.lo[b, i] : mask.hi[b, i] + 1]
        scores = seen[:, :Dh] @ q[b, h, i]
        weights = np.exp(scores - scores.max())
        out[b, h, i] = weights / weights.sum() @ seen[:, rows.shape[-1] - Dh :]
    return out


def call(dtype, starts, L, heads=(2, 1, 512, 128)):
    H, K, Dh, rotated = heads
    return op.shared_case("", dtype, starts, L, H=H, K=K, Dh=Dh, rotated=rotated).arguments


def check(arguments, metal_sim):
    q, rows, mask, length = arguments
    plain = op.define(*arguments)
    assert metal_sim.launches == []
    assert_as_close(op.launch(*arguments), plain, [truth(q, rows[:, :, :length], mask)])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads(metal_sim, dtype, heads):
    check(call(dtype, [21], 2, heads), metal_sim)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("L", [1, 2, 7, 16])
def test_lengths(metal_sim, dtype, L):
    check(call(dtype, [40], L), metal_sim)


@pytest.mark.parametrize("context", [0, 1, 14, 15, 16, 17, 30, 31, 32])
def test_contexts_around_a_tile_of_keys(metal_sim, context):
    check(call(mx.float32, [context], 1), metal_sim)


@pytest.mark.parametrize("context", [128, 255, 256, 300, 700])
def test_keys_are_split(metal_sim, context):
    check(call(mx.float32, [context], 3), metal_sim)
    launched = Counter(launch.name for launch in metal_sim.launches)
    assert launched == {"shared_decode": 1, "merge_splits": 1}


def test_rows_of_a_batch_have_positions_of_their_own(metal_sim):
    check(call(mx.float16, [500, 3, 131], 2, (4, 2, 256, 128)), metal_sim)


def test_the_12b(metal_sim):
    check(call(mx.bfloat16, [515], 5, (16, 1, 512, 128)), metal_sim)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_scores_that_are_equal_and_that_are_far_apart(metal_sim, dtype, scale):
    q, *rest = call(dtype, [300], 2)
    check((scale * q, *rest), metal_sim)


def test_intervals_may_begin_late(metal_sim, rng):
    """Left padding, and image_attention="all": any run of positions."""
    q, rows, mask, length = call(mx.float32, [60, 60], 4)
    lo = rng.integers(0, 50, mask.lo.shape).astype(np.int32)
    mask = IntervalMask(lo, mask.hi, mask.key_positions)
    check((q, rows, mask, length), metal_sim)


def test_what_lies_outside_of_all_intervals_is_not_read(metal_sim):
    q, rows, mask, length = call(mx.float32, [37], 1)
    poisoned = mx.concatenate([rows[:, :, :length], mx.full((1, 1, 50, 640), mx.nan)], axis=2)
    expected = op.launch(q, rows, mask, length)[0]
    assert exact(op.launch(q, poisoned, mask, length)[0]).tolist() == exact(expected).tolist()


def test_each_row_is_read_once(metal_sim):
    metal_sim.mode = "count"
    q, rows, mask, length = call(mx.bfloat16, [1023], 1, (16, 1, 512, 128))
    op.launch(q, rows, mask, length)
    read = metal_sim.launches[0].counts.read["rows"]
    used = length * 640 * 2
    assert used <= read.by_threadgroup <= 1.03 * used


def test_chooses(metal_sim):
    arguments = call(mx.float32, [5], 2)
    with registry.forced("shared_decode"):
        out = shared_attention(*arguments)
        assert [launch.name for launch in metal_sim.launches] == ["shared_decode"]
        shared_attention(*call(mx.float32, [5], 17))  # a prompt
        q, rows, *rest = arguments
        shared_attention(q.astype(mx.float16), rows, *rest)
        shared_attention(q[..., :64], rows[..., :96], *rest)
    with registry.forced():
        plain = shared_attention(*arguments)
    assert len(metal_sim.launches) == 1
    np.testing.assert_allclose(exact(out), exact(plain), atol=2e-5)


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("context", [15, 700, 9000])
def test_kernel_on_the_gpu(dtype, context):
    arguments = call(dtype, [context], 3, (16, 1, 512, 128))
    q, rows, mask, length = arguments
    expected = truth(q, rows[:, :, :length], mask)
    assert_as_close(op.launch(*arguments), op.define(*arguments), [expected])
