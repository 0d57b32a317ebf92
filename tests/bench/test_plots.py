"""Drawings are made of what was measured, or refused in one line."""

import sys
from pathlib import Path

import numpy as np
import pytest
from bench_documents import ROWS, make_document

from mlx_gemma4.bench.plots import (
    PicturePanel,
    SoundPanel,
    check_plot,
    plot_documents,
    plot_media,
)
from mlx_gemma4.errors import MissingExtraError, OptionError

PICTURE = PicturePanel("a picture", np.zeros((96, 144, 3), np.uint8))
SOUND = SoundPanel("a sound", np.zeros((3, 640), np.float32))


def test_without_matplotlib_it_is_told_how_to_get_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlx-gemma4\[bench\]'"):
        plot_documents([make_document()], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.gif", "a", "a.json"])
def test_a_format_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"allowed endings are \.png, \.svg, \.pdf"):
        check_plot("--plot", Path(name))


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none of the files has a row of decode"):
        plot_documents([make_document(rows=ROWS[:1])], tmp_path / "a.png")
    with pytest.raises(OptionError, match="give --image, --audio, or --video"):
        plot_media([], tmp_path / "a.png")


def test_documents_become_a_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = make_document(machine={"chip": "Apple M9"}, rows=ROWS[:1])
    path = tmp_path / "a.svg"
    plot_documents([make_document(), other], path)
    drawn = path.read_text()
    for text in ("Apple M4 Max, 4.5 bits, bfloat16", "ceiling of bandwidth", "decode 2,048"):
        assert f"<!-- {text}" in drawn
    assert [found.name for found in tmp_path.iterdir()] == ["a.svg"]


def test_patches_and_frames_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.svg"
    assert plot_media([PICTURE, SOUND], path) == 0
    drawn = path.read_text()
    assert "<!-- a picture: 3 x 2 patches -->" in drawn
    assert "<!-- a sound: 3 frames of 40 ms -->" in drawn


def test_a_long_clip_is_cut_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_media([PICTURE] * 18, tmp_path / "a.png") == 2
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
