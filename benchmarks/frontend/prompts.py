"""Prompts in which something stands before a medium, or between it and its question.

Positions turn by their differences alone (RoPE), so no layer can tell how far from the beginning
of a prompt a medium stands: its position is what stands before it, and it is said what that is.
"""

import random
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from benchmarks.demo import text, words
from benchmarks.frontend.axis import Ask, Question
from benchmarks.frontend.samples import TASKS, seeded
from mlx_gemma4.processing.processor import Processor

Filler = Literal["words before", "turns before", "words between"]
_Part = TypeVar("_Part")


def write_until(
    num_tokens: int,
    processor: Processor,
    write: Callable[[], _Part],
    render: Callable[[list[_Part]], str],
) -> list[_Part]:
    """Return what `write` gives, again and again, until it is so many tokens long."""
    parts: list[_Part] = []
    while len(processor.tokenizer.encode(render(parts))) < num_tokens:
        parts.append(write())
    return parts


def write_words(rng: random.Random, num_tokens: int, processor: Processor) -> str:
    """Words that training knows, in no order, and the end of their line."""

    def join(chosen: list[str]) -> str:
        return " ".join(chosen) + "\n" if chosen else ""

    return join(write_until(num_tokens, processor, lambda: rng.choice(words.WORDS), join))


def write_turns(rng: random.Random, num_tokens: int, processor: Processor) -> list[dict[str, Any]]:
    """Earlier requests to copy words, each with its right answer."""

    def write() -> text.TextTask:
        return text.write_words(rng, "copy", held_out=False)

    def render(turns: list[text.TextTask]) -> str:
        return "".join(
            f"<|turn>user\n{turn.question}<turn|>\n<|turn>model\n{turn.reply}<turn|>\n"
            for turn in turns
        )

    return [
        message
        for turn in write_until(num_tokens, processor, write, render)
        for message in (
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.reply},
        )
    ]


def crowded(filler: Filler) -> Ask:
    """Ask with so many tokens of a filler; the medium stands before its question, always."""

    def ask(task: str, index: int, level: int, processor: Processor) -> Question:
        sample = TASKS[task].draw(seeded(task, index))
        rng = seeded(task, index, filler)
        history: list[dict[str, Any]] = []
        before, question = "", sample.question
        if filler == "turns before":
            history = write_turns(rng, level, processor)
        elif filler == "words before":
            before = write_words(rng, level, processor)
        else:
            question = write_words(rng, level, processor) + question
        medium = TASKS[task].medium
        content: list[dict[str, Any]] = [{"type": "text", "text": before + question}]
        if medium:
            content = [{"type": medium, medium: sample.content}, {"type": "text", "text": question}]
            if before:
                content.insert(0, {"type": "text", "text": before})
        return Question([*history, {"role": "user", "content": content}], sample.answer)

    return ask
