"""The pictures and sounds on which this project's processors and transformers' must agree.

Drawn from seeds in whole numbers, so that every machine draws the same and only a few values of
the reference need to be stored: see benchmarks/processor_goldens.py.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class GoldenPicture:
    """One picture: its size in pixels, its soft-token budget, what is on it, its colour mode."""

    width: int
    height: int
    budget: int
    kind: str
    mode: str = "RGB"

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}-{self.budget}-{self.kind}-{self.mode}"


PICTURES = (
    GoldenPicture(1, 1, 280, "noise"),
    GoldenPicture(2, 3, 70, "noise"),
    GoldenPicture(1, 5000, 280, "noise"),
    GoldenPicture(5000, 1, 70, "noise"),
    GoldenPicture(7, 1300, 140, "photo"),
    GoldenPicture(48, 48, 70, "checks"),
    GoldenPicture(47, 49, 280, "noise"),
    GoldenPicture(96, 96, 70, "lines"),
    GoldenPicture(100, 100, 70, "noise"),
    GoldenPicture(192, 144, 70, "lines"),
    GoldenPicture(256, 144, 70, "ramps"),
    GoldenPicture(320, 240, 140, "photo", "P"),
    GoldenPicture(333, 777, 280, "noise"),
    GoldenPicture(432, 336, 70, "noise"),
    GoldenPicture(480, 640, 280, "lines"),
    GoldenPicture(640, 480, 140, "photo"),
    GoldenPicture(640, 360, 1120, "noise"),
    GoldenPicture(800, 600, 560, "photo", "RGBA"),
    GoldenPicture(900, 675, 280, "checks", "L"),
    GoldenPicture(912, 672, 280, "lines"),
    GoldenPicture(1000, 1000, 70, "noise"),
    GoldenPicture(1024, 768, 280, "lines"),
    GoldenPicture(1080, 1920, 560, "photo"),
    GoldenPicture(1280, 720, 280, "noise", "CMYK"),
    GoldenPicture(1500, 90, 280, "lines"),
    GoldenPicture(1748, 1240, 1120, "lines"),
    GoldenPicture(1920, 1080, 280, "checks"),
    GoldenPicture(2592, 1944, 1120, "noise"),
    GoldenPicture(3024, 4032, 1120, "photo"),
    GoldenPicture(4000, 3000, 280, "noise"),
)

SIDES = (1, 2, 3, 5, 7, 13, 24, 47, 48, 49, 64, 95, 96, 97, 100, 127, 144, 160, 192, 224, 240, 256)
SIDES += (288, 320, 333, 336, 384, 432, 480, 512, 600, 640, 672, 720, 768, 800, 912, 1000, 1024)
SIDES += (1080, 1120, 1240, 1280, 1344, 1440, 1500, 1748, 1824, 1920, 2048, 2480, 2592, 3000, 3024)
SIDES += (3508, 4000, 4032, 5000, 6000, 8000, 9000, 12000)
"""Widths and heights of the sizes that `fit_size` is checked on, each with each."""

SOUND_LENGTHS = (1, 2, 639, 640, 641, 1279, 1280, 1281, 16000, 479999, 480000, 480001, 800123)
"""Samples at 16 kHz; the last three are beyond the 30 seconds of training."""

CLIPS = ((1, 1), (7, 7), (24, 8), (30, 8), (30, 29), (100, 32), (900, 32), (1799, 32), (5400, 60))
"""(frames in the clip, frames asked for)."""

CLIP_RATES = ((30, 29.97, 1.0), (900, 30.0, 1.0), (1799, 29.97, 0.5), (5, 60.0, 1.0), (48, 24.0, 2))
"""(frames in the clip, its frames a second, frames a second asked for)."""


def draw(picture: GoldenPicture) -> Image.Image:
    """Return the picture in its own mode and size."""
    rng = np.random.default_rng(picture.width * 100_003 + picture.height)
    pixels = _KINDS[picture.kind](rng, picture.width, picture.height)
    if picture.mode == "RGBA":
        y, x = np.mgrid[: picture.height, : picture.width]
        alpha = ((x // 5 + y // 3) % 256).astype(np.uint8)
        return Image.fromarray(np.dstack([pixels, alpha]))
    image = Image.fromarray(pixels)
    if picture.mode == "P":
        image = image.quantize(64, dither=Image.Dither.NONE)
        image.info["transparency"] = 3
    elif picture.mode == "CMYK":
        black = Image.fromarray(pixels[..., 1] // 3)
        image = Image.merge("CMYK", (*image.split(), black))
    return image.convert(picture.mode)


def draw_sound(length: int) -> np.ndarray:
    """Return [length] float32 samples, each a whole number of 1/32768."""
    rng = np.random.default_rng(length)
    return rng.integers(-32768, 32768, length).astype(np.float32) / np.float32(32768)


def sample_positions(count: int, num_values: int) -> np.ndarray:
    """Return which of a picture's `count` values are stored, spread at random."""
    return np.sort(np.random.default_rng(count).integers(0, count, num_values))


def _noise(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _checks(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    dark = (x // 5 + y // 7) % 2 == 0
    return np.where(dark[..., None], rng.integers(0, 256, 3), rng.integers(0, 256, 3)).astype(
        np.uint8
    )


def _ramps(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.dstack([x * 255 // width, y * 255 // height, (x + y) % 256]).astype(np.uint8)


def _lines(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Strokes of one or two pixels on paper, as text has."""
    y, x = np.mgrid[:height, :width]
    ink = (y % 11 < 7) & ((x * 7 + (y // 11) * 13) % 17 < 4)
    pixels = np.where(ink[..., None], 30, 235) + rng.integers(-9, 10, (height, width, 3))
    return pixels.astype(np.uint8)


def _photo(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Blocks on blocks: structure at every scale, as photographs have."""
    total = rng.integers(0, 32, (height, width, 3), dtype=np.uint8)  # 31 + 95 + 63 + 63 < 256
    for size, weight in ((97, 96), (23, 64), (5, 64)):
        rows, columns = -(-height // size), -(-width // size)
        coarse = rng.integers(0, weight, (rows, columns, 3), dtype=np.uint8)
        total += coarse.repeat(size, 0)[:height].repeat(size, 1)[:, :width]
    return total


_KINDS = {"noise": _noise, "checks": _checks, "ramps": _ramps, "lines": _lines, "photo": _photo}
