"""Answers of the demo checkpoint with prompt lookup against those without."""

from functools import cache

import pytest
from demo_prompts import demo_prompts, inputs_of

from mlx_gemma4.api import generate, generate_result, load

WORDS = ["tiger", "lemon", "cloud", "plane", "bread", "train", "salt", "mouse", "green", "seven"]
RECORDS = demo_prompts()
# Every kind of medium, several turns, thinking, and tools.
MEDIA = (0, 6, 20, 27, 30, 36, 37, 38, 39)
TEXTS = range(40, 50)


@cache
def demo():
    return load("demo", check_limits=False)


def both(prompt, **options):
    model, processor = demo()
    options = {"max_tokens": 40, **options}
    plain = generate_result(model, processor, prompt, **options)
    return plain, generate_result(model, processor, prompt, speculate="lookup", **options)


@pytest.mark.parametrize("index", [*MEDIA, *TEXTS])
def test_a_stored_prompt_has_the_same_answer(index):
    inputs = inputs_of(demo()[1], RECORDS[index])
    plain, lookup = both(inputs, temp=0.0)
    assert lookup.tokens == plain.tokens
    assert lookup.tokens == tuple(RECORDS[index]["ids"])
    assert (lookup.text, lookup.finish_reason) == (plain.text, plain.finish_reason)


def test_copied_words_are_accepted():
    """Twenty wordings, greedily and with a seed: the same ids, in fewer passes."""
    tokens = forwards = 0
    for index in range(20):
        words = " ".join(WORDS[(index * 3 + step * 7) % 10] for step in range(2 + index % 4))
        prompt = ("Say this again: ", "Repeat: ", "Copy these words: ")[index % 3] + words
        options = {"temp": 0.0} if index % 2 else {"temp": 1.2, "seed": index}
        plain, lookup = both(prompt, **options)
        assert lookup.tokens == plain.tokens
        tokens += lookup.generation_tokens
        forwards += lookup.forwards
    assert tokens > 1.2 * forwards


def test_the_text_is_what_generate_returns():
    model, processor = demo()
    text = generate(model, processor, "Repeat: tiger lemon cloud", speculate="lookup")
    assert text == "tiger lemon cloud"


def test_a_second_turn_on_the_same_cache_goes_on_as_without():
    model, processor = demo()
    turns = []
    for speculate in ("off", "lookup"):
        cache = model.make_cache()
        options = {"prompt_cache": cache, "speculate": speculate, "temp": 0.0, "max_tokens": 30}
        first = generate_result(model, processor, "Repeat: tiger lemon tiger lemon", **options)
        end = cache[0].offset
        second = generate_result(model, processor, "Repeat: salt mouse", **options)
        turns.append((first.tokens, end, second.tokens, cache[0].offset))
    assert turns[0] == turns[1]
