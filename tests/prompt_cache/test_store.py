"""What was read stays known: which part of a prompt, how long, and with the plain path's logits."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME
from prompt_parts import join, picture, read, sound, step_on, text

from mlx_gemma4.cache import SharedCache
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.prompt_cache.keys import common_prefix, prompt_keys, text_keys
from mlx_gemma4.prompt_cache.stops import Spacing, snapshot_stops
from mlx_gemma4.prompt_cache.store import PromptCacheStore

RELATIVE_RMS = 2e-5
CLOSE = Spacing(interval=64, turns=20, worth_keeping=4)  # the networks here have small windows
TURN, PARAGRAPH = 24, 23


@pytest.fixture(scope="module")
def model():
    """A network of 6 layers with a window of 32."""
    return model_of(CASES_BY_NAME["image_decode"])


def new_store(model, **options):
    options = {
        "spacing": CLOSE,
        "turn_token_id": TURN,
        "paragraph_token_id": PARAGRAPH,
    } | options
    return PromptCacheStore(model.make_cache, **options)


def ask(model, store, inputs, answer=()):
    """Read a prompt and an answer; return how much was known of it."""
    with store.open(inputs) as reading:
        read(model, reading)
        if answer:
            step_on(model, reading, answer)
            reading.tokens.extend(answer)
    return reading.cached_tokens


def test_pictures_of_the_same_ids_are_told_apart(rng):
    a, b = picture(rng, 5, 4), picture(rng, 5, 4)
    assert (a.input_ids == b.input_ids).all()
    assert common_prefix(prompt_keys(a), prompt_keys(a)) == 22
    assert common_prefix(prompt_keys(a), prompt_keys(b)) == 1  # not a token of it


def test_a_longer_sound_begins_as_the_shorter(rng):
    whole = sound(rng, 30)
    shorter = whole.slice(0, 21)
    assert common_prefix(prompt_keys(whole), prompt_keys(shorter)) == 21


@pytest.mark.parametrize(("is_turned", "same"), [(False, 35), (True, 11)])
def test_the_grid_is_part_of_a_picture(rng, is_turned, same):
    head, image = text(rng, 10), picture(rng, 5, 4)
    positions = np.array(image.patch_positions)
    other = ModelInputs(image.input_ids, image.spans, image.patches, positions)
    if is_turned:
        positions[:] = positions[::-1]
    tail = text(rng, 3)
    keys = [prompt_keys(join(head, i, tail)) for i in (image, other)]
    assert common_prefix(*keys) == same


def test_a_prompt_is_the_prefix_of_a_longer_one():
    assert common_prefix(text_keys([1, 2]), text_keys([1, 2, 3])) == 2


def test_the_last_turn_the_end_and_long_texts_are_halted_at():
    ids = np.full(10_000, 50, np.int32)
    ids[[1, 300, 9_000, 9_100, 9_990]] = TURN
    inputs = ModelInputs.from_ids(ids)
    find_stops = partial(
        snapshot_stops,
        inputs,
        spacing=Spacing(),
        turn_token_id=TURN,
        paragraph_token_id=PARAGRAPH,
        slack=16,
    )
    # 9,990 is reached from the end, 9,000 is near to 9,100, 1 is at the start.
    assert find_stops(0) == [300, 4396, 9_100, 10_000]
    assert find_stops(9_000, partings=[9_500]) == [9_500, 10_000]
    ids[[200, 2_000, 9_800]] = PARAGRAPH
    assert find_stops(0) == [300, 4396, 9_100, 9_801, 10_000]


def test_no_picture_is_halted_in(rng):
    inputs = join(text(rng, 60), picture(rng, 8, 6), text(rng, 3))
    stops = snapshot_stops(inputs, 0, CLOSE, turn_token_id=None, paragraph_token_id=None, slack=0)
    assert stops == [61, 109, 113]  # 64 would be in it


def test_a_document_is_read_once(model, rng):
    store = new_store(model)
    document = join(text(rng, 300), ModelInputs.from_ids([TURN]))
    assert ask(model, store, join(document, text(rng, 20)), [5, 6, 7]) == 0
    for _ in range(5):
        assert ask(model, store, join(document, text(rng, 20)), [5, 6, 7]) == 300


def test_a_document_in_the_turn_of_the_question_is_read_once(model, rng):
    store = new_store(model)
    document = join(text(rng, 300), ModelInputs.from_ids([PARAGRAPH]))
    known = [ask(model, store, join(document, text(rng, 30))) for _ in range(3)]
    assert known == [0, 301, 301]


def test_where_prompts_part_is_learned(model, rng):
    store = new_store(model)
    document = text(rng, 300)
    known = [ask(model, store, join(document, text(rng, 30))) for _ in range(3)]
    assert known == [0, 256, 300]


def test_the_same_prompt_again_needs_one_position(model, rng):
    store = new_store(model)
    prompt = text(rng, 100)
    assert ask(model, store, prompt, [7, 8, 9]) == 0
    assert ask(model, store, prompt, [7, 8, 9]) == 99


def test_a_conversation_goes_on_where_it_ended(model, rng):
    store = new_store(model)
    prompt = text(rng, 100)
    assert ask(model, store, prompt, [7, 8, 9]) == 0
    prompt = join(prompt, ModelInputs.from_ids([7, 8, 9]), text(rng, 10))
    assert ask(model, store, prompt, [4]) == 103
    assert len(store) == 1


def test_prompts_that_part_early_both_stay(model, rng):
    store = new_store(model)
    root = join(text(rng, 100), ModelInputs.from_ids([TURN]))
    first, second = (join(root, text(rng, 80)) for _ in range(2))
    assert ask(model, store, first) == 0
    assert ask(model, store, second) == 100
    assert len(store) == 2
    assert ask(model, store, join(first, text(rng, 5))) == 180 + 1
    assert ask(model, store, join(second, text(rng, 5))) == 180 + 1


def test_several_prompts_are_read_at_once(model, rng):
    store = new_store(model)
    root = join(text(rng, 100), ModelInputs.from_ids([TURN]))
    ask(model, store, join(root, text(rng, 30)))
    prompts = [join(root, text(rng, count)) for count in (40, 50)]
    readings = [store.fetch(prompt) for prompt in prompts]
    assert [reading.cached_tokens for reading in readings] == [100, 100]
    for prompt, reading in zip(prompts, readings, strict=True):
        assert_equal(read(model, reading, 16), model, prompt)
        store.insert(reading)


def test_the_budget_is_kept_and_the_root_stays(model, rng):
    store = new_store(model)
    ask(model, store, text(rng, 10))
    one = store.nbytes  # one snapshot of 256 slots
    store = new_store(model, max_bytes=3 * one)
    prompt = join(text(rng, 200), ModelInputs.from_ids([TURN]), text(rng, 30))
    start = prompt
    for _ in range(10):
        known = ask(model, store, prompt, [5])
        assert store.nbytes <= 3 * one
        assert known >= len(prompt) - 40 or prompt is start
        prompt = join(prompt, ModelInputs.from_ids([5, TURN]), text(rng, 30))
    assert ask(model, store, join(start.slice(0, 180), text(rng, 9))) >= 64


def test_old_prompts_go_before_new_ones(model, rng):
    prompts = [text(rng, 80) for _ in range(6)]
    store = new_store(model)
    for prompt in prompts[:2]:
        ask(model, store, prompt)
    store.max_bytes = store.nbytes
    for prompt in prompts[2:]:
        ask(model, store, prompt)
        assert store.nbytes <= store.max_bytes
    assert [store.fetch(prompt).cached_tokens > 0 for prompt in prompts] == [
        *[False] * 4,
        *[True] * 2,
    ]


def test_with_no_budget_the_newest_prompt_stays(model, rng):
    store = new_store(model, max_bytes=0)
    prompt = text(rng, 80)
    ask(model, store, prompt, [4, 5])
    assert store.nbytes == 0
    assert ask(model, store, join(prompt, ModelInputs.from_ids([4, 5, 6]))) == 82


def test_an_interrupted_prompt_is_known_up_to_there(model, rng):
    store = new_store(model)
    prompt = text(rng, 200)
    reading = store.fetch(prompt)
    read(model, reading, until=2)
    store.insert(reading)
    assert store.fetch(prompt).cached_tokens == 128


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_interrupted_between_two_layers_it_goes_back(model, rng, layers):
    store = new_store(model)
    prompt = text(rng, 200)
    reading = store.fetch(prompt)
    read(model, reading, until=2)
    for layer_cache in reading.prompt_cache[:layers]:  # as if they had read on
        layer_cache.trim(3)
    store.insert(reading)
    again = store.fetch(prompt)
    assert again.cached_tokens in (64, 128) if layers else again.cached_tokens == 128
    assert_equal(read(model, again), model, prompt)


def test_an_answer_that_is_not_told_is_not_kept(model, rng):
    store = new_store(model)
    prompt = text(rng, 100)
    reading = store.fetch(prompt)
    read(model, reading)
    step_on(model, reading, [7, 8, 9])
    store.insert(reading)
    again = store.fetch(join(prompt, ModelInputs.from_ids([7, 8, 9, 10])))
    assert again.cached_tokens == 100
    assert_equal(read(model, again), model, again.inputs)


def test_a_reading_comes_back_once(model, rng):
    store = new_store(model)
    reading = store.fetch(text(rng, 10))
    read(model, reading)
    store.insert(reading)
    store.insert(store.fetch(text(rng, 10)))  # nothing was read
    assert len(store) == 1
    with pytest.raises(ValueError, match="another store"):
        new_store(model).insert(reading)


@pytest.mark.parametrize("head", [100, 95])
def test_going_on_copies_no_rows(model, rng, head):
    """From the end, or from a snapshot near it: rows are taken over, not copied."""
    store = new_store(model, spacing=Spacing())
    prompt = text(rng, 100)
    ask(model, store, prompt)
    layer_cache = store._lines[0].prompt_cache[5]
    assert isinstance(layer_cache, SharedCache)
    layer_cache.state = [mx.zeros((1, 1, 100_000, 80))]  # room for as many
    mx.eval(layer_cache.state)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert ask(model, store, join(prompt.slice(0, head), text(rng, 3))) == head
    assert mx.get_peak_memory() - before < layer_cache.nbytes / 4


def assert_equal(logits, model, inputs):
    """Compare the logits of the last positions of a prompt with the plain path's."""
    plain = np.array(model(inputs))[-len(logits) :]
    difference(logits, plain).assert_within(RELATIVE_RMS)
