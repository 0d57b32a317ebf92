"""estimate(): what a conversion takes, before anything is written."""

from pathlib import Path

import pytest
from random_checkpoint import Size, write_checkpoint

from mlx_gemma4.convert import estimate as module
from mlx_gemma4.convert.estimate import estimate, peak_memory_bytes
from mlx_gemma4.convert.plan import ConversionPlan, plan_conversion
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.errors import CheckpointError, OptionError

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1280)
WIDE = Size(64, 4096, 6, 2, 1, 64, 512, 32, 1280)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small checkpoint, and one with a wider feed-forward; not to be changed."""
    folder = tmp_path_factory.mktemp("estimate")
    return (
        write_checkpoint(folder / "small", SMALL, dtype="bfloat16"),
        write_checkpoint(folder / "wide", WIDE, dtype="bfloat16"),
    )


def planned(folder: Path, recipe: str | Path) -> ConversionPlan:
    return plan_conversion(open_source(folder), read_recipe(recipe))


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sample take a second."""
    monkeypatch.setattr(module, "_time", lambda work: (work(), 1.0)[1])


def test_learning_takes_time_and_memory_for_a_layer(
    folders: tuple[Path, Path],
) -> None:
    small, wide = (estimate(planned(folder, "q4-awq")) for folder in folders)
    plain = estimate(planned(folders[0], "q4"))
    assert plain.learning_seconds == 0
    assert 0 < small.learning_seconds <= small.seconds
    assert small.peak_bytes > plain.peak_bytes
    # Three matrices in a layer, and six copies of the largest, which was a q_proj of 1024 x 64.
    larger = 3 * 64 * (4096 - 128) + 6 * 64 * (4096 - 1024)
    assert wide.peak_bytes - small.peak_bytes == 4 * larger
    assert peak_memory_bytes(planned(folders[0], "q4-awq")) == small.peak_bytes


@pytest.mark.usefixtures("one_second")
def test_time_is_that_of_the_samples(folders: tuple[Path, Path]) -> None:
    # A second for each kind, whose first block is all of it here, shared by the cores.
    plan = planned(folders[0], "q4")
    cores = module.os.cpu_count() or 1
    assert estimate(plan).seconds * cores == pytest.approx(kinds_seconds(plan) + 1)


def kinds_seconds(plan: ConversionPlan) -> float:
    """Return the sum over kinds of weights over those of the largest, one second each."""
    found: dict[object, list[int]] = {}
    for parameter in plan.parameters():
        kind = (parameter.settings, parameter.stored_settings, parameter.rule)
        found.setdefault(kind, []).append(parameter.count)
    return sum(sum(counts) / max(counts) for counts in found.values())


def test_what_lies_on_no_grid_is_found_before_anything_is_written(
    folders: tuple[Path, Path],
) -> None:
    with pytest.raises(CheckpointError, match="lies on no q4_0 grid"):
        estimate(planned(folders[0], "qat-q4_0"))


def test_a_recipe_with_nothing_to_learn_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'learned = "awq"\n[[modules]]\nmatch = "language_model.embed_tokens"\nbits = 8\n'
    )
    with pytest.raises(OptionError, match="learns its scales, and rounds no layer"):
        estimate(planned(folders[0], recipe))
    with pytest.raises(OptionError, match="learns its scales, and rounds no layer"):
        peak_memory_bytes(planned(folders[0], recipe))
