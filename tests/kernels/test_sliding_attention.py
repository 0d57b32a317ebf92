from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from kernel_truth import assert_as_close, exact
from ring_calls import RingCall

from mlx_gemma4.cache import SlidingCache
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.sliding_attention import sliding_attention
from mlx_gemma4.model.intervals import interval_sliding

ALL = ("sliding_decode", "sliding_verify", "sliding_prefill")


def attend(call: RingCall) -> mx.array:
    return sliding_attention(call.drawn[0], call.rows(0.0), call.mask)


@pytest.mark.parametrize(
    ("call", "kernel", "source"),
    [
        (RingCall(starts=(40,)), "sliding_decode", "sliding_decode"),
        (RingCall(starts=(40,), length=2), "sliding_decode", "sliding_decode"),
        (RingCall(starts=(40,), length=3), "sliding_verify", "sliding_tiles"),
        (RingCall(starts=(40,), H=8), "sliding_verify", "sliding_tiles"),
        (RingCall(starts=(40,), length=16, slack=15), "sliding_verify", "sliding_tiles"),
        (RingCall(starts=(40,), length=17, slack=16), "sliding_prefill", "sliding_tiles"),
        (RingCall(starts=(40,), length=30), "sliding_prefill", "sliding_tiles"),
        (RingCall(length=30), "sliding_prefill", "sliding_tiles"),
    ],
    ids=str,
)
def test_each_call_has_its_kernel(metal_sim, call, kernel, source):
    with registry.forced(*(name for name in ALL if name != kernel)):
        plain = attend(call)
    assert metal_sim.launches == []
    with registry.forced(kernel):
        assert_as_close([attend(call)], [plain], [call.truth])
    assert [launch.name for launch in metal_sim.launches] == [source]


@pytest.mark.parametrize("what", ["head", "dtype"])
@pytest.mark.parametrize("call", [RingCall(starts=(40,)), RingCall(length=30)], ids=str)
def test_what_does_not_fit_is_defined(metal_sim, call, what):
    q, rows = call.drawn[0], call.rows(0.0)
    if what == "dtype":
        q = q.astype(mx.float16)
    else:
        q = q[..., :64]
        halves = {"ring": rows.ring, "chunk": rows.chunk}
        halves = {name: None if a is None else a[..., :128] for name, a in halves.items()}
        rows = type(rows)(**{**rows.__dict__, **halves})
    with registry.forced(*ALL):
        out = sliding_attention(q, rows, call.mask)
    assert metal_sim.launches == []
    assert out.shape == q.shape


@pytest.mark.parametrize("seed", [0, 1])
def test_a_conversation_over_a_cache(metal_sim, seed):
    """Chunks, steps, drafts, and undone drafts: what the cache holds is what the kernels see."""
    rng = np.random.default_rng(seed)
    window, slack, H, K, Dh = 24, 6, 4, 2, 128
    cache = SlidingCache(window, slack)
    q = mx.array(0.4 * rng.normal(size=(1, H, 300, Dh)).astype(np.float32))
    rows = mx.array(rng.normal(size=(1, K, 300, 2 * Dh)).astype(np.float32))
    lengths = [30, 1, 5, 1, 40, 7, 1, 1, 12, 3, 1]
    for length in lengths:
        start = cache.offset
        of_rows = interval_sliding(start, length, window, [])
        mask = IntervalMask(of_rows.lo, of_rows.hi, cache.key_positions(length)[None])
        ring = cache.update_and_fetch(rows[:, :, start : start + length])
        new = q[:, :, start : start + length]
        with registry.forced():
            plain = sliding_attention(new, ring, mask)
        with registry.forced(*ALL):
            ours = sliding_attention(new, ring, mask)
        np.testing.assert_allclose(exact(ours), exact(plain), atol=2e-5)
        undone = int(rng.integers(0, min(length, slack) + 1))
        if length <= slack + 1 and cache.is_trimmable(undone):
            cache.trim(undone)
    launched = Counter(launch.name for launch in metal_sim.launches)
    assert launched["sliding_decode"] == lengths.count(1)
    assert launched["sliding_tiles"] == len(lengths) - lengths.count(1)
