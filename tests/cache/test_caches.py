import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.cache import SharedCache, SlidingCache, trim_prompt_cache


def rows_at(positions):
    """Rows [1, 2, L, 6] whose every value names the position."""
    values = np.asarray(positions, np.float32)[None, None, :, None]
    return mx.array(np.broadcast_to(values, (1, 2, len(positions), 6)).copy())


def read(cache, count):
    """Feed `count` positions and return what came back as {position: value}."""
    start = cache.offset
    positions = cache.key_positions(count)
    new = rows_at(np.arange(start, start + count))
    if isinstance(cache, SlidingCache):
        rows = cache.update_and_fetch(new).fetch()
    else:
        shared = cache.update_and_fetch([new])
        rows = shared.rows[:, :, : shared.used]
    assert rows.shape[2] == len(positions)
    assert positions.dtype == np.int32
    values = np.array(rows)
    assert (values == values[:, :1, :, :1]).all()
    return {int(p): float(v) for p, v in zip(positions, values[0, 0, :, 0], strict=True) if p >= 0}


@pytest.mark.parametrize("slack", [0, 3, 16])
@pytest.mark.parametrize("window", [1, 8, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_visible_position_is_returned(window, slack, seed):
    rng = np.random.default_rng(seed)
    cache = SlidingCache(window, slack)
    while cache.offset < 4 * window + 40:
        start = cache.offset
        count = int(rng.choice([1, 1, 2, slack + 1, slack + 2, window, 2 * window + 3]))
        seen = read(cache, count)
        for position in range(max(0, start - window + 1), start + count):
            assert seen[position] == position
        if rng.random() < 0.5 and cache.is_trimmable(slack):
            undone = int(rng.integers(0, slack + 1))
            cache.trim(undone)


def test_an_undone_position_is_never_seen_again():
    window, slack = 8, 4
    cache = SlidingCache(window, slack)
    read(cache, 30)
    cache.update_and_fetch(rows_at([-7, -7, -7]))  # a rejected draft
    cache.trim(3)
    assert cache.offset == 30
    positions = cache.key_positions(1)
    values = np.array(cache.update_and_fetch(rows_at([30])).fetch())[0, 0, :, 0]
    visible = (positions >= 30 - window + 1) & (positions <= 30)
    assert sorted(values[visible]) == list(range(23, 31))


def test_more_than_the_slack_cannot_be_undone():
    cache = SlidingCache(8, 4)
    read(cache, 30)
    assert cache.is_trimmable(5)  # position 25 sees 18 to 25, and 18 to 29 are kept
    assert not cache.is_trimmable(6)
    with pytest.raises(ValueError, match="cannot undo 6 of 30 positions; the ring keeps 5"):
        cache.trim(6)


def test_undoing_twice_cannot_reach_overwritten_positions():
    cache = SlidingCache(8, 4)
    for _ in range(14):
        read(cache, 1)  # positions 0 and 1 are overwritten
    cache.trim(4)
    assert cache.offset == 10
    assert not cache.is_trimmable(3)  # the next query would see positions 0 to 7


def test_before_the_ring_is_full_everything_can_be_undone():
    cache = SlidingCache(8, 4)
    read(cache, 12)
    cache.trim(12)
    assert cache.offset == 0
    assert read(cache, 3) == {0: 0.0, 1: 1.0, 2: 2.0}


def test_memory_stops_at_the_capacity():
    cache = SlidingCache(500, 12)
    read(cache, 10)
    assert cache.rows.shape[2] == 256
    for _ in range(20):
        read(cache, 100)
    assert cache.rows.shape[2] == 512
    assert cache.nbytes == 512 * 2 * 6 * 4


def test_shared_rows_stay_in_order_and_can_be_cut_anywhere():
    cache = SharedCache()
    for count in (3, 300, 1, 700):
        assert read(cache, count) == {p: float(p) for p in range(cache.offset)}
    cache.trim(1000)
    assert cache.offset == 4
    assert read(cache, 2) == {p: float(p) for p in range(6)}
    with pytest.raises(ValueError, match="cannot undo 7 of 6"):
        cache.trim(7)


def test_a_prompt_cache_is_trimmed_in_every_layer_or_in_none():
    caches = [SharedCache(), SlidingCache(8, 4)]
    for cache in caches:
        read(cache, 30)
    with pytest.raises(ValueError, match="cannot undo 9 of 30"):
        trim_prompt_cache(caches, 9)
    assert [cache.offset for cache in caches] == [30, 30]
    trim_prompt_cache(caches, 4)
    assert [cache.offset for cache in caches] == [26, 26]
