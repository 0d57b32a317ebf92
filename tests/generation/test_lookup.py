"""Drafts against a search through the whole text, and what is never drafted."""

import numpy as np
import pytest

from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.lookup import (
    MAX_CANDIDATES,
    MAX_DRAFT_TOKENS,
    MAX_NGRAM,
    MIN_NGRAM,
    WARY_NGRAM,
    PromptLookup,
)
from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan
from mlx_gemma4.model.gemma4 import RING_SLACK


def lookup_of(ids, **options):
    return PromptLookup(ModelInputs.from_ids(ids), **options)


def search(ids, needed=MIN_NGRAM):
    """Where the text most like its end ends, the latest such, by looking everywhere; -1 if none."""
    end = len(ids) - 1
    places = [p for p in range(end - 1, 0, -1) if ids[p - 1 : p + 1] == ids[end - 1 :]]
    best, most = -1, needed - 1
    for place in places[:MAX_CANDIDATES]:
        count = 0
        while count < min(place + 1, MAX_NGRAM) and ids[place - count] == ids[end - count]:
            count += 1
        if count > most:
            best, most = place, count
    return best


@pytest.mark.parametrize("vocab", [2, 5, 30])
def test_a_draft_is_what_followed_the_longest_match(vocab):
    rng = np.random.default_rng(vocab)
    for _ in range(60):
        ids = rng.integers(0, vocab, int(rng.integers(2, 200))).tolist()
        lookup = lookup_of(ids[:1])
        for token in ids[1:]:
            lookup.add(token)
        place, draft = search(ids), lookup.draft()
        if place < 0:
            assert draft == []
            continue
        again = [*ids]
        for _ in range(4):
            again.append(again[len(again) - (len(ids) - 1 - place)])
        assert draft == again[len(ids) :]


def test_the_latest_of_equal_matches_is_taken():
    assert lookup_of([5, 6, 1, 5, 6, 2, 5, 6]).draft(1) == [2]


def test_a_longer_match_is_taken_before_a_later_one():
    assert lookup_of([9, 5, 6, 1, 8, 5, 6, 2, 9, 5, 6]).draft(1) == [1]


@pytest.mark.parametrize("ids", [[], [5], [5, 6], [5, 6, 7, 6], [5, 5]])
def test_nothing_to_go_by_is_no_draft(ids):
    lookup = lookup_of(ids[:1])
    for token in ids[1:]:
        lookup.add(token)
    assert lookup.draft() == []


def with_sound(ids, start, length):
    """A prompt whose tokens at `start` are those of a sound."""
    span = SoftTokenSpan(start, length, Modality.AUDIO)
    frames = np.zeros((length, 640), np.float32)
    return ModelInputs(np.array(ids, np.int32), (span,), frames=frames)


def test_soft_tokens_are_neither_drafted_nor_looked_up():
    sound = 99
    follows = with_sound([5, 6, *[sound] * 4, 7, 5, 6], 2, 4)
    assert PromptLookup(follows).draft() == []
    spelled = with_sound([5, 6, *[sound] * 4, 7, 8, sound, sound], 2, 4)
    assert PromptLookup(spelled).draft() == []
    later = with_sound([1, 2, 5, 6, 0, 9, sound, 5, 6], 6, 1)
    assert PromptLookup(later).draft() == [0, 9]
    before = with_sound([sound, 5, 6, 1, sound, 5, 6, 2, 5, 6], 0, 1)
    assert PromptLookup(before).draft(1) == [2]


def test_a_draft_ends_with_the_end_of_a_turn():
    assert lookup_of([5, 6, 1, 7, 3, 5, 6], stop_tokens=[1]).draft() == [1]
    assert lookup_of([5, 6, 2, 1, 3, 5, 6], stop_tokens=[1]).draft() == [2, 1]


def test_a_draft_grows_with_success_up_to_its_limit():
    lookup = lookup_of([*range(100), 0, 1], num_draft_tokens=11)
    lengths = []
    for _ in range(4):
        draft = lookup.draft()
        lengths.append(len(draft))
        lookup.learn(len(draft), len(draft))
    assert lengths == [4, 8, 11, 11]
    lookup.learn(11, 5)
    assert len(lookup.draft()) == 6
    assert len(lookup.draft(3)) == 3
    assert lookup.draft(0) == []
    assert (lookup.draft_tokens, lookup.accepted_tokens) == (4 + 8 + 11 + 11 + 11, 4 + 8 + 22 + 5)


def test_each_failure_asks_for_a_longer_match():
    ids = [*range(30), *range(10, 10 + WARY_NGRAM)]
    for length in range(MIN_NGRAM, WARY_NGRAM + 1):
        lookup = lookup_of([*range(30), 50, *range(10, 10 + length)])
        failures = 0
        while lookup.draft():
            lookup.learn(2, 0)
            failures += 1
            if failures > WARY_NGRAM:
                break
        assert failures == (length - MIN_NGRAM + 1 if length < WARY_NGRAM else WARY_NGRAM + 1)
    lookup = lookup_of([*ids[:-2], 50, *range(10, 12)])
    lookup.learn(2, 0)
    assert lookup.draft() == []
    lookup.learn(4, 2)  # success makes it bold again
    assert lookup.draft() != []


def test_a_text_that_repeats_itself_is_drafted_round_and_round():
    assert lookup_of([7, 8, 7, 8]).draft() == [7, 8, 7, 8]
    assert lookup_of([7, 7, 7]).draft() == [7, 7, 7, 7]


def test_every_draft_can_be_undone():
    assert MAX_DRAFT_TOKENS == 15
    assert MAX_DRAFT_TOKENS + 1 <= RING_SLACK


@pytest.mark.parametrize("length", [-1, 0, 1, 16])
def test_a_length_out_of_range_is_refused(length):
    with pytest.raises(OptionError, match=f"num_draft_tokens is {length}; allowed is 2 to 15"):
        lookup_of([1], num_draft_tokens=length)
