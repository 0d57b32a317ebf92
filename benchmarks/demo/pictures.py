"""Draw the demo's pictures: one object, scenes, things to count, numbers.

Plain light backgrounds and strong colours: the front end normalises each 48-pixel patch by its own
contrast, so noise in an empty patch would come out at full scale (that is tested, not trained).
Every drawing also says where its objects are, for the auxiliary heads of training.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.demo.words import COLOURS, SHAPES

SIZES = ((192, 144), (144, 192), (160, 160), (256, 144))
SIZE_WEIGHTS = (0.6, 0.14, 0.13, 0.13)
BACKGROUNDS = ((255, 255, 255), (250, 250, 245), (240, 240, 240), (235, 240, 250), (250, 240, 225))
INKS = ((20, 20, 20), (20, 30, 120), (110, 15, 20), (10, 80, 30))
FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf")
FONT_FOLDERS = ("/usr/share/fonts/truetype/dejavu", "/Library/Fonts", "")
DIGIT_HEIGHT_PER_EM = 0.73  # DejaVu: the height of a digit over the font size
OVERSAMPLING = 2  # drawn at twice the size and averaged: smooth edges


@dataclass
class Item:
    """One thing in a picture; centre and half extent in pixels of the picture."""

    x: float
    y: float
    half_width: float
    half_height: float
    shape: str = ""
    colour: str = ""
    digit: int = -1
    ordinal: int = 0
    place: tuple[float, float] = (0.0, 0.0)  # of the centre, as shares of width and height

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass
class Picture:
    """Pixels [H, W, 3] uint8 and what is in them."""

    pixels: np.ndarray
    items: list[Item] = field(default_factory=list)
    difficulty: str = ""


@lru_cache(maxsize=512)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    for folder in FONT_FOLDERS:
        path = Path(folder) / name
        if path.exists() or not folder:
            return ImageFont.truetype(str(path), size)
    raise FileNotFoundError(name)


def draw_shape(draw: ImageDraw.ImageDraw, item: Item, scale: float) -> None:
    """Draw one of SHAPES in the box of the item."""
    x, y, r = item.x * scale, item.y * scale, item.half_width * scale
    fill = COLOURS[item.colour]
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(2, round(r * 0.35)))
    elif item.shape == "square":
        side = r * 0.88
        draw.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    elif item.shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=fill)
    elif item.shape == "cross":
        arm = r * 0.33
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    else:
        points = []
        for k in range(10):
            radius = r if k % 2 == 0 else r * 0.42
            angle = pi * k / 5 - pi / 2
            points.append((x + radius * cos(angle), y + radius * sin(angle)))
        draw.polygon(points, fill=fill)


def paint(
    size: tuple[int, int], items: list[Item], background: tuple[int, int, int], sharp: bool
) -> np.ndarray:
    """Return the pixels of shapes on a plain background; `sharp` keeps twice the size."""
    width, height = size
    image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), background)
    draw = ImageDraw.Draw(image)
    for item in items:
        draw_shape(draw, item, OVERSAMPLING)
    if not sharp:
        image = image.reduce(OVERSAMPLING)
    return np.asarray(image)


def random_size(rng: random.Random) -> tuple[int, int]:
    return rng.choices(SIZES, SIZE_WEIGHTS)[0]


def random_item(rng: random.Random, x: float, y: float, radius: float) -> Item:
    return Item(x, y, radius, radius, rng.choice(SHAPES), rng.choice(list(COLOURS)))


def draw_single(
    rng: random.Random, size: tuple[int, int], radius: tuple[float, float] = (16, 46)
) -> Picture:
    """One object anywhere, radius in pixels."""
    width, height = size
    r = rng.uniform(*radius)
    item = random_item(
        rng, rng.uniform(r + 3, width - r - 3), rng.uniform(r + 3, height - r - 3), r
    )
    pixels = paint(size, [item], rng.choice(BACKGROUNDS), sharp=False)
    return Picture(pixels, [item], "large" if r >= 28 else "small")


def draw_scene(rng: random.Random, size: tuple[int, int], count: int) -> Picture:
    """`count` objects that differ in shape and colour, each amid a cell of a 3 x 3 grid."""
    width, height = size
    cell_width, cell_height = width / 3, height / 3
    cells = rng.sample(range(9), count)
    shapes = rng.sample(SHAPES, count)
    colours = rng.sample(list(COLOURS), count)
    items = []
    for cell, shape, colour in zip(cells, shapes, colours, strict=True):
        r = rng.uniform(14, min(cell_width, cell_height) / 2 - 2)
        # A quarter of a cell keeps the centre clear of the cell's border.
        x = (cell % 3 + 0.5 + rng.uniform(-0.25, 0.25)) * cell_width
        y = (cell // 3 + 0.5 + rng.uniform(-0.25, 0.25)) * cell_height
        x = min(max(x, r + 2), width - r - 2)
        y = min(max(y, r + 2), height - r - 2)
        items.append(Item(x, y, r, r, shape, colour))
    return Picture(
        paint(size, items, rng.choice(BACKGROUNDS), sharp=False), items, f"{count} objects"
    )


def draw_count(
    rng: random.Random, size: tuple[int, int], count: int, radius: tuple[float, float] = (9, 18)
) -> Picture:
    """`count` objects of one radius that do not touch; half of the pictures have one kind only."""
    width, height = size
    r = rng.uniform(*radius)
    same = rng.random() < 0.5
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    items: list[Item] = []
    tries = 0
    while len(items) < count:
        x, y = rng.uniform(r + 3, width - r - 3), rng.uniform(r + 3, height - r - 3)
        tries += 1
        if all((x - i.x) ** 2 + (y - i.y) ** 2 > (2 * r + 7) ** 2 for i in items):
            item = random_item(rng, x, y, r)
            if same:
                item.shape, item.colour = shape, colour
            items.append(item)
        elif tries > 400:
            items, tries, r = [], 0, r * 0.85
    pixels = paint(size, items, rng.choice(BACKGROUNDS), sharp=False)
    return Picture(pixels, items, "radius 13-18" if r >= 13 else "radius 9-12")


def draw_number(
    rng: random.Random,
    size: tuple[int, int],
    digits: str,
    digit_height: tuple[float, float] = (18, 44),
) -> Picture:
    """A number in one dark ink; `digit_height` in pixels of the picture."""
    width, height = size
    tall = rng.uniform(*digit_height)
    name = rng.choice(FONT_FILES)
    em = round(tall / DIGIT_HEIGHT_PER_EM * OVERSAMPLING)
    font = load_font(name, em)
    while font.getlength(digits) > (width - 8) * OVERSAMPLING:
        em -= 2
        font = load_font(name, em)
    tall = em * DIGIT_HEIGHT_PER_EM / OVERSAMPLING
    left, top, right, bottom = font.getbbox(digits)
    free_x = width * OVERSAMPLING - (right - left) - 6
    free_y = height * OVERSAMPLING - (bottom - top) - 6
    # Half of the numbers stand near the middle, where people put them; the others anywhere.
    spread = rng.choice((0.3, 1.0))
    x = 3 + free_x * (0.5 + spread * rng.uniform(-0.5, 0.5)) - left
    y = 3 + free_y * (0.5 + spread * rng.uniform(-0.5, 0.5)) - top
    image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), rng.choice(BACKGROUNDS))
    ImageDraw.Draw(image).text((x, y), digits, font=font, fill=rng.choice(INKS))
    items = []
    for k, digit in enumerate(digits):
        start, end = x + font.getlength(digits[:k]), x + font.getlength(digits[: k + 1])
        items.append(
            Item(
                (start + end) / 2 / OVERSAMPLING,
                (y + (top + bottom) / 2) / OVERSAMPLING,
                (end - start) / 2 / OVERSAMPLING,
                tall / 2,
                digit=int(digit),
                ordinal=k + 1,
            )
        )
    pixels = np.asarray(image.reduce(OVERSAMPLING))
    return Picture(pixels, items, "24 px and more" if tall >= 24 else "under 24 px")


def darken(picture: Picture) -> Picture:
    """The same picture at a quarter of its light; never trained on."""
    return Picture((picture.pixels * 0.25).astype(np.uint8), picture.items, "dark")


def add_noise(picture: Picture, rng: random.Random, sigma: float = 12) -> Picture:
    """The same picture with Gaussian noise, sigma in levels of 255; never trained on."""
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, sigma, picture.pixels.shape)
    pixels = np.clip(picture.pixels + noise, 0, 255).astype(np.uint8)
    return Picture(pixels, picture.items, "noisy")
