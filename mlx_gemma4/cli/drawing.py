"""Small drawings of media for a terminal, made from what the model is given, not from the files."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mlx_gemma4.processing.media import Medium

_PATCH_SIZE = 48
_LEVELS = "▁▂▃▄▅▆▇█"
_PICTURE_COLUMNS, _FRAME_COLUMNS = 36, 16  # characters
_FRAMES_SHOWN = 4
_SOUND_COLUMNS = 72


def draw_medium(medium: "Medium", *, has_colours: bool) -> "RenderableType | None":
    """Return a drawing of a picture, of some frames of a clip, or of a sound's loudness.

    None where the terminal has no colours to draw with.
    """
    from rich.table import Table

    if medium.frames is not None:
        return draw_loudness(medium.frames)
    if medium.patches is None or medium.grid is None or not has_colours:
        return None
    pictures = join_patches(medium.patches, medium.grid)
    if len(pictures) == 1:
        return _draw(pictures[0], _PICTURE_COLUMNS)
    shown = np.linspace(0, len(pictures) - 1, min(_FRAMES_SHOWN, len(pictures))).round().astype(int)
    row = Table.grid(padding=(0, 1))
    row.add_row(*(_draw(pictures[index], _FRAME_COLUMNS) for index in shown))
    return row


def join_patches(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return pictures [n, height, width, 3] uint8 of patches [n * columns * rows, 6912]."""
    columns, rows = grid
    side = _PATCH_SIZE
    return (
        (patches * 255)
        .round()
        .astype(np.uint8)
        .reshape(-1, rows, columns, side, side, 3)
        .transpose(0, 1, 3, 2, 4, 5)  # [n, rows, y, columns, x, colour]
        .reshape(-1, rows * side, columns * side, 3)
    )


def draw_loudness(frames: np.ndarray) -> str:
    """Return one block a stretch of sound, as high as it is loud; frames are [F, 640]."""
    stretches = np.array_split(frames, min(len(frames), _SOUND_COLUMNS))
    loudness = np.array([np.sqrt(np.mean(np.square(stretch))) for stretch in stretches])
    heights = loudness / max(float(loudness.max()), 1e-9) * (len(_LEVELS) - 1)
    return "".join(_LEVELS[round(height)] for height in heights.tolist())


def _draw(pixels: np.ndarray, num_columns: int) -> "RenderableType":
    """Return a picture of half blocks, each two pixels: its own colour above, the ground below."""
    from PIL import Image
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    height, width, _ = pixels.shape
    num_rows = max(1, round(height / width * num_columns / 2))
    small = Image.fromarray(pixels).resize((num_columns, 2 * num_rows), Image.Resampling.BOX)
    values = np.asarray(small).tolist()
    text = Text(no_wrap=True)
    for upper, lower in zip(values[::2], values[1::2], strict=True):
        if text:
            text.append("\n")
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
    return text
