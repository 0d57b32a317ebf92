"""Draw the demo's clips: one object that moves straight on over a plain background."""

import random
from dataclasses import dataclass

import numpy as np

from benchmarks.demo.pictures import BACKGROUNDS, Item, paint, random_item
from benchmarks.demo.words import DIRECTIONS


@dataclass
class Clip:
    """Frames, each [H, W, 3] uint8, their times in seconds, the object in each, and the answer."""

    frames: list[np.ndarray]
    times_s: list[float]
    items: list[Item]
    direction: str


def draw_clip(
    rng: random.Random,
    num_frames: int,
    size: tuple[int, int] = (192, 144),
    direction: str | None = None,
    seconds: float | None = None,
) -> Clip:
    """`num_frames` evenly spaced frames of a clip of 1 to 6 seconds."""
    direction = direction or rng.choice(list(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    width, height = size
    radius = rng.uniform(13, 24)
    diagonal = 0.75 if dx and dy else 1.0
    room = min(width if dx else 1e9, height if dy else 1e9) - 2 * radius - 4
    travel = rng.uniform(0.55, 1.0) * room
    steps = np.linspace(0, travel, num_frames) * diagonal
    first, last = steps[0], steps[-1]

    def start(span: int, sign: int) -> float:
        low, high = radius + 2, span - radius - 2
        if sign > 0:
            return rng.uniform(low, high - (last - first))
        if sign < 0:
            return rng.uniform(low + (last - first), high)
        return rng.uniform(low, high)

    x0, y0 = start(width, dx), start(height, dy)
    kind = random_item(rng, x0, y0, radius)
    background = rng.choice(BACKGROUNDS)
    items, frames = [], []
    for step in steps:
        item = Item(x0 + dx * step, y0 + dy * step, radius, radius, kind.shape, kind.colour)
        items.append(item)
        frames.append(paint(size, [item], background, sharp=False))
    seconds = seconds or rng.uniform(1, 6)
    times_s = [k * seconds / num_frames for k in range(num_frames)]
    return Clip(frames, times_s, items, direction)
