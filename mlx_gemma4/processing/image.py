"""Pictures to patches: fit to a soft-token budget, resize, cut into 48x48-pixel patches.

The model has no vision encoder, so what leaves this module is raw pixels scaled to 0..1.  The size
formula, the order of patches, and the order of values in a patch are Google's, exactly.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlx_gemma4.errors import OptionError
from mlx_gemma4.processing.image_file import LoadedImage, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "PATCH_SIZE",
    "SOFT_TOKEN_BUDGETS",
    "ImagePatches",
    "LoadedImage",
    "auto_budget",
    "check_budget",
    "fit_size",
    "load_image",
    "pack_patches",
    "process_image",
    "resize",
]

SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
"""Soft tokens that a picture may cost at most; the model was trained with these five."""

PATCH_SIZE = 48
"""Side in pixels of the square that becomes one soft token: 3 x 3 of the vision config's 16."""


_KEPT_SIDE = 7 / 8  # of its pixels; a side that keeps so many has lost nothing one would miss
_KEPT_SHAPE = 1.25  # how far the two sides' scales may differ before things look stretched


@dataclass(frozen=True)
class ImagePatches:
    """A picture as the vision front end takes it.

    Attributes:
        patches: [P, 6912] float32 in 0..1, see `pack_patches`.
        positions: [P, 2] int32, (x, y) in patches.
        grid: (columns, rows); P = columns * rows.
        size: (width, height) in pixels before resizing.
        notes: What the picture lost on the way, one line each.
    """

    patches: np.ndarray
    positions: np.ndarray
    grid: tuple[int, int]
    size: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens that the picture takes in the prompt, P."""
        return len(self.patches)


def process_image(
    source: "str | Path | bytes | Image | np.ndarray | LoadedImage",
    max_soft_tokens: int | Literal["auto"] = 280,
    *,
    name: str = "image",
) -> ImagePatches:
    """Load a picture, resize it to its soft-token budget, and cut it into patches.

    Args:
        source: Whatever `load_image` takes, or what it returned.
        max_soft_tokens: One of `SOFT_TOKEN_BUDGETS`, or "auto": see `auto_budget`.
        name: What messages call a picture that has no file name.

    Raises:
        OptionError: Another budget.
        InputError: The picture cannot be read.

    Source: transformers, image_processing_gemma4_unified.Gemma4UnifiedImageProcessor.
    """
    check_budget(max_soft_tokens)
    loaded = source if isinstance(source, LoadedImage) else load_image(source, name)
    size = loaded.image.size
    budget = auto_budget(*size) if max_soft_tokens == "auto" else max_soft_tokens
    fitted = fit_size(*size, budget)
    patches, positions = pack_patches(resize(loaded.image, fitted))
    grid = (fitted[0] // PATCH_SIZE, fitted[1] // PATCH_SIZE)
    notes = loaded.notes + _resize_notes(loaded.name, size, fitted, budget)
    return ImagePatches(patches, positions, grid, size, notes)


def check_budget(max_soft_tokens: object, *, is_auto_allowed: bool = True) -> None:
    """Raise OptionError unless the budget is one of `SOFT_TOKEN_BUDGETS`, or "auto"."""
    if is_auto_allowed and max_soft_tokens == "auto":
        return
    if not isinstance(max_soft_tokens, int) or max_soft_tokens not in SOFT_TOKEN_BUDGETS:
        allowed = "560, 1120, or auto" if is_auto_allowed else "560, or 1120"
        raise OptionError(
            f"a budget of {max_soft_tokens} soft tokens is not allowed; choose 70, 140, 280, "
            f"{allowed}"
        )


def auto_budget(width: int, height: int) -> int:
    """Return the smallest budget that leaves a picture 7/8 of its width and height.

    A budget beyond that buys little, since the picture would only be blown up.  Pictures of more
    than about 3 megapixels get 1120, the largest there is, and lose detail all the same.
    """
    for budget in SOFT_TOKEN_BUDGETS:
        fitted = fit_size(width, height, budget)
        if min(fitted[0] / width, fitted[1] / height) >= _KEPT_SIDE:
            return budget
    return SOFT_TOKEN_BUDGETS[-1]


def resize(image: "Image", size: tuple[int, int]) -> np.ndarray:
    """Return the picture as [height, width, 3] uint8 in another size (width, height).

    Bicubic with antialiasing, within 2/255 of the reference's torchvision: both round to 8 bits
    between the two passes, with differently rounded weights.
    """
    from PIL.Image import Resampling

    if image.size != size:
        image = image.resize(size, Resampling.BICUBIC)
    return np.asarray(image)


def _resize_notes(
    name: str, size: tuple[int, int], fitted: tuple[int, int], budget: int
) -> tuple[str, ...]:
    """Say in one line what resizing cost, if anybody could see it."""
    x_scale, y_scale = fitted[0] / size[0], fitted[1] / size[1]
    is_shrunk = min(x_scale, y_scale) < _KEPT_SIDE
    is_stretched = max(x_scale / y_scale, y_scale / x_scale) > _KEPT_SHAPE
    if not (is_shrunk or is_stretched):
        return ()
    verb = "stretched" if is_stretched else "shrunk"
    num_soft_tokens = fitted[0] * fitted[1] // PATCH_SIZE**2
    line = (
        f"{name}: {size[0]}x{size[1]} pixels {verb} to {fitted[0]}x{fitted[1]}, "
        f"{num_soft_tokens} soft tokens"
    )
    better = auto_budget(*size)
    if better > budget:
        line += f"; a budget of {better} would keep more detail"
    return (line,)


def fit_size(
    width: int,
    height: int,
    max_soft_tokens: int,
    *,
    patch_size: int = 16,
    pooling_kernel_size: int = 3,
) -> tuple[int, int]:
    """Return the (width, height) in pixels to which a picture is resized.

    The largest size with about the picture's aspect ratio that costs at most `max_soft_tokens`;
    small pictures grow.  Both sides are multiples of `patch_size * pooling_kernel_size`, rounded
    down.  A picture too long and thin for that becomes a strip one soft token wide.

    Raises:
        ValueError: A side or the budget is not positive.

    Source: transformers, image_processing_gemma4_unified.get_aspect_ratio_preserving_size.
    """
    if min(width, height, max_soft_tokens) < 1:
        raise ValueError(f"cannot fit {width}x{height} pixels into {max_soft_tokens} soft tokens")
    side = patch_size * pooling_kernel_size
    # This order of operations decides which way a size on the edge of a patch falls.
    scale = math.sqrt(max_soft_tokens * side**2 / (height * width))
    columns = math.floor(scale * width / side)
    rows = math.floor(scale * height / side)
    if rows == 0:
        columns, rows = min(width // height, max_soft_tokens), 1
    elif columns == 0:
        columns, rows = 1, min(height // width, max_soft_tokens)
    return columns * side, rows * side


def pack_patches(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a picture into the rows that the vision front end takes.

    Args:
        pixels: [height, width, 3] uint8 RGB, both sides multiples of 48.

    Returns:
        patches: [P, 6912] float32 in 0..1, row by row from the top left; within a patch the order
            is y, x, colour.
        positions: [P, 2] int32, (x, y) of each patch counted in patches.

    Raises:
        ValueError: Another dtype, or a side that is not a multiple of 48.

    Source: transformers, image_processing_gemma4_unified.convert_image_to_patches, patches_merge.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 [H, W, 3], not {pixels.dtype} {pixels.shape}")
    height, width, _ = pixels.shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    if not pixels.size or (rows * PATCH_SIZE, columns * PATCH_SIZE) != (height, width):
        raise ValueError(f"{width}x{height} pixels do not divide into patches of {PATCH_SIZE}")
    patches = (
        pixels.reshape(rows, PATCH_SIZE, columns, PATCH_SIZE, 3)
        .transpose(0, 2, 1, 3, 4)  # [rows, columns, y, x, colour]
        .reshape(rows * columns, -1)
        .astype(np.float32)
    )
    patches *= np.float32(1 / 255)  # multiplied, not divided: the last bit as in the reference
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int32), np.int32(columns))
    return patches, np.stack([x, y], axis=1)
