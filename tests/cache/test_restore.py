"""A ring that is put back sees, and can undo, what the ring did whose rows it got."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma4.cache import SlidingCache


def read(cache, count):
    """Feed positions whose rows name them; return {position: value} of what came back."""
    start = cache.offset
    values = np.arange(start, start + count, dtype=np.float32)[None, None, :, None]
    positions = cache.key_positions(count)
    rows = cache.update_and_fetch(mx.array(np.broadcast_to(values, (1, 2, count, 6)).copy()))
    fetched = np.array(rows.fetch())[0, 0, :, 0]
    return {int(p): float(v) for p, v in zip(positions, fetched, strict=True)}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slack", [0, 4, 16])
def test_a_ring_goes_on_as_before(seed, slack):
    rng = np.random.default_rng(seed)
    window = int(rng.integers(2, 20))
    cache = SlidingCache(window, slack)
    for _ in range(int(rng.integers(1, 12))):
        read(cache, int(rng.integers(1, 2 * window)))
        undone = int(rng.integers(0, slack + 1))
        if cache.is_trimmable(undone) and cache.offset > undone:
            cache.trim(undone)
    fresh = SlidingCache(window, slack)
    fresh.restore(cache.rows_in_order(), cache.offset)
    assert fresh.offset == cache.offset
    for count in range(cache.offset + 2):
        assert fresh.is_trimmable(count) is cache.is_trimmable(count)
    most = max(count for count in range(cache.offset + 1) if cache.is_trimmable(count))
    undone = int(rng.integers(0, most + 1))
    for ring in (cache, fresh):
        ring.trim(undone)
        start = ring.offset
        seen = read(ring, 1)
        for position in range(max(0, start - window + 1), start + 1):
            assert seen[position] == position


@pytest.mark.parametrize("kept", [0, 6, 31])
def test_rows_that_are_too_few_or_too_many_are_refused(kept):
    with pytest.raises(ValueError, match=f"{kept} rows of 30 positions; the window is 8"):
        SlidingCache(8, 4).restore(mx.zeros((1, 2, kept, 6)), 30)
