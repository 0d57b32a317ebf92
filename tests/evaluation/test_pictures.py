"""Bundled pictures show what their answers say, and are the same every time."""

import re
from collections import Counter

import numpy as np
import pytest

from mlx_gemma4.evaluation.pictures import DRAWERS, SIZE
from mlx_gemma4.processing.image import process_image

NAMES = {"red": (214, 40, 40), "green": (46, 139, 87), "blue": (38, 84, 200), "black": (20, 20, 20)}


def draw(name: str, seed: int) -> tuple[np.ndarray, str]:
    image, _, answer = DRAWERS[name](np.random.default_rng(seed))
    return np.asarray(image), answer


@pytest.mark.parametrize("name", DRAWERS)
def test_the_same_seed_draws_the_same(name: str) -> None:
    (one, answer), (again, same) = draw(name, 3), draw(name, 3)
    assert np.array_equal(one, again)
    assert answer == same
    others = [draw(name, seed) for seed in range(4, 12)]
    assert any(not np.array_equal(one, other) for other, _ in others)
    assert len({answer for _, answer in others}) > 2


@pytest.mark.parametrize("name", DRAWERS)
def test_no_pixel_is_resized(name: str) -> None:
    image, _, _ = DRAWERS[name](np.random.default_rng(0))
    assert image.size == SIZE
    processed = process_image(image, 70)
    assert processed.num_soft_tokens == 63
    assert processed.patches[0, :3].tolist() == pytest.approx(np.asarray(image)[0, 0] / 255)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_on_the_squares_that_the_answer_names(seed: int) -> None:
    pixels, answer = draw("board", seed)
    said = re.findall(r"an? (\w+) piece in row (\d), column (\d)", answer)
    assert len(said) == 4
    for color, row, column in said:
        x, y = 32 + 46 * (int(column) - 1) + 23, 30 + 46 * (int(row) - 1) + 23
        assert tuple(pixels[y, x]) == NAMES[color]


@pytest.mark.parametrize("seed", range(5))
def test_a_chart_has_bars_as_high_as_the_answer_says(seed: int) -> None:
    pixels, answer = draw("chart", seed)
    values = [int(value) for _, value in re.findall(r"(Mon|Tue|Wed|Thu|Fri|Sat) (\d+)", answer)[:6]]
    background, base = (255, 255, 255), 288
    for number, value in enumerate(values):
        column = pixels[:, 54 + 60 * number]
        bar = tuple(column[base])
        assert bar != background
        heights = [y for y in range(base + 1) if tuple(column[y]) == bar]
        assert len(heights) == pytest.approx(12 * value, abs=2)
    assert f"together they make {sum(values)}." in answer


@pytest.mark.parametrize("seed", range(5))
def test_a_receipt_adds_up(seed: int) -> None:
    _, answer = draw("receipt", seed)
    *prices, total = (round(100 * float(line.split()[-1])) for line in answer.splitlines()[1:])
    assert len(prices) == 5
    assert sum(prices) == total


@pytest.mark.parametrize("seed", range(5))
def test_shapes_have_the_colours_that_the_answer_names(seed: int) -> None:
    pixels, answer = draw("shapes", seed)
    colors = Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
    for name, color in NAMES.items():
        assert (colors[color] > 300) is (f" {name} " in answer)
