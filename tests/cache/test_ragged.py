import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.cache import SharedCache, SlidingCache
from mlx_gemma4.cache.ragged import (
    RaggedSharedCache,
    RaggedSlidingCache,
    join_row,
    keep_rows,
    make_ragged,
    offsets_of,
)
from mlx_gemma4.kernels.shared_rows import RowFormat

DIMS = 6


def value_at(conversation, position):
    """What a row of the cache holds, so that it is known whose it is."""
    return 10_000 * conversation + position


def new_rows(conversations, starts, length):
    """Rows [B, 2, length, DIMS] of new positions."""
    values = [
        [value_at(name, start + place) for place in range(length)]
        for name, start in zip(conversations, starts, strict=True)
    ]
    values = np.array(values, np.float32)[:, None, :, None]
    return mx.array(np.broadcast_to(values, (len(values), 2, length, DIMS)).copy())


def update(cache, rows):
    """Add rows, packed as the cache keeps them."""
    is_ring = isinstance(cache, SlidingCache)
    return cache.update_and_fetch(rows if is_ring else cache.row_format.pack(rows, 2))


def prefilled(single, name, length):
    """A cache of one conversation after its prompt, read in two chunks."""
    for part in (length - length // 3, length // 3):
        if part:
            update(single, new_rows([name], [single.offset], part))
    return single


def fetch(cache, rows):
    """What a step gets to see: keys [B, S] and their positions [B, S]."""
    positions = cache.key_positions(rows.shape[2])
    fetched = update(cache, rows)
    is_ring = isinstance(cache, RaggedSlidingCache)
    keys = np.array(fetched.fetch() if is_ring else fetched.rows[:, :, : fetched.used])
    assert (keys == keys[:, :1, :, :1]).all()
    keys = keys[:, 0, :, 0]
    return keys, np.broadcast_to(positions, keys.shape)


@pytest.mark.parametrize("window", [None, 1, 8, 300])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_sees_its_own_positions(window, length, seed):
    """Conversations of any length come and go; the visible keys of each are its own."""
    rng = np.random.default_rng(seed)

    def new_single():
        return SharedCache() if window is None else SlidingCache(window, 4)

    (cache,) = batch = make_ragged([new_single()])
    running, count = [], 0
    for _ in range(60):
        while len(running) < 4 and (not running or rng.random() < 0.5):
            count += 1
            prompt = int(rng.choice([1, 5, 12, 250, 256, 300, 700]))
            join_row(batch, [prefilled(new_single(), count, prompt)])
            running.append(count)
        starts = list(cache.offsets)
        keys, positions = fetch(cache, new_rows(running, starts, length))
        assert positions.dtype == np.int32
        for row, (name, start) in enumerate(zip(running, starts, strict=True)):
            seen = dict(zip(positions[row].tolist(), keys[row].tolist(), strict=True))
            first = 0 if window is None else max(0, start - window + 1)
            for position in range(first, start + length):
                assert seen[position] == value_at(name, position)
        assert cache.offsets == [start + length for start in starts]
        kept = [row for row in range(len(running)) if rng.random() < 0.8]
        if len(kept) < len(running):
            kept = rng.permutation(kept).astype(int).tolist()
            keep_rows(batch, kept)
            running = [running[row] for row in kept]
            assert offsets_of(batch, len(running)) == cache.offsets


def test_a_slot_without_a_position_is_in_no_interval():
    cache = RaggedSlidingCache(8, 4)
    for name, length in ((1, 2), (2, 40)):
        cache.join(prefilled(SlidingCache(8, 4), name, length))
    positions = cache.key_positions(1)
    assert positions.shape == (2, 12)
    assert sorted(positions[0][positions[0] >= 0]) == [0, 1, 2]
    assert sorted(positions[1]) == list(range(29, 41))


def test_memory_follows_the_longest_row():
    caches = [SharedCache(), SlidingCache(300, 20)]
    (shared, ring) = batch = make_ragged(caches)
    for name, length in ((1, 10), (2, 1000)):
        join_row(
            batch, [prefilled(c, name, length) for c in (SharedCache(), SlidingCache(300, 20))]
        )
    row = 2 * DIMS * 4
    assert (shared.nbytes, ring.nbytes) == (2 * 1024 * row, 2 * 320 * row)
    keep_rows(batch, [0])
    assert (shared.nbytes, ring.nbytes) == (256 * row, 256 * row)
    keep_rows(batch, [])
    assert (shared.nbytes, ring.nbytes) == (0, 0)
    join_row(batch, [prefilled(c, 3, 5) for c in (SharedCache(), SlidingCache(300, 20))])
    assert offsets_of(batch, 1) == [5]


def test_a_step_writes_in_place(rng):
    """A step takes the memory of its own rows, not of the whole cache again."""
    cache = RaggedSharedCache(RowFormat())
    for _ in range(2):
        single = SharedCache()
        update(single, mx.array(rng.random((1, 2, 4000, 64), np.float32)))
        join_row([cache], [single])
        del single
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    update(cache, mx.zeros((2, 2, 1, 64)))
    mx.eval(cache.state)
    assert mx.get_peak_memory() - before < cache.nbytes // 100


@pytest.mark.parametrize("has_keys", [True, False])
def test_int8_rows_are_those_of_single_caches(rng, has_keys):
    """Scales go with their rows."""
    row_format = RowFormat(bits=8, has_keys=has_keys)
    singles = [SharedCache(row_format) for _ in range(3)]
    batch = make_ragged(singles[:1])
    for single, length in zip(singles, (3, 300, 7), strict=True):
        update(single, mx.array(rng.random((1, 2, length, DIMS), np.float32)))
        join_row(batch, [single])
    keep_rows(batch, [2, 0])
    step = mx.array(rng.random((2, 2, 1, DIMS), np.float32))
    (cache,) = batch
    update(cache, step)
    for row, single in enumerate([singles[2], singles[0]]):
        update(single, step[row : row + 1])
        for ours, alone in zip(cache.state, single.state, strict=True):
            end = single.offset
            assert mx.array_equal(ours[row, :, :end], alone[0, :, :end]).item()


def test_caches_that_differ_cannot_join():
    ring = SlidingCache(8, 4)
    prefilled(ring, 1, 3)
    with pytest.raises(ValueError, match="12 slots for a window of 8 cannot join rings of 14"):
        RaggedSlidingCache(10, 4).join(ring)
    shared = prefilled(SharedCache(), 1, 3)
    with pytest.raises(ValueError, match="cannot join"):
        RaggedSharedCache(RowFormat(bits=8)).join(shared)


def test_a_batch_takes_nothing_back():
    batch = make_ragged([SharedCache(), SlidingCache(8, 4)])
    join_row(batch, [prefilled(SharedCache(), 1, 9), prefilled(SlidingCache(8, 4), 1, 9)])
    for cache in batch:
        assert cache.is_trimmable(0)
        with pytest.raises(ValueError, match="cannot undo 1"):
            cache.trim(1)


def test_offsets_without_a_batch():
    assert offsets_of(None, 2) == [0, 0]
    assert offsets_of([prefilled(SharedCache(), 1, 9)], 2) == [9, 9]
