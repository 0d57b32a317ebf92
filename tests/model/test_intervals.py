import numpy as np
import pytest

from mlx_gemma4.inputs import Modality, SoftTokenSpan
from mlx_gemma4.model.intervals import interval_causal, interval_sliding, intervals_of


def matrix(intervals, length):
    """The mask that intervals stand for, [L, S] bool."""
    positions = np.arange(length)
    return (positions >= intervals.lo[0][:, None]) & (positions <= intervals.hi[0][:, None])


def brute_force(length, window, spans, rule):
    """Each pair decided on its own, as transformers' mask functions do."""
    block = np.full(length, -1)
    for index, span in enumerate(spans):
        if span.modality is not Modality.AUDIO:
            block[span.start : span.stop] = index
    q, k = np.mgrid[:length, :length]
    causal, in_window = k <= q, k > q - window
    same_block = (block[q] == block[k]) & (block[q] >= 0)
    if rule == "all":
        return causal | same_block, (causal & in_window) | same_block
    return causal, (causal | same_block) & in_window


SPANS = (
    SoftTokenSpan(3, 4, Modality.IMAGE),
    SoftTokenSpan(9, 20, Modality.IMAGE),
    SoftTokenSpan(31, 5, Modality.AUDIO),
    SoftTokenSpan(37, 6, Modality.VIDEO),
    SoftTokenSpan(44, 6, Modality.VIDEO),
)


@pytest.mark.parametrize("rule", ["sliding", "all"])
@pytest.mark.parametrize("window", [1, 5, 12, 100])
def test_intervals_equal_the_rule_pair_by_pair(window, rule):
    intervals = intervals_of(0, 55, window, SPANS, rule)
    full, sliding = brute_force(55, window, SPANS, rule)
    assert (matrix(intervals["full_attention"], 55) == full).all()
    assert (matrix(intervals["sliding_attention"], 55) == sliding).all()


@pytest.mark.parametrize("rule", ["sliding", "all"])
def test_a_later_chunk_has_the_rows_of_the_whole(rule):
    whole = intervals_of(0, 55, 12, SPANS, rule)
    for start, stop in ((0, 9), (9, 30), (30, 44), (44, 55)):
        spans = tuple(
            SoftTokenSpan(span.start - start, span.length, span.modality)
            for span in SPANS
            if start <= span.start < stop
        )
        chunk = intervals_of(start, stop - start, 12, spans, rule)
        for layer_type, intervals in chunk.items():
            assert (intervals.lo == whole[layer_type].lo[:, start:stop]).all()
            assert (intervals.hi == whole[layer_type].hi[:, start:stop]).all()


def test_the_two_rules_differ_on_a_picture():
    sliding, everywhere = (intervals_of(0, 55, 12, SPANS, rule) for rule in ("sliding", "all"))
    assert (sliding["full_attention"].hi != everywhere["full_attention"].hi).any()
    assert (sliding["sliding_attention"].lo != everywhere["sliding_attention"].lo).any()


def test_shapes_and_dtypes():
    for intervals in (interval_causal(7, 3), interval_sliding(7, 3, 4, ())):
        assert intervals.lo.shape == intervals.hi.shape == (1, 3)
        assert intervals.lo.dtype == intervals.hi.dtype == np.int32
