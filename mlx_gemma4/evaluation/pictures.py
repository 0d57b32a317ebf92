"""The bundled pictures: shapes, a receipt, a gradient, a chart, a board, and a clock.

Each is drawn from a generator, so that the same seed gives the same picture, and comes with an
answer that tells what was drawn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIZE = (432, 336)
"""Width and height: 9 x 7 patches, what a budget of 70 soft tokens takes as it is."""

Picture = tuple["Image", str, str]
"""A picture, a question, and the answer."""

_COLORS = {
    "red": (214, 40, 40),
    "green": (46, 139, 87),
    "blue": (38, 84, 200),
    "yellow": (246, 200, 20),
    "purple": (126, 50, 160),
    "orange": (245, 130, 30),
    "black": (20, 20, 20),
}
_SHAPES = ("circle", "square", "triangle", "diamond", "ring")
_PLACES = (
    "at the top left",
    "at the top in the middle",
    "at the top right",
    "at the bottom left",
    "at the bottom in the middle",
    "at the bottom right",
)
_GOODS = ("bread", "milk", "rice", "pears", "soap", "tea", "string", "lamp oil", "paper", "honey")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def draw_shapes(rng: np.random.Generator) -> Picture:
    """Draw three to five shapes, each in a place of its own."""
    image, draw = _blank()
    count = int(rng.integers(3, 6))
    places = sorted(rng.choice(len(_PLACES), count, replace=False).tolist())
    said: list[str] = []
    for place in places:
        color, shape = _pick(rng, tuple(_COLORS)), _pick(rng, _SHAPES)
        row, column = divmod(place, 3)
        x, y = 72 + 144 * column, 84 + 168 * row
        _draw_shape(draw, shape, (x, y), int(rng.integers(32, 56)), _COLORS[color])
        said.append(f"{_article(color)} {color} {shape} {_PLACES[place]}")
    answer = f"There are {count} shapes on a white background: {_joined(said)}."
    return image, "Which shapes are there, and where are they?", answer


def draw_receipt(rng: np.random.Generator) -> Picture:
    """Draw lines of text: goods, their prices, and the sum."""
    from PIL import ImageFont

    image, draw = _blank((250, 247, 238))
    font = ImageFont.load_default(26)
    goods = [_GOODS[index] for index in rng.choice(len(_GOODS), 5, replace=False)]
    cents = [int(price) for price in rng.integers(75, 1500, len(goods))]
    lines = [(f"Receipt {int(rng.integers(1000, 9999))}", "")]
    lines += [(good, _money(price)) for good, price in zip(goods, cents, strict=True)]
    lines.append(("total", _money(sum(cents))))
    for number, (left, right) in enumerate(lines):
        y = 24 + 42 * number
        draw.text((40, y), left, (30, 30, 30), font)
        draw.text((392, y), right, (30, 30, 30), font, anchor="ra")
    answer = "\n".join(f"{left} {right}".rstrip() for left, right in lines)
    return image, "Write down what the receipt says, line by line.", answer


def draw_gradient(rng: np.random.Generator) -> Picture:
    """Draw two colours that flow into each other, and a dot."""
    from PIL import Image, ImageDraw

    first, second = _pick_two(rng, tuple(_COLORS))
    is_horizontal = bool(rng.integers(2))
    width, height = SIZE
    share = np.linspace(0, 1, width if is_horizontal else height)[:, None]
    line = (1 - share) * np.array(_COLORS[first]) + share * np.array(_COLORS[second])
    shape = (1, width, 3) if is_horizontal else (height, 1, 3)
    pixels = np.broadcast_to(line.reshape(shape), (height, width, 3))
    image = Image.fromarray(np.round(pixels).astype(np.uint8))
    x, y = int(rng.integers(60, width - 60)), int(rng.integers(60, height - 60))
    ImageDraw.Draw(image).ellipse((x - 14, y - 14, x + 14, y + 14), (255, 255, 255))
    start, end = ("left", "right") if is_horizontal else ("top", "bottom")
    half = f"{'upper' if y < height / 2 else 'lower'} {'left' if x < width / 2 else 'right'}"
    answer = (
        f"The picture is a smooth gradient from {first} at the {start} to {second} at the {end}. "
        f"There is one small white dot in the {half} part, and there is no text."
    )
    return image, "Describe the picture.", answer


def draw_chart(rng: np.random.Generator) -> Picture:
    """Draw a bar chart with labels and numbers."""
    from PIL import ImageFont

    image, draw = _blank()
    font = ImageFont.load_default(20)
    color = _pick(rng, tuple(_COLORS))
    values = rng.permutation(np.arange(2, 20))[: len(_DAYS)].tolist()
    draw.line((40, 290, 410, 290), (0, 0, 0), 2)
    for number, (day, value) in enumerate(zip(_DAYS, values, strict=True)):
        x, top = 52 + 60 * number, 290 - 12 * value
        draw.rectangle((x, top, x + 40, 289), _COLORS[color])
        draw.text((x + 20, top - 4), str(value), (0, 0, 0), font, anchor="md")
        draw.text((x + 20, 298), day, (0, 0, 0), font, anchor="ma")
    listed = ", ".join(f"{day} {value}" for day, value in zip(_DAYS, values, strict=True))
    highest, lowest = _DAYS[int(np.argmax(values))], _DAYS[int(np.argmin(values))]
    answer = (
        f"The chart has six {color} bars: {listed}. The highest value is {max(values)} on "
        f"{highest}, the lowest is {min(values)} on {lowest}, and together they make {sum(values)}."
    )
    return image, "Which values does the bar chart show?", answer


def draw_board(rng: np.random.Generator) -> Picture:
    """Draw a chequered board with some pieces on it."""
    image, draw = _blank((235, 235, 235))
    rows, columns, side = 6, 8, 46
    left, top = (SIZE[0] - columns * side) // 2, (SIZE[1] - rows * side) // 2
    for row, column in np.ndindex(rows, columns):
        fill = (200, 170, 130) if (row + column) % 2 else (245, 232, 205)
        x, y = left + side * column, top + side * row
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill)
    said: list[str] = []
    for square in sorted(rng.choice(rows * columns, 4, replace=False).tolist()):
        row, column = divmod(square, columns)
        color = _pick(rng, ("red", "blue", "green", "black"))
        center = (left + side * column + side // 2, top + side * row + side // 2)
        _draw_shape(draw, "circle", center, 16, _COLORS[color])
        said.append(f"a {color} piece in row {row + 1}, column {column + 1}")
    answer = f"The board has {rows} rows and {columns} columns. There is {_joined(said)}."
    return image, "Where are the pieces on the board?", answer


def draw_clock(rng: np.random.Generator) -> Picture:
    """Draw a clock face with two hands."""
    color = _pick(rng, ("red", "green", "blue", "purple", "orange"))
    image, draw = _blank()
    center, radius = (SIZE[0] // 2, SIZE[1] // 2), 140
    draw.ellipse(_box(center, radius), (255, 255, 255), _COLORS[color], 8)
    for tick in range(12):
        inner = 108 if tick % 3 == 0 else 120
        draw.line((*_at(center, inner, tick / 12), *_at(center, 130, tick / 12)), (0, 0, 0), 4)
    hour, minute = int(rng.integers(12)), 5 * int(rng.integers(12))
    draw.line((*center, *_at(center, 68, (hour + minute / 60) / 12)), (0, 0, 0), 9)
    draw.line((*center, *_at(center, 104, minute / 60)), (0, 0, 0), 5)
    answer = (
        f"The clock shows {hour or 12}:{minute:02d}. It has a {color} rim, a white face with "
        "twelve black marks and no numbers, a short hour hand, and a long minute hand."
    )
    return image, "What time does the clock show, and what does it look like?", answer


DRAWERS: Mapping[str, Callable[[np.random.Generator], Picture]] = {
    "shapes": draw_shapes,
    "receipt": draw_receipt,
    "gradient": draw_gradient,
    "chart": draw_chart,
    "board": draw_board,
    "clock": draw_clock,
}


def _blank(color: tuple[int, int, int] = (255, 255, 255)) -> "tuple[Image, ImageDraw]":
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, color)
    return image, ImageDraw.Draw(image)


def _draw_shape(
    draw: "ImageDraw", shape: str, center: tuple[int, int], radius: int, color: tuple[int, int, int]
) -> None:
    if shape == "circle":
        draw.ellipse(_box(center, radius), color)
    elif shape == "ring":
        draw.ellipse(_box(center, radius), None, color, max(6, radius // 4))
    elif shape == "square":
        draw.rectangle(_box(center, radius), color)
    else:
        corners = 3 if shape == "triangle" else 4
        draw.polygon([_at(center, radius, corner / corners) for corner in range(corners)], color)


def _box(center: tuple[int, int], radius: int) -> tuple[int, int, int, int]:
    x, y = center
    return x - radius, y - radius, x + radius, y + radius


def _at(center: tuple[int, int], radius: float, turn: float) -> tuple[float, float]:
    """Return the point at a part of a turn, clockwise from the top."""
    angle = 2 * math.pi * turn
    return center[0] + radius * math.sin(angle), center[1] - radius * math.cos(angle)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _pick_two(rng: np.random.Generator, options: Sequence[str]) -> tuple[str, str]:
    first, second = rng.choice(len(options), 2, replace=False)
    return options[int(first)], options[int(second)]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _joined(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"
