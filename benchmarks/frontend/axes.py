"""The axes along which the front ends are tried, and what training had of each."""

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.demo import pictures, words
from benchmarks.frontend import distortions
from benchmarks.frontend.axis import Axis, Condition, Level, about, distorted, redrawn
from benchmarks.frontend.prompts import crowded
from benchmarks.frontend.samples import SIZE, TASKS, Sample, draw_number, draw_object, seeded
from mlx_gemma4.processing.image import fit_size, resize
from mlx_gemma4.processing.processor import Processor

BUDGET = 70  # soft tokens of a picture, the demo's own
PATCHES = (9, 7)  # of SIZE at this budget
PATCH_NOISE = 4  # sigma in levels of 255
FRAME = 640
ORIENTED = ("square", "triangle", "star", "cross")  # a circle turned is a circle
SIZES = {
    "16:9": (256, 144),
    "4:3": (192, 144),
    "1:1": (160, 160),
    "3:4": (144, 192),
    "2:1": (232, 116),
    "1:2": (116, 232),
    "3:1": (288, 96),
    "1:3": (96, 288),
    "5:1": (360, 72),
    "1:5": (72, 360),
}
PLACES = tuple(f"{row} {column}" for row in words.ROWS for column in words.COLUMNS)


# Samples that are drawn for the level.


def draw_turned(task: str, rng: random.Random, degrees: float) -> Sample:
    sample = draw_object(rng, shapes=ORIENTED) if task == "object" else draw_number(rng)
    turned = distortions.rotate(sample.content, degrees, sample.centre)
    return Sample(sample.question, sample.answer, turned)


def draw_tall(task: str, rng: random.Random, height: float) -> Sample:
    if task == "number":
        return draw_number(rng, (height, height), is_roomy=False)
    return draw_object(rng, (height / 2, height / 2), room=1.05)


def draw_shaped(task: str, rng: random.Random, ratio: str) -> Sample:
    size = SIZES[ratio]
    if task == "number":
        return draw_number(rng, (24, 32), size, is_roomy=False)
    return draw_object(rng, (16, 28), size)


