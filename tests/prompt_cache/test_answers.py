"""Answers with a store are those without one, and less is read for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_gemma4 import generate_result, load, open_prompt_store
from mlx_gemma4.errors import PromptCacheError

DOCUMENT = "The tiger eats a lemon. " * 60  # what is shorter is sooner read again than kept
QUESTIONS = ["Say this again: tiger lemon", "Copy: cloud plane", "What is 3 + 4?"]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("demo", check_limits=False)


def ask(demo: Any, question: str, **options: Any) -> Any:
    messages = [
        {"role": "user", "content": DOCUMENT},
        {"role": "assistant", "content": "I have read it."},
        {"role": "user", "content": question},
    ]
    model, processor = demo
    return generate_result(model, processor, messages, max_tokens=8, temp=0, **options)


@pytest.mark.parametrize("speculate", ["off", "lookup"])
def test_answers_are_the_same_and_the_document_is_read_once(demo: Any, speculate: str) -> None:
    store = open_prompt_store(*demo)
    stored: Any = None
    for number, question in enumerate([*QUESTIONS, QUESTIONS[0]]):
        plain = ask(demo, question)
        stored = ask(demo, question, prompt_store=store, speculate=speculate)
        assert stored.tokens == plain.tokens
        assert stored.prompt_tokens == plain.prompt_tokens
        assert plain.cached_tokens == 0
        assert (stored.cached_tokens > 300) is (number > 0)
    assert stored.prompt_tokens - stored.cached_tokens < 30  # the question alone


def test_a_picture_is_known_by_its_content(demo: Any, rng: np.random.Generator) -> None:
    model, processor = demo
    store = open_prompt_store(model, processor)
    pictures = [rng.integers(0, 255, (480, 480, 3), np.uint8) for _ in range(2)]
    options: dict[str, Any] = {"image_tokens": 560, "max_tokens": 2, "temp": 0}
    known = [
        generate_result(
            model, processor, "What is this?", images=[picture], prompt_store=store, **options
        ).cached_tokens
        for picture in (*pictures, pictures[0])
    ]
    assert known[0] == 0
    assert known[1] < 10 < 500 < known[2]  # what stands before the picture, and all of it


def test_it_outlives_the_process_and_belongs_to_one_model(demo: Any, tmp_path: Path) -> None:
    store = open_prompt_store(*demo, path=tmp_path / "kept.safetensors")
    first = ask(demo, QUESTIONS[0], prompt_store=store)
    store.save()
    model, processor = load("demo", check_limits=False)
    again = open_prompt_store(model, processor, tmp_path / "kept.safetensors")
    result = ask(demo, QUESTIONS[0], prompt_store=again)
    assert result.tokens == first.tokens
    assert result.prompt_tokens - result.cached_tokens < 30
    other, processor = load("demo", check_limits=False, quantize=8)
    with pytest.raises(PromptCacheError, match="it is of another model"):
        open_prompt_store(other, processor, tmp_path / "kept.safetensors")


def test_a_cache_and_a_store_exclude_each_other(demo: Any) -> None:
    store = open_prompt_store(*demo)
    with pytest.raises(TypeError, match="exclude each other"):
        ask(demo, QUESTIONS[0], prompt_store=store, prompt_cache=demo[0].make_cache())
