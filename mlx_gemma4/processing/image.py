"""Pictures to patches: load, fit to a soft-token budget, cut into 48x48-pixel patches.

The model has no vision encoder, so what leaves this module is raw pixels scaled to 0..1.  The size
formula, the order of patches, and the order of values in a patch are Google's, exactly.
"""

import math

import numpy as np

SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
"""Soft tokens that a picture may cost at most; the model was trained with these five."""

PATCH_SIZE = 48
"""Side in pixels of the square that becomes one soft token: 3 x 3 of the vision config's 16."""


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
