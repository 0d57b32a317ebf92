"""Patches are those of transformers' image processor, by the values that it left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_pictures import PICTURES, SIDES, GoldenPicture, draw, sample_positions
from numpy.lib.npyio import NpzFile
from PIL import Image

from mlx_gemma4.processing import image as image_module
from mlx_gemma4.processing.image import SOFT_TOKEN_BUDGETS, fit_size, process_image

MAX_DISTANCE = 2.0  # in 1/255: PIL and torchvision round their filters' weights differently
MEAN_DISTANCE = 0.3


@pytest.fixture(scope="module")
def goldens(repository: Path) -> NpzFile:
    return np.load(repository / "tests" / "data" / "media" / "processor.npz")


def distances(patches: np.ndarray, golden: np.ndarray) -> tuple[float, float]:
    """Return the greatest and the mean distance from the stored values, in 1/255."""
    values = patches.reshape(-1)[sample_positions(patches.size, len(golden))] * 255
    distance = np.abs(values - golden)
    return float(distance.max()), float(distance.mean())


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_patches_equal_the_reference(picture: GoldenPicture, goldens: NpzFile) -> None:
    ours = process_image(draw(picture), picture.budget)
    assert np.array_equal(ours.positions, goldens[f"{picture.name}/positions"])
    assert ours.grid[0] * ours.grid[1] == ours.num_soft_tokens <= picture.budget
    greatest, mean = distances(ours.patches, goldens[f"{picture.name}/values"])
    assert greatest <= MAX_DISTANCE + 1e-3
    assert mean <= MEAN_DISTANCE
    patch_means = goldens[f"{picture.name}/patch_means"]
    assert np.abs(ours.patches.mean(axis=1) - patch_means).max() * 255 <= MEAN_DISTANCE


def without_antialias(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    scale = (image.width / size[0], 0, 0, 0, image.height / size[1], 0)
    return np.asarray(
        image.transform(size, Image.Transform.AFFINE, scale, Image.Resampling.BICUBIC)
    )


def by_filter(resample: Image.Resampling) -> Callable[..., np.ndarray]:
    return lambda image, size: np.asarray(image.resize(size, resample))


@pytest.mark.parametrize(
    "resize",
    [
        by_filter(Image.Resampling.BILINEAR),
        by_filter(Image.Resampling.LANCZOS),
        by_filter(Image.Resampling.HAMMING),
        without_antialias,
        lambda image, size: np.asarray(image.resize(size, Image.Resampling.BICUBIC))[..., ::-1],
    ],
    ids=["bilinear", "lanczos", "hamming", "no antialias", "BGR"],
)
def test_goldens_notice_another_resize(
    resize: Callable[..., np.ndarray], goldens: NpzFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = next(p for p in PICTURES if (p.width, p.kind) == (1024, "lines"))
    monkeypatch.setattr(image_module, "resize", resize)
    patches = process_image(draw(picture), picture.budget).patches
    assert distances(patches, goldens[f"{picture.name}/values"])[1] > MEAN_DISTANCE


def test_goldens_notice_another_order(goldens: NpzFile) -> None:
    picture = next(p for p in PICTURES if (p.width, p.kind) == (192, "lines"))
    ours = process_image(draw(picture), picture.budget)
    columns, rows = ours.grid
    by_column = ours.patches.reshape(rows, columns, -1).swapaxes(0, 1)
    colour_first = ours.patches.reshape(-1, 48, 48, 3).transpose(0, 3, 1, 2)
    by_sixteens = ours.patches.reshape(-1, 3, 16, 3, 16, 3).swapaxes(2, 3)
    for other in (by_column, colour_first, by_sixteens):
        assert distances(other, goldens[f"{picture.name}/values"])[1] > MEAN_DISTANCE


def test_sizes_equal_the_reference(goldens: NpzFile) -> None:
    golden = goldens["fit_size"]
    for b, budget in enumerate(SOFT_TOKEN_BUDGETS):
        ours = [[fit_size(width, height, budget) for height in SIDES] for width in SIDES]
        assert np.array_equal(np.array(ours) // 48, golden[b])


@pytest.mark.parity
def test_sizes_equal_the_installed_reference(rng: np.random.Generator) -> None:
    from transformers.models.gemma4_unified import processing_gemma4_unified as reference

    sides = np.exp(rng.uniform(0, np.log(20_000), (20_000, 2))).astype(int).tolist()
    for (width, height), budget in zip(sides, SOFT_TOKEN_BUDGETS * 4_000, strict=True):
        sizes: Any = reference.get_aspect_ratio_preserving_size(height, width, 16, budget * 9, 3)
        assert fit_size(width, height, budget) == sizes[::-1]
