import mlx.core as mx
import pytest
from kernel_truth import DTYPES
from ring_calls import SCORES, RingCall

from mlx_gemma4.kernels import sliding_tiles as op
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.kernels.self_check import self_check

DIRECT, SPLIT = ["sliding_tiles"], ["sliding_tiles", "merge_splits"]


def check(metal_sim, launches=DIRECT, **changes):
    call = RingCall(**changes)
    call.plain()
    assert metal_sim.launches == []
    call.check("sliding_tiles")
    assert [launch.name for launch in metal_sim.launches] == launches


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64])
def test_lengths(metal_sim, length, dtype):
    launches = SPLIT if length == 64 else DIRECT
    check(metal_sim, launches, dtype=dtype, length=length, starts=(7,), window=20)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_long_chunk(metal_sim, dtype):
    check(metal_sim, SPLIT, dtype=dtype, length=150, starts=(0,), window=33, H=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_wide_heads(metal_sim, dtype):
    check(metal_sim, dtype=dtype, Dh=256, starts=(90,), window=40, length=9)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_the_12bs_heads(metal_sim, dtype):
    check(metal_sim, dtype=dtype, H=16, K=8, Dh=256, starts=(90,), window=40, length=9)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 16])
def test_query_heads_of_a_key_head(metal_sim, group, dtype):
    check(metal_sim, dtype=dtype, H=2 * group, K=2, length=7, starts=(33,))


@pytest.mark.parametrize("start", range(80, 120))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_the_ring_begins_anew_at_every_key(metal_sim, dtype, start):
    check(metal_sim, dtype=dtype, starts=(start,), length=4, window=36)


@pytest.mark.parametrize("residue", range(32))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_the_chunk_begins_at_every_key_of_a_tile(metal_sim, dtype, residue):
    start, window = 100 + 5 * residue, 17 + residue
    check(metal_sim, dtype=dtype, starts=(start,), length=9, window=window)


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 19, 20, 21])
@pytest.mark.parametrize("length", [3, 12])
def test_rings_not_full_full_and_wrapped(metal_sim, length, start):
    check(metal_sim, starts=(start,), length=length)


@pytest.mark.parametrize("window", range(1, 12))
def test_windows_shorter_than_a_tile(metal_sim, window):
    check(metal_sim, starts=(50,), window=window, slack=1, length=10)


@pytest.mark.parametrize("length", [4, 12], ids=["ring", "chunk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_rows_of_a_batch_have_positions_of_their_own(metal_sim, dtype, length):
    check(metal_sim, dtype=dtype, starts=(161, 0, 3, 30), window=32, H=4, K=2, length=length)


BLOCKS = {
    "tile border before": ((0, 16),),
    "tile border after": ((16, 32),),
    "over a tile border": ((15, 17),),
    "over a border of 32": ((31, 33),),
    "all": ((0, 40),),
    "longer than the window": ((5, 37),),
    "two": ((2, 9), (20, 38)),
    "two together": ((3, 16), (16, 30)),
}


@pytest.mark.parametrize("start", [0, 21])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_images(metal_sim, dtype, blocks, start):
    blocks = BLOCKS[blocks]
    check(metal_sim, dtype=dtype, starts=(start,), length=40, window=12, blocks=blocks)


def test_an_image_of_a_batch(metal_sim):
    check(metal_sim, starts=(70, 2), length=40, window=12, blocks=((3, 30),), H=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("length", "slack"), [(5, 8), (9, 4)], ids=["ring", "chunk"])
def test_keys_are_split(metal_sim, length, slack, dtype):
    """Four runs of two key heads each."""
    call = {"starts": (500,), "length": length, "window": 200, "slack": slack, "H": 4, "K": 2}
    check(metal_sim, SPLIT, dtype=dtype, **call)


def test_splits_without_a_key(metal_sim):
    """The second row of the batch sees at most 8 positions, the first 260 in five splits."""
    check(metal_sim, SPLIT, starts=(500, 3), length=5, window=256)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("scores", SCORES[1:])
def test_scores(metal_sim, scores, dtype):
    check(metal_sim, SPLIT, dtype=dtype, scores=scores, starts=(500,), length=6, window=100)


@pytest.mark.parametrize("seed", [100, 200])
def test_orders_of_execution(metal_sim, seed):
    metal_sim.seed, metal_sim.orders = seed, 8
    check(metal_sim, starts=(160, 47), length=12, window=40)


@pytest.mark.parametrize("kernel", [op.VERIFY, op.PREFILL], ids=lambda kernel: kernel.name)
def test_the_self_check_passes(metal_sim, kernel):
    metal_sim.orders = 1
    assert self_check(kernel) is None


def test_what_fits():
    for call in (RingCall(length=3), RingCall(length=3, starts=(40,)), RingCall(length=40)):
        q, rows = call.drawn[0], call.rows(0.0)
        assert op.fits(q, rows)
        assert not op.fits(q.astype(mx.float16), rows)
        assert not op.fits(q[..., :96], rows)


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("length", "starts"), [(8, (4000,)), (600, (4000,)), (300, (0, 900))])
def test_kernel_on_the_gpu(length, starts, dtype):
    blocks = ((5, 250),) if length > 250 else ()
    call = RingCall(dtype, starts, length, 1024, 16, H=16, K=8, Dh=256, blocks=blocks)
    call.check("sliding_tiles")
