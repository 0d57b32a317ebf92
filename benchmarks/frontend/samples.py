"""What is shown and played, undistorted: drawings and sounds that training never saw.

Sample `index` of a task has random numbers of its own, so that all conditions ask about the same
samples, and a longer run has those of a shorter one.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.demo import pictures, sounds, text, words

SIZE = (192, 144)
DIGITS = 2
KEYS = 3
# About its centre, what is drawn can be turned without leaving the picture: of its radius.
ROOM = 1.3

Score = Callable[[str, str], bool]
"""Whether (wanted answer, given answer) counts."""


@dataclass(frozen=True)
class Sample:
    """A question about a picture [H, W, 3] uint8 or a sound [n] float32; neither for a text."""

    question: str
    answer: str
    content: Any = None
    centre: tuple[float, float] = (0.0, 0.0)  # of what is drawn, in pixels


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        medium: What it is about.
        draw: Makes a sample.
        scores: What counts as right, by name.
        chance: Share of right answers of somebody who guesses, by name of the score.
        max_tokens: Enough for the right answer and for seeing that more is said.
    """

    medium: Literal["image", "audio"] | None
    draw: Callable[[random.Random], Sample]
    scores: Mapping[str, Score]
    chance: Mapping[str, float]
    max_tokens: int = 8


def ask(rng: random.Random, question: str) -> str:
    return rng.choice(words.ASK[question])


def draw_object(
    rng: random.Random,
    radius: tuple[float, float] = (28, 46),
    size: tuple[int, int] = SIZE,
    room: float = ROOM,
    shapes: tuple[str, ...] = words.SHAPES,
    place: Callable[[float], tuple[float, float]] | None = None,
) -> Sample:
    """One object; `place` says for its radius where its centre lies, in pixels."""
    width, height = size
    r = rng.uniform(*radius)
    x, y = rng.uniform(room * r, width - room * r), rng.uniform(room * r, height - room * r)
    if place:
        x, y = place(r)
    item = pictures.Item(x, y, r, r, rng.choice(shapes), rng.choice(list(words.COLOURS)))
    pixels = pictures.paint(size, [item], rng.choice(pictures.BACKGROUNDS), sharp=False)
    return Sample(ask(rng, "shape and colour"), item.name, pixels, (x, y))


def draw_number(
    rng: random.Random,
    height: tuple[float, float] = (24, 44),
    size: tuple[int, int] = SIZE,
    is_roomy: bool = True,
) -> Sample:
    """Two digits; `is_roomy` asks for room to turn."""
    while True:
        number = "".join(rng.choices("0123456789", k=DIGITS))
        picture = pictures.draw_number(rng, size, number, height)
        x = sum(item.x for item in picture.items) / DIGITS
        y = picture.items[0].y
        half_diagonal = np.hypot(DIGITS * picture.items[0].half_width, picture.items[0].half_height)
        edge = min(x, y, size[0] - x, size[1] - y)
        if edge >= half_diagonal or not is_roomy:
            return Sample(ask(rng, "number"), number, picture.pixels, (x, y))


def play_keys(rng: random.Random) -> Sample:
    sound = sounds.play_keys(rng, "".join(rng.choices(words.KEYS, k=KEYS)))
    return Sample(ask(rng, "keys"), sound.answer, sound.samples)


def play_melody(rng: random.Random) -> Sample:
    sound = sounds.play_melody(rng)
    return Sample(ask(rng, "melody"), sound.answer, sound.samples)


def write_copy(rng: random.Random) -> Sample:
    task = text.write_words(rng, "copy", held_out=True)
    return Sample(task.question, task.reply)


def is_same(wanted: str, given: str) -> bool:
    return wanted == given


def has_colour(wanted: str, given: str) -> bool:
    return given.split()[:1] == wanted.split()[:1]


def has_shape(wanted: str, given: str) -> bool:
    return given.split()[1:2] == wanted.split()[1:2]


def has_first_key(wanted: str, given: str) -> bool:
    return given[:1] == wanted[:1]


TASKS = {
    "object": Task(
        "image",
        draw_object,
        {"shape": has_shape, "colour": has_colour},
        {"shape": 1 / len(words.SHAPES), "colour": 1 / len(words.COLOURS)},
    ),
    "number": Task("image", draw_number, {"number": is_same}, {"number": 10**-DIGITS}),
    "keys": Task(
        "audio",
        play_keys,
        {"keys": is_same, "first key": has_first_key},
        {"keys": len(words.KEYS) ** -KEYS, "first key": 1 / len(words.KEYS)},
    ),
    "melody": Task("audio", play_melody, {"melody": is_same}, {"melody": 0.5}),
    "copy": Task(None, write_copy, {"copy": is_same}, {"copy": 0.0}, max_tokens=20),
}


def seeded(name: str, index: int, purpose: str = "sample") -> random.Random:
    """Return the random numbers of one sample of a task, for one purpose."""
    return random.Random(f"front end, {purpose}, {name}, {index}")
