from dataclasses import replace

import mlx.core as mx
import pytest
from kernel_truth import DTYPES
from ring_calls import SCORES, RingCall

from mlx_gemma4.kernels import sliding_decode as op
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.self_check import self_check

# Query heads and positions of one key head, four rows at most.
ROWS = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3), (1, 4)]

DIRECT, SPLIT = ["sliding_decode"], ["sliding_decode", "merge_splits"]


def check(metal_sim, launches=DIRECT, **changes):
    call = RingCall(**changes)
    call.plain()
    assert metal_sim.launches == []
    call.check("sliding_decode")
    assert [launch.name for launch in metal_sim.launches] == launches


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("H", "length"), ROWS)
def test_rows_of_a_key_head(metal_sim, H, length, dtype):
    check(metal_sim, dtype=dtype, H=H, length=length, starts=(31,))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_wide_heads(metal_sim, dtype):
    check(metal_sim, dtype=dtype, Dh=256, starts=(90,), window=48)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_the_12bs_heads(metal_sim, dtype):
    check(metal_sim, SPLIT, dtype=dtype, H=16, K=8, Dh=256, starts=(190,), window=128, slack=16)


@pytest.mark.parametrize("start", range(80, 120))
def test_the_ring_begins_anew_at_every_key(metal_sim, start):
    check(metal_sim, starts=(start,), window=40, slack=0)


@pytest.mark.parametrize("start", [0, 1, 2, 5, 15, 16, 17, 18, 19, 20, 21])
def test_rings_not_full_full_and_wrapped(metal_sim, start):
    check(metal_sim, starts=(start,))


@pytest.mark.parametrize("window", range(1, 20))
def test_windows_shorter_than_a_step_of_four_simdgroups(metal_sim, window):
    check(metal_sim, starts=(50,), window=window, slack=1, length=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_rows_of_a_batch_have_positions_of_their_own(metal_sim, dtype):
    check(metal_sim, dtype=dtype, starts=(161, 0, 3, 47), window=48, H=4, K=2, length=2)


@pytest.mark.parametrize("window", [64, 65, 130, 255, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_keys_are_split(metal_sim, dtype, window):
    launches = DIRECT if window == 64 else SPLIT
    check(metal_sim, launches, dtype=dtype, starts=(500,), window=window)


def test_splits_without_a_key(metal_sim):
    """The second row of the batch sees 4 positions, the first 256 in four splits."""
    check(metal_sim, SPLIT, starts=(500, 3), window=256)


def test_keys_that_one_row_alone_sees(metal_sim):
    """An image before the last token: its rows see what follows them, the last sees all."""
    check(metal_sim, starts=(30,), length=4, H=1, blocks=((0, 3),))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("scores", SCORES[1:])
def test_scores(metal_sim, scores, dtype):
    check(metal_sim, SPLIT, dtype=dtype, scores=scores, starts=(500,), window=100, length=2)


@pytest.mark.parametrize("seed", [100, 200])
def test_orders_of_execution(metal_sim, seed):
    metal_sim.seed, metal_sim.orders = seed, 8
    check(metal_sim, SPLIT, starts=(160, 47), window=70)


def test_what_fits():
    call = RingCall(starts=(31,), length=2)
    q, rows = call.drawn[0], call.rows(0.0)
    assert op.fits(q, rows)
    assert not op.fits(q.astype(mx.float16), rows)
    assert not op.fits(q[..., :64], rows)
    assert not op.fits(mx.concatenate([q, q, q], axis=2), rows)
    assert not op.fits(q, replace(rows, chunk=rows.ring))
    assert not op.fits(q, replace(rows, ring=None))


def test_the_self_check_passes(metal_sim):
    metal_sim.orders = 1
    assert self_check(op.KERNEL) is None


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("window", [48, 1024])
def test_kernel_on_the_gpu(window, dtype):
    call = RingCall(dtype=dtype, H=16, K=8, Dh=256, starts=(4000,), window=window, slack=16)
    call.check("sliding_decode")