def draw_placed(_: str, rng: random.Random, place: str) -> Sample:
    cell = PLACES.index(place)
    cell_size = SIZE[0] / 3, SIZE[1] / 3

    def centre(r: float) -> tuple[float, float]:
        x = (cell % 3 + rng.random()) * cell_size[0]
        y = (cell // 3 + rng.random()) * cell_size[1]
        x = min(max(x, r + 2), SIZE[0] - r - 2)
        return x, min(max(y, r + 2), SIZE[1] - r - 2)

    return draw_object(rng, (16, 24), place=centre)


def draw_in_phase(_: str, rng: random.Random, phase: float) -> Sample:
    """The centre at a share of a patch, in both directions; less than two patches wide."""
    side = SIZE[0] / PATCHES[0], SIZE[1] / PATCHES[1]
    column, row = rng.randint(2, PATCHES[0] - 3), rng.randint(2, PATCHES[1] - 3)
    return draw_object(
        rng, (16, 18), place=lambda r: ((column + phase) * side[0], (row + phase) * side[1])
    )


def draw_cut(_: str, rng: random.Random, share: float) -> Sample:
    """A share of the object's width or height lies beyond one of the four edges."""
    edge = rng.randrange(4)

    def centre(r: float) -> tuple[float, float]:
        x, y = rng.uniform(r, SIZE[0] - r), rng.uniform(r, SIZE[1] - r)
        near = r - 2 * r * share
        return ((near, y), (SIZE[0] - near, y), (x, near), (x, SIZE[1] - near))[edge]

    return draw_object(rng, place=centre)


def draw_in_noise(task: str, rng: random.Random, where: str) -> Sample:
    """Enlarged as the processor does it, so that patches are known, with noise in some."""
    sample = TASKS[task].draw(rng)
    height, width = sample.content.shape[:2]
    pixels = resize(Image.fromarray(sample.content), fit_size(width, height, BUDGET))
    noise = np.random.default_rng(rng.randrange(2**32))
    if where == "all":
        pixels = distortions.add_noise(pixels, PATCH_NOISE, noise)
    elif where != "none":
        pixels = distortions.add_noise_to_patches(
            pixels, PATCH_NOISE, noise, empty=where == "empty"
        )
    return Sample(sample.question, sample.answer, pixels)


def ask_with_budget(task: str, index: int, level: int | None, _: Processor):
    sample = TASKS[task].draw(seeded(task, index))
    options = {} if level is None else {"image_tokens": level}
    return about(task, sample, sample.content, **options)


def is_trained_size(task: str, height: float) -> bool:
    low, high = (18, 44) if task == "number" else (32, 92)
    return low <= height <= high


def is_trained_noise(_: str, snr_db: Level) -> bool:
    # Half of training's sounds have noise of their own, about 28 to 62 dB under the sound.
    return snr_db is None or (isinstance(snr_db, int) and snr_db >= 40)


def is_trained_speed(task: str, factor: Level) -> bool:
    # A melody may have any pitch and many speeds; a key has its two frequencies.
    if factor is None:
        return True
    return task == "melody" and isinstance(factor, float) and 0.95 <= factor <= 1.05


SEEN = ("object", "number")
HEARD = ("keys", "melody")
LENGTHS = (0, 10, 20, 40, 80, 160, 320, 480)

AXES = (
    Axis(
        "rotation", "picture",
        "Turned about the middle of the object or number; objects are those that a turn changes.",
        (0, 5, 10, 15, 20, 30, 45, 90, 180), SEEN, redrawn(draw_turned), "°",
        is_trained=lambda _, level: level == 0,
    ),
    Axis(
        "size", "picture", "Height of object or digits, in pixels of 192 x 144.",
        (8, 12, 16, 24, 32, 44, 64, 92), SEEN, redrawn(draw_tall), " px",
        is_trained=is_trained_size,
    ),
    Axis(
        "resolution", "picture",
        "The whole picture at a part of its pixels; the processor enlarges it again.",
        (None, 0.5, 0.25, 0.125, 0.0625, 0.03125), SEEN,
        distorted(lambda s, v, _: distortions.shrink(s.content, v)), " x", has_shift=True,
    ),
    Axis(
        "blur", "picture", "Gaussian, sigma in pixels of 192 x 144.",
        (None, 1, 2, 3, 5, 8, 12, 20), SEEN,
        distorted(lambda s, v, _: distortions.blur(s.content, v)), " px", has_shift=True,
    ),
    Axis(
        "noise", "picture", "Gaussian, sigma in levels of 255, on each colour of each pixel.",
        (None, 0.25, 0.5, 1, 2, 4, 8, 16), SEEN,
        distorted(lambda s, v, rng: distortions.add_noise(s.content, v, rng)), has_shift=True,
    ),
    Axis(
        "noisy patches", "picture",
        f"Noise of sigma {PATCH_NOISE} at 432 x 336: in patches of one colour, or in the others.",
        ("none", "empty", "filled", "all"), SEEN, redrawn(draw_in_noise),
        is_trained=lambda _, level: level == "none",
    ),
    Axis(
        "JPEG", "picture", "Quality in Pillow's scale.",
        (None, 90, 75, 50, 25, 10, 5, 1), SEEN,
        distorted(lambda s, v, _: distortions.compress(s.content, v)), has_shift=True,
    ),
    Axis(
        "contrast", "picture", "Levels towards the picture's mean.",
        (None, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005), SEEN,
        distorted(lambda s, v, _: distortions.set_contrast(s.content, v)), " x", has_shift=True,
    ),
    Axis(
        "brightness", "picture", "Levels multiplied.",
        (None, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01), SEEN,
        distorted(lambda s, v, _: distortions.set_brightness(s.content, v)), " x", has_shift=True,
    ),
    Axis(
        "place", "picture", "Which ninth of the picture the centre of an object lies in.",
        PLACES, ("object",), redrawn(draw_placed), is_trained=lambda *_: True,
    ),
    Axis(
        "phase", "picture", "The centre's place inside its patch of 48 pixels, as a share of it.",
        (0, 0.25, 0.5, 0.75), ("object",), redrawn(draw_in_phase), is_trained=lambda *_: True,
    ),
    Axis(
        "cut off", "picture", "Share of an object's width or height beyond the picture's edge.",
        (0, 0.1, 0.2, 0.3, 0.4, 0.5), ("object",), redrawn(draw_cut),
        is_trained=lambda _, level: level == 0,
    ),
    Axis(
        "soft tokens", "picture", "The budget of a picture.",
        (None, 140, 280, 560, 1120), SEEN, ask_with_budget, drawn="70",
    ),
    Axis(
        "aspect ratio", "picture", "Width to height, of pictures of about the same area.",
        tuple(SIZES), SEEN, redrawn(draw_shaped),
        is_trained=lambda _, level: SIZES[level] in pictures.SIZES,
    ),
    Axis(
        "noise in sound", "sound", "White noise so far under the mean power of the sound.",
        (None, 40, 30, 20, 10, 5, 0, -5, -10, -20), HEARD,
        distorted(lambda s, v, rng: distortions.add_noise_at(s.content, v, rng)), " dB",
        "as played", is_trained_noise, has_shift=True,
    ),
    Axis(
        "gain", "sound", "Louder or softer, then clipped and rounded to 16 bits.",
        (-60, -50, -45, -40, -30, -20, None, 10, 20, 30), HEARD,
        distorted(lambda s, v, _: distortions.set_gain(s.content, v)), " dB", "as played",
        has_shift=True,
    ),
    Axis(
        "sample rate", "sound", "Resampled to another rate, which the processor brings to 16 kHz.",
        (48000, 44100, None, 11025, 8000, 4000, 3000, 2000), HEARD,
        distorted(lambda s, v, _: distortions.resample(s.content, v)), " Hz", "16000 Hz",
        has_shift=True,
    ),
    Axis(
        "speed", "sound", "Faster and higher, as a record on another gear.",
        (0.8, 0.9, 0.95, 0.98, 0.99, None, 1.01, 1.02, 1.05, 1.1, 1.25), HEARD,
        distorted(lambda s, v, _: distortions.change_speed(s.content, v)), " x", "as played",
        is_trained=is_trained_speed,
    ),
    Axis(
        "offset", "sound", "Later by a part of a frame of 640 samples, 40 ms.",
        (None, 80, 160, 240, 320, 400, 480, 560), ("keys",),
        distorted(lambda s, v, _: distortions.delay(s.content, v)), " samples", "as played",
        is_trained=lambda *_: True,
    ),
    Axis(
        "silence before", "sound", "Frames of silence in the same sound, 25 a second.",
        (None, 1, 2, 3, 5, 10, 20, 40, 80, 160, 480), HEARD,
        distorted(lambda s, v, _: distortions.delay(s.content, v * FRAME)), " frames", "as played",
    ),
    Axis(
        "words before", "prompt", "Words before the medium, in the same message.",
        LENGTHS, ("keys", "object", "copy"), crowded("words before"), " tokens",
        is_trained=lambda _, level: level == 0,
    ),
    Axis(
        "turns before", "prompt", "Earlier turns of text, with right answers.",
        LENGTHS, ("keys", "object", "copy"), crowded("turns before"), " tokens",
        is_trained=lambda _, level: level == 0,
    ),
    Axis(
        "words between", "prompt", "Words between the medium and its question.",
        LENGTHS, ("keys", "object"), crowded("words between"), " tokens",
        is_trained=lambda _, level: level == 0,
    ),
)  # fmt: skip


def conditions(axes: tuple[Axis, ...] = AXES) -> Iterator[Condition]:
    """Yield each condition once, axis by axis."""
    known = set()
    for axis in axes:
        for level in axis.levels:
            for task in axis.tasks:
                condition = Condition(axis, task, level)
                if condition.key not in known:
                    known.add(condition.key)
                    yield condition
