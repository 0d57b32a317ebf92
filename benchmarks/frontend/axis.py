"""An axis is one thing that changes, in levels; a condition is a task at one of its levels.

A level of None leaves the sample as it was drawn; that is asked once, for all axes.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks.frontend.samples import TASKS, Sample, seeded
from mlx_gemma4.processing.processor import Processor

Level = float | str | None
MEDIA_OPTIONS = {"image": "images", "audio": "audio"}


@dataclass(frozen=True)
class Question:
    """What the model is asked, and the right answer."""

    prompt: Any
    answer: str
    options: dict[str, Any] = field(default_factory=dict)


Ask = Callable[[str, int, Any, Processor], Question]
"""Makes the question for (task, index of the sample, level)."""


def is_as_drawn(_: str, level: Level) -> bool:
    return level is None


@dataclass(frozen=True)
class Axis:
    """One thing that changes.

    Attributes:
        medium: Of what it changes.
        what: Changes, in a line.
        unit: Behind each number.
        drawn: What the level None is called.
        ask: Makes a question.
        is_trained: Whether training had such samples, for (task, level).
        has_shift: Whether patches or frames keep their places, so that the soft tokens can be
            compared with those of the sample as drawn.
    """

    name: str
    medium: Literal["picture", "sound", "prompt"]
    what: str
    levels: tuple[Level, ...]
    tasks: tuple[str, ...]
    ask: Ask
    unit: str = ""
    drawn: str = "as drawn"
    is_trained: Callable[[str, Any], bool] = is_as_drawn
    has_shift: bool = False

    def label(self, level: Level) -> str:
        if level is None:
            return self.drawn
        return level if isinstance(level, str) else f"{level:g}{self.unit}"


@dataclass(frozen=True)
class Condition:
    """A task at a level of an axis; those that leave the sample as drawn share a key."""

    axis: Axis
    task: str
    level: Level

    @property
    def key(self) -> str:
        if self.level is None:
            return f"{self.task}, as drawn"
        return f"{self.task}, {self.axis.name} {self.axis.label(self.level)}"


def about(task: str, sample: Sample, content: Any, **options: Any) -> Question:
    """Ask a sample's question about some content in place of its own."""
    medium = TASKS[task].medium
    media = {MEDIA_OPTIONS[medium]: [content]} if medium else {}
    return Question(sample.question, sample.answer, media | options)


def distorted(change: Callable[[Sample, Any, np.random.Generator], Any]) -> Ask:
    """Ask about samples as they are drawn, changed by the level."""

    def ask(task: str, index: int, level: Level, _: Processor) -> Question:
        sample = TASKS[task].draw(seeded(task, index))
        if level is None:
            return about(task, sample, sample.content)
        # The same at each level: less noise is the same noise, weaker.
        rng = np.random.default_rng(seeded(task, index, "distortion").randrange(2**32))
        return about(task, sample, change(sample, level, rng))

    return ask


def redrawn(draw: Callable[[str, random.Random, Any], Sample]) -> Ask:
    """Ask about samples that are drawn for the level, from the same random numbers."""

    def ask(task: str, index: int, level: Level, _: Processor) -> Question:
        sample = draw(task, seeded(task, index), level)
        return about(task, sample, sample.content)

    return ask
