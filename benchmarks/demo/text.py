"""Write the demo's text tasks: copying, reversing, upper case, adding, one tool call, small talk.

Held-out samples are told apart by a hash of what is asked, so that none of them is ever trained on.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Any

from benchmarks.demo import words

HELD_OUT_OF_16 = 1  # one word list or sum in sixteen is never trained on


@dataclass
class TextTask:
    """A prompt and the answer; `reply` is all the model writes, thought and special tokens too."""

    task: str
    question: str
    reply: str
    thinking: bool = False
    tools: tuple[str, ...] = ()
    call: tuple[str, str] | None = None  # tool and city, when the tool has answered
    response: str | dict[str, Any] | None = None


def is_held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % 16 < HELD_OUT_OF_16


def pick_words(rng: random.Random, held_out: bool, low: int = 2) -> list[str]:
    while True:
        chosen = rng.sample(words.WORDS, rng.randint(low, 5))
        if rng.random() < 0.2:
            chosen[rng.randrange(len(chosen))] = str(rng.randint(0, 9999))
        if is_held_out(" ".join(chosen)) == held_out:
            return chosen


def ask(rng: random.Random, question: str, *slots: object) -> str:
    return rng.choice(words.ASK[question]).format(*slots)


def write_words(rng: random.Random, task: str, held_out: bool) -> TextTask:
    chosen = pick_words(rng, held_out)
    answer = " ".join(chosen)
    if task == "reverse":
        answer = " ".join(reversed(chosen))
    elif task == "upper":
        answer = answer.upper()
    return TextTask(task, ask(rng, task, " ".join(chosen)), answer)


def add_thought(a: int, b: int) -> str:
    """The sum digit by digit from the right, as a child writes it."""
    lines, carry = [], 0
    while a or b or not lines:
        total = a % 10 + b % 10 + carry
        lines.append(f"{a % 10}+{b % 10}+{carry}={total}")
        a, b, carry = a // 10, b // 10, total // 10
    return "\n".join(lines)


def write_sum(rng: random.Random, held_out: bool, thinking: bool) -> TextTask:
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if is_held_out(f"{a}+{b}") == held_out:
            break
    reply = str(a + b)
    if thinking:
        reply = f"<|channel>thought\n{add_thought(a, b)}\n<channel|>{reply}"
    name = "add with a thought" if thinking else "add"
    return TextTask(name, ask(rng, "add", a, b), reply, thinking=thinking)


def write_call(rng: random.Random, held_out: bool) -> TextTask:
    """A tool call, or the sentence after the tool has answered."""
    tool, question = rng.choice((("get_weather", "weather"), ("get_time", "time")))
    tools = [tool] if rng.random() < 0.5 else rng.sample(list(words.TOOLS), 2)
    while True:
        city, wording = rng.choice(words.CITIES), rng.choice(words.ASK[question])
        if is_held_out(city + wording) == held_out:
            break
    prompt = wording.format(city)
    if rng.random() < 0.7:
        reply = f'<|tool_call>call:{tool}{{city:<|"|>{city}<|"|>}}<tool_call|><|tool_response>'
        return TextTask("tool call", prompt, reply, tools=tuple(tools))
    if tool == "get_weather":
        sky, degrees = rng.choice(words.SKIES), rng.randint(-9, 39)
        response: str | dict[str, Any] = {"sky": sky, "temperature": degrees}
        reply = f"It is {sky} and {degrees} degrees in {city}."
    else:
        response = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        reply = f"It is {response} in {city}."
    return TextTask(
        "tool answer", prompt, reply, tools=tuple(tools), call=(tool, city), response=response
    )


def write_text(rng: random.Random, held_out: bool = False) -> TextTask:
    kind = rng.choices(
        ("copy", "reverse", "upper", "think", "add", "call", "chat"),
        (1.5, 2.5, 1.5, 2, 8, 2.5, 0.3),
    )[0]
    if kind in ("copy", "reverse", "upper"):
        return write_words(rng, kind, held_out)
    if kind == "call":
        return write_call(rng, held_out)
    if kind == "chat":
        questions, reply = rng.choice(words.CHAT)
        return TextTask("chat", rng.choice(questions), reply)
    return write_sum(rng, held_out, thinking=kind == "think")
