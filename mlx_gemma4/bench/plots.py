"""Plots: speeds under their ceiling, memory beside its plan, and what a model sees of its media.

matplotlib comes with the extra `bench`, and is imported when something is drawn.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_gemma4.bench.report import Document, Row, write_whole
from mlx_gemma4.errors import MissingExtraError, OptionError

FORMATS = (".png", ".svg", ".pdf")

_PATCH_SIZE = 48  # pixels
_FRAME_SIZE, _SAMPLE_RATE = 640, 16_000  # samples, and samples a second
_FRAMES_A_SECOND = _SAMPLE_RATE // _FRAME_SIZE
_FRAMES_MARKED = 200  # each by a line; of longer sounds, each second
_MAX_PANELS = 16
_DPI = 150


@dataclass(frozen=True)
class PicturePanel:
    """A picture, or a frame of a clip, as the model sees it.

    Attributes:
        title: Above it.
        pixels: [height, width, 3] uint8, sides being multiples of 48.
    """

    title: str
    pixels: np.ndarray


@dataclass(frozen=True)
class SoundPanel:
    """A sound as the model hears it.

    Attributes:
        title: Above it.
        frames: [F, 640] float32.
    """

    title: str
    frames: np.ndarray


def check_plot(option: str, path: Path) -> None:
    """Refuse what cannot be drawn, before what takes long.

    Raises:
        OptionError: A format that is not known.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"{option} is {path.name}; allowed endings are {', '.join(FORMATS)}")
    _figure(1, 1)


def plot_documents(documents: Sequence[Document], path: Path) -> None:
    """Draw decode under its ceiling, shares of the ceiling, and memory beside its plan.

    Args:
        documents: Of one machine or of several; at least one has rows of decode.
        path: Of the drawing.

    Raises:
        OptionError: There is nothing to draw, or the format is not known.
        MissingExtraError: matplotlib is not installed.
    """
    decodes = [_rows(document, "decode") for document in documents]
    if not any(decodes):
        raise OptionError("none of the files has a row of decode; measure with bench --prompt")
    check_plot("the drawing", path)
    figure = _figure(15, 4.5)
    speed, share, memory = figure.subplots(1, 3)
    for index, (document, rows) in enumerate(zip(documents, decodes, strict=True)):
        colour, label = f"C{index % 10}", describe(document)
        _draw_decode(speed, rows, colour, label)
        _draw_memory(memory, _rows(document, "prefill"), colour, label)
    _draw_shares(share, documents, decodes)
    speed.set(title="decode", xlabel="tokens before", ylabel="tokens a second")
    share.set(title="share of the ceiling", xlabel="%", xlim=(0, None))
    memory.set(title="peak memory", xlabel="tokens of the prompt", ylabel="GB")
    for axes in (speed, memory):
        axes.set_ylim(0, None)
        axes.legend(fontsize=7)
    _save(figure, path)


def plot_media(panels: Sequence[PicturePanel | SoundPanel], path: Path) -> int:
    """Draw the patches of pictures and the frames of sounds; return how many were left out.

    Raises:
        OptionError: There is nothing to draw, or the format is not known.
        MissingExtraError: matplotlib is not installed.
    """
    if not panels:
        raise OptionError("there is nothing to plot; give --image, --audio, or --video")
    check_plot("--plot", path)
    shown = panels[:_MAX_PANELS]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure = _figure(6 * columns, 4 * rows)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        if isinstance(panel, PicturePanel):
            _draw_picture(axes, panel)
        else:
            _draw_sound(axes, panel)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    _save(figure, path)
    return len(panels) - len(shown)


def describe(document: Document) -> str:
    """Return chip, weights, and dtype of a document in one line."""
    model = document.model
    return f"{document.machine.chip}, {model.bits_per_weight:.1f} bits, {model.dtype}"


def _rows(document: Document, measure: str) -> list[Row]:
    """Return the rows of a measure that tell of whole prompts, the shortest first."""
    rows = [row for row in document.rows if row.measure == measure and not row.case]
    if measure == "prefill":
        rows = [row for row in rows if row.depth == 0]
    return sorted(rows, key=lambda row: (row.depth, row.length))


