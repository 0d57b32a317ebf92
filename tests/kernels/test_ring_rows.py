import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import exact
from ring_calls import RingCall

CALLS = {
    "empty": RingCall(),
    "not full": RingCall(starts=(9,), length=3),
    "just full": RingCall(starts=(18,), length=2),
    "wrapped": RingCall(starts=(50,), length=5),
    "chunk alone": RingCall(length=40),
    "chunk after part of a window": RingCall(starts=(4,), length=30),
    "chunk after a wrapped ring": RingCall(starts=(77,), length=30, H=6, K=2),
    "rows of a batch in the ring": RingCall(starts=(50, 0, 7), length=2),
    "rows of a batch and a chunk": RingCall(starts=(50, 0, 7), length=30),
    "chunk of one row and no past": RingCall(starts=(0, 0), length=30),
    "picture": RingCall(starts=(33,), length=30, blocks=((2, 9), (9, 28))),
}


@pytest.mark.parametrize("name", CALLS)
def test_rows_stand_where_the_key_positions_say(name):
    call = CALLS[name]
    fetched, known = exact(call.rows(0.0).fetch()), exact(call.drawn[1])
    positions = call.mask.key_positions
    assert fetched.shape[2] == positions.shape[1]
    for b in range(len(call.starts)):
        visible = np.flatnonzero(
            (positions[b] >= call.mask.lo[b].min()) & (positions[b] <= call.mask.hi[b].max())
        )
        assert len(set(positions[b, visible])) == np.ptp(positions[b, visible]) + 1
        assert np.array_equal(fetched[b, :, visible], known[b, :, positions[b, visible]])


@pytest.mark.parametrize("name", CALLS)
def test_plain_attention(name):
    call = CALLS[name]
    assert abs(exact(call.plain()) - call.truth).max() <= 1e-5 * abs(call.truth).max()


def test_only_used_slots_are_fetched():
    call = RingCall(starts=(9,), length=3)
    rows = call.rows(0.0)
    assert rows.ring is not None
    longer = mx.concatenate([rows.ring, mx.full((1, 1, 4, 256), mx.nan)], axis=2)
    rows = type(rows)(**{**rows.__dict__, "ring": longer})
    assert rows.fetch().shape[2] == 12
