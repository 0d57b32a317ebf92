"""What attention of sliding layers moves, counted in the simulator: keys once, and no scores."""

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import DTYPES
from ring_calls import RingCall

from mlx_gemma4.kernels.kernel import dtype_name

ROWS = 32  # query rows that share key tiles: positions times query heads of a key head


@pytest.fixture
def count(metal_sim):
    """Return a function that launches a call and returns the counts of its launches, by name."""
    metal_sim.mode = "count"

    def run(kernel, call):
        metal_sim.clear()
        out = call.launch(kernel)
        return out, {launch.name: launch.counts for launch in metal_sim.launches}

    return run


def bytes_read(counts, *names):
    """Bytes distinct in a threadgroup, summed over threadgroups."""
    return sum(counts.read[name].by_threadgroup for name in names)


def bytes_written(counts):
    return {name: bytes_.by_lane for name, bytes_ in counts.written.items() if bytes_.by_lane}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("length", [1, 2])
def test_decode_reads_each_key_and_value_once(count, length, dtype):
    """One or two positions at the 12B's window and heads, a key head's rows together."""
    call = RingCall(dtype, (5000,), length, 1024, 16, H=16, K=8, Dh=256)
    out, counts = count("sliding_decode", call)
    visible_bytes = 8 * (1023 + length) * 2 * 256 * dtype.size
    assert visible_bytes <= bytes_read(counts["sliding_decode"], "ring") <= 1.05 * visible_bytes
    splits = counts["sliding_decode"].threadgroups // 8
    partial_bytes = {"out": splits * out.size * 4, "state": splits * 16 * length * 2 * 4}
    assert bytes_written(counts["sliding_decode"]) == partial_bytes
    assert bytes_written(counts["merge_splits"]) == {"out": out.nbytes}


def test_verify_reads_each_key_and_value_once(count):
    """Eight positions of two heads fill a tile of rows."""
    call = RingCall(mx.bfloat16, (5000,), 8, 1024, 16, H=4, K=2, Dh=256)
    _, counts = count("sliding_tiles", call)
    visible_bytes = 2 * 1031 * 2 * 256 * 2
    assert bytes_read(counts["sliding_tiles"], "ring") == visible_bytes
    assert bytes_read(counts["sliding_tiles"], "chunk") == 0


def tiles_with_visible_pairs(call: RingCall, keys: int) -> int:
    """Return how many tiles of rows and keys, both from multiples of their sizes, have one."""
    group = call.H // call.K
    lo, hi = (np.repeat(ends[0], group) for ends in (call.mask.lo, call.mask.hi))
    positions = np.arange(call.starts[0] + call.length)
    count = 0
    for row in range(0, len(lo), ROWS):
        pairs = (positions >= lo[row : row + ROWS, None]) & (
            positions <= hi[row : row + ROWS, None]
        )
        count += len(set(positions[pairs.any(axis=0)] // keys))
    return count


def test_prefill_reads_tiles_with_visible_pairs_alone(count):
    """2,048 positions after 4,000, window 1,024: keys from the ring and from the chunk."""
    call = RingCall(mx.bfloat16, (4000,), 2048, 1024, 16)
    out, counts = count("sliding_tiles", call)
    assert counts.keys() == {"sliding_tiles"}
    tile_bytes = 32 * 2 * call.Dh * 2
    read = counts["sliding_tiles"]
    assert read.read["ring"].distinct == 1023 * 2 * call.Dh * 2
    tiles = tiles_with_visible_pairs(call, 32)
    assert 0.95 * tiles <= bytes_read(read, "ring", "chunk") / tile_bytes <= 1.15 * tiles
    # No scores in device memory: the results, and two floats a row.
    state_bytes = 2 * 2048 * 2 * 4
    assert bytes_written(read) == {"out": out.nbytes, "state": state_bytes}


def test_prefill_of_images_reads_what_they_see(count):
    """Two images: the union of a tile's intervals is read, whatever its rows' own are."""
    call = RingCall(mx.bfloat16, (100,), 200, 64, 16, blocks=((10, 90), (96, 150)))
    _, counts = count("sliding_tiles", call)
    expected = 0
    for position in range(0, 200, ROWS // 2):
        rows = slice(position, position + ROWS // 2)
        keys = call.mask.hi[0, rows].max() - call.mask.lo[0, rows].min() + 1
        expected += int(keys) * 2 * call.Dh * 2
    assert bytes_read(counts["sliding_tiles"], "ring", "chunk") == expected
