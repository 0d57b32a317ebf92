"""What is done to a picture [H, W, 3] uint8 or to a sound [n] float32 at 16 kHz: one thing each.

At its neutral value (an angle of 0, a factor of 1, 0 dB) a distortion returns what it was given.
"""

import io

import numpy as np
import soxr
from PIL import Image, ImageFilter

from mlx_gemma4.processing.image import PATCH_SIZE

SAMPLE_RATE = 16_000


# Pictures.


def rotate(pixels: np.ndarray, degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """Turn counter-clockwise about (x, y); the top left pixel's colour fills the corners."""
    fill = tuple(int(value) for value in pixels[0, 0])
    turned = Image.fromarray(pixels).rotate(
        degrees, Image.Resampling.BICUBIC, center=centre, fillcolor=fill
    )
    return np.asarray(turned)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def add_noise(pixels: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise on each colour of each pixel; sigma in levels of 255."""
    noisy = pixels + sigma * rng.standard_normal(pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def add_noise_to_patches(
    pixels: np.ndarray, sigma: float, rng: np.random.Generator, *, empty: bool
) -> np.ndarray:
    """Noise in those patches alone that are of one colour, or in those alone that are not.

    Both sides of the picture are multiples of 48 pixels.
    """
    height, width = pixels.shape[:2]
    patches = pixels.reshape(height // PATCH_SIZE, PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE, 3)
    is_empty = np.ptp(patches, axis=(1, 3), keepdims=True).max(axis=4, keepdims=True) == 0
    noisy = add_noise(pixels, sigma, rng).reshape(patches.shape)
    return np.where(is_empty == empty, noisy, patches).reshape(pixels.shape)


def compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """To JPEG and back, with Pillow's defaults: colours at half the resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def set_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Bring each level towards the picture's mean, to `factor` of its distance."""
    mean = pixels.mean()
    return np.clip(np.rint(mean + factor * (pixels - mean)), 0, 255).astype(np.uint8)


def set_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply each level."""
    return np.clip(np.rint(factor * pixels), 0, 255).astype(np.uint8)


def shrink(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Resize to `factor` of the width and height; the processor makes it large again."""
    height, width = pixels.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


# Sounds.


def add_noise_at(samples: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """White noise so many dB below the sound's mean power, its pauses included."""
    noise = rng.standard_normal(len(samples))
    wanted = np.mean(np.square(samples, dtype=np.float64)) / 10 ** (snr_db / 10)
    noise *= np.sqrt(wanted / np.mean(noise**2))
    return (samples + noise).astype(np.float32)


def set_gain(samples: np.ndarray, gain_db: float) -> np.ndarray:
    """Louder or softer, then clipped and rounded as a file of 16 bits is."""
    scaled = np.clip(samples * np.float64(10 ** (gain_db / 20)), -1, 32767 / 32768)
    return (np.round(scaled * 32768) / 32768).astype(np.float32)


def resample(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """The same sound at another rate in Hz; nothing above half of it is left."""
    if rate == SAMPLE_RATE:
        return samples, rate
    return soxr.resample(samples, SAMPLE_RATE, rate, quality="HQ"), rate


def change_speed(samples: np.ndarray, factor: float) -> tuple[np.ndarray, int]:
    """Faster and higher by `factor`: the same samples under another rate."""
    return samples, round(SAMPLE_RATE * factor)


def delay(samples: np.ndarray, num_samples: int) -> np.ndarray:
    """The sound after so many samples of silence."""
    return np.concatenate([np.zeros(num_samples, np.float32), samples])
