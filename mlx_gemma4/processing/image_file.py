"""Any picture to 8-bit RGB: orientation, transparency, palettes, 16-bit grey, the first frame.

A picture is judged by its header before it is decoded, so a small file that unfolds to gigabytes
is refused unread.
"""

import io
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mlx_gemma4.errors import InputError
from mlx_gemma4.processing.source import missing_extra, open_file, open_source

if TYPE_CHECKING:  # importing Pillow costs 25 ms, which prompts of text alone need not pay
    from PIL.Image import Image

MAX_PIXELS = 160_000_000
"""Largest picture that is decoded: 480 MB as RGB, room for the 108-megapixel ones of phones.

With transparency, or of 32 bits, three times 640 MB while it is converted.
"""

_ALLOWED = "a path, the bytes of a file, a PIL image, or a uint8 array [height, width, 3]"

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112  # of EXIF
_BLOCK_ROWS = 256
_16_BIT_TO_8 = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


@dataclass(frozen=True)
class LoadedImage:
    """A decoded picture.

    Attributes:
        image: Mode RGB, upright, in its own size.
        name: What messages call it: the file's name, if it has one.
        notes: What was left out or guessed, one line each.
    """

    image: "Image"
    name: str
    notes: tuple[str, ...] = ()


def load_image(
    source: "str | Path | bytes | Image | np.ndarray", name: str = "image"
) -> LoadedImage:
    """Decode a picture of any format and colour mode that Pillow knows, and HEIC.

    EXIF orientation is applied, transparency laid over white, 16-bit grey scaled to 8 bits; of an
    animation or a document of several pages the first is taken, with a note.

    Args:
        source: A path, the bytes of a file, a PIL image, or a uint8 array [H, W], [H, W, 3], or
            [H, W, 4].
        name: What messages call a picture that has no file name.

    Raises:
        InputError: Not a picture, damaged, above `MAX_PIXELS`, or of another type.
        MissingExtraError: A HEIC picture without the extra `media`.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _upright_rgb(source, name, [])
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source, name), name, [])
    stream, name = open_source(source, "image", _ALLOWED, name)
    # Pillow keeps files of several frames open, so the file is opened and closed here.
    with stream if isinstance(stream, io.BytesIO) else open_file(stream) as file:
        image = _open(file, name)
        return _upright_rgb(image, name, _frame_notes(image, name))


def _upright_rgb(image: "Image", name: str, notes: list[str]) -> LoadedImage:
    """Decode, turn, and convert a picture whose header has been read."""
    from PIL import ImageOps

    _check_size(*image.size, name)
    with _decoding(name):
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _eight_bit_grey(image, name, notes)
        image = _to_rgb(image)
    return LoadedImage(image, name, tuple(notes))


def _open(file: BinaryIO, name: str) -> "Image":
    """Read the header; the pixels are decoded later."""
    from PIL import Image, UnidentifiedImageError

    with _decoding(name):
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            file.seek(0)
            head = file.read(16)
            if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
                return _open_heif(file, name)
            advice = "pass a PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF, or HEIC file"
            if head.startswith(b"%PDF"):
                advice = "export the page of the PDF as a PNG"
            raise InputError(
                f"{name} is not a picture that can be read (it starts with {head[:8]!r}); {advice}"
            ) from None
    if image.format == "EPS":  # Pillow would run Ghostscript, a whole interpreter, on the file
        raise InputError(f"{name} is PostScript, which is not rendered here; export it as a PNG")
    return image


def _open_heif(file: BinaryIO, name: str) -> "Image":
    try:
        import pillow_heif
    except ImportError:
        raise missing_extra(name, "is read by pillow-heif, which is not installed") from None
    file.seek(0)
    heif = pillow_heif.open_heif(file)
    _check_size(*heif.size, name)  # before to_pillow, which decodes
    return heif.to_pillow()


def _from_array(pixels: np.ndarray, name: str) -> "Image":
    from PIL import Image

    is_grey = pixels.ndim == 2
    is_colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.dtype != np.uint8 or not pixels.size or not (is_grey or is_colour):
        raise InputError(
            f"{name} is an array of {pixels.dtype} {list(pixels.shape)}; "
            "pass uint8 values 0..255 as [height, width, 3]"
        )
    return Image.fromarray(pixels)


def _frame_notes(image: "Image", name: str) -> list[str]:
    if image.format == "MPO":  # a photograph whose other frames are previews and depth
        return []
    with _decoding(name):
        num_frames = getattr(image, "n_frames", 1)
    if num_frames == 1:
        return []
    return [f"{name} holds {num_frames} frames or pages; only the first is used"]


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(name, width * height)
    if not width * height:
        raise InputError(f"{name} has no pixels ({width}x{height}); pass another picture")


def _too_large(name: str, num_pixels: int) -> InputError:
    return InputError(
        f"{name} has {num_pixels / 1e6:.0f} million pixels; at most {MAX_PIXELS / 1e6:.0f} million "
        "are decoded; shrink it first"
    )


def _eight_bit_grey(image: "Image", name: str, notes: list[str]) -> "Image":
    """Scale grey of 16 or 32 bits, which Pillow's own conversion would clip at 255."""
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return Image.fromarray(_16_BIT_TO_8[values])
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name} holds pixels that are not numbers; export it as an 8-bit PNG")
    # Floats and 32-bit integers do not tell their white; these are the usual ones.
    whites = (65535,) if image.mode == "I" else (1, 255, 65535)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    black = None
    if white is None:
        notes.append(f"{name} has pixels from {low:g} to {high:g}, shown as black to white")
        black, white = np.float64(low), max(high - low, 1e-12)
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _BLOCK_ROWS):  # as float64 the whole would take gigabytes
        block = values[start : start + _BLOCK_ROWS]
        block = block if black is None else block - black
        grey[start : start + _BLOCK_ROWS] = np.rint(block * (255 / white))
    return Image.fromarray(grey)


def _to_rgb(image: "Image") -> "Image":
    """Convert to RGB; what is transparent becomes white, as on paper."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "La":  # Pillow knows only this way out of it
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextmanager
def _decoding(name: str) -> Generator[None]:
    """Turn whatever a decoder raises into an InputError, and keep its warnings to ourselves."""
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecompressionBombWarning)  # `_check_size` decides
        warnings.simplefilter("ignore", UserWarning)  # odd EXIF, palettes with transparency
        try:
            yield
        except (InputError, MemoryError):
            raise
        except DecompressionBombError as error:  # Pillow's own, higher limit, met in the header
            count = re.search(r"\d+", str(error))
            raise _too_large(name, int(count[0]) if count else 2 * MAX_PIXELS) from None
        except Exception as error:  # damaged files make decoders raise nearly any type
            raise InputError(
                f"{name} is damaged or cut off ({error}); open and save it again, or get it anew"
            ) from error
