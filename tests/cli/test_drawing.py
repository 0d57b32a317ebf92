import numpy as np

from mlx_gemma4.cli.drawing import draw_loudness, join_patches
from mlx_gemma4.processing.image import pack_patches


def test_patches_are_put_together_again(rng):
    pictures = rng.integers(0, 256, (3, 96, 144, 3), dtype=np.uint8)
    patches = np.concatenate([pack_patches(picture)[0] for picture in pictures])
    assert np.array_equal(join_patches(patches, (3, 2)), pictures)


def test_loudness_is_relative_to_the_loudest():
    frames = np.zeros((4, 640), np.float32)
    frames[1], frames[2] = 1.0, 0.5
    assert draw_loudness(frames) == "▁█▅▁"
    assert draw_loudness(frames * 0) == "▁▁▁▁"