def _draw_decode(axes: Any, rows: Sequence[Row], colour: str, label: str) -> None:
    depths = [row.depth for row in rows]
    rates = np.array([row.amount / row.median_s for row in rows])
    slowest = np.array([row.amount / max(row.samples_s) for row in rows])
    fastest = np.array([row.amount / min(row.samples_s) for row in rows])
    error = np.stack([rates - slowest, fastest - rates])
    axes.errorbar(depths, rates, error, marker="o", color=colour, label=label, capsize=3)
    limited = [row for row in rows if row.reading_s]
    ceiling = [row.amount / row.reading_s for row in limited if row.reading_s]
    axes.plot(
        [row.depth for row in limited], ceiling, "--", color=colour, label="ceiling of bandwidth"
    )


def _draw_memory(axes: Any, rows: Sequence[Row], colour: str, label: str) -> None:
    lengths = [row.length for row in rows if row.peak_bytes]
    peaks = [row.peak_bytes / 1e9 for row in rows if row.peak_bytes]
    planned = [row.planned_bytes / 1e9 for row in rows if row.planned_bytes]
    axes.plot(lengths, peaks, marker="o", color=colour, label=label)
    axes.plot(lengths[: len(planned)], planned, "--", color=colour, label="planned")


def _draw_shares(
    axes: Any, documents: Sequence[Document], decodes: Sequence[Sequence[Row]]
) -> None:
    """Draw the share of the nearer ceiling of each row."""
    labels: list[str] = []
    shares: list[float] = []
    for document, decode in zip(documents, decodes, strict=True):
        for row in [*_rows(document, "prefill"), *decode]:
            reached = [share for share in (row.reading_share, row.arithmetic_share) if share]
            if reached:
                positions = row.length if row.measure == "prefill" else row.depth
                labels.append(f"{row.measure} {positions:,}\n{document.machine.chip}")
                shares.append(100 * max(reached))
    places = np.arange(len(shares))[::-1]
    axes.barh(places, shares)
    axes.set_yticks(places, labels, fontsize=7)


def _draw_picture(axes: Any, panel: PicturePanel) -> None:
    height, width, _ = panel.pixels.shape
    axes.imshow(panel.pixels, extent=(0, width, height, 0), interpolation="nearest")
    grey = {"color": "0.5", "linewidth": 0.6}  # seen on white and on black
    axes.vlines(range(0, width + 1, _PATCH_SIZE), 0, height, **grey)
    axes.hlines(range(0, height + 1, _PATCH_SIZE), 0, width, **grey)
    columns, rows = width // _PATCH_SIZE, height // _PATCH_SIZE
    axes.set_title(f"{panel.title}: {columns} x {rows} patches", fontsize=9)
    axes.set_xlabel("pixels")


def _draw_sound(axes: Any, panel: SoundPanel) -> None:
    samples = panel.frames.reshape(-1)
    seconds = np.arange(len(samples)) / _SAMPLE_RATE
    axes.plot(seconds, samples, linewidth=0.4)
    every = 1 if len(panel.frames) <= _FRAMES_MARKED else _FRAMES_A_SECOND
    edges = np.arange(0, len(panel.frames) + 1, every) * _FRAME_SIZE / _SAMPLE_RATE
    height = max(float(np.abs(samples).max()), 1e-6)
    axes.vlines(edges, -height, height, color="0.7", linewidth=0.4, zorder=0)
    marked = "" if every == 1 else ", a line each second"
    axes.set_title(f"{panel.title}: {len(panel.frames):,} frames of 40 ms{marked}", fontsize=9)
    axes.set(xlabel="seconds", xlim=(0, len(samples) / _SAMPLE_RATE))


def _figure(width: float, height: float) -> Any:
    """Return an empty figure, without a window system and without pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "plots are drawn by matplotlib, which is not installed; install it with: "
            "pip install 'mlx-gemma4[bench]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=_DPI)
    write_whole(path, buffer.getvalue())
