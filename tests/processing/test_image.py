"""Any picture becomes 8-bit RGB; whatever is not a picture becomes a message."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_gemma4.errors import Gemma4Error, InputError, MissingExtraError, OptionError
from mlx_gemma4.processing.image import (
    SOFT_TOKEN_BUDGETS,
    auto_budget,
    fit_size,
    load_image,
    pack_patches,
    process_image,
)
from mlx_gemma4.processing.source import open_file


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.fixture
def photo(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8))


def pixel(source: object, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return load_image(source).image.getpixel((x, y))  # pyright: ignore


def test_deep_grey_is_scaled_in_little_memory() -> None:
    image = Image.fromarray(np.linspace(-1e6, 1e6, 1_000_000, dtype=np.float32).reshape(1000, -1))
    tracemalloc.start()
    try:
        loaded = load_image(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 4_000_000  # twice the pixels while they are copied, not float64 of all
    assert np.asarray(loaded.image)[[0, 500, 999], [0, 0, 999], 0].tolist() == [0, 128, 255]


def test_a_header_that_asks_for_more_than_there_is(tmp_path: Path) -> None:
    """Python makes room before it reads, and JPEG 2000 is read by the lengths of its boxes."""
    (tmp_path / "a").write_bytes(b"few bytes")
    with open_file(tmp_path / "a") as file:
        assert file.read(1 << 60) == b"few bytes"
        assert file.read(1 << 60) == b""
        file.seek(4)
        assert file.read() == b"bytes"


@pytest.mark.parametrize(
    "file_format", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG", "AVIF"]
)
def test_formats(photo: Image.Image, file_format: str, tmp_path: Path) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(photo, file_format, **options)
    (tmp_path / "a.bin").write_bytes(data)  # the content decides, not the ending
    for source in (data, tmp_path / "a.bin", str(tmp_path / "a.bin")):
        loaded = load_image(source)
        assert (loaded.image.mode, loaded.image.size, loaded.notes) == ("RGB", photo.size, ())
        if file_format in ("PNG", "TIFF", "BMP", "PPM", "WEBP"):
            assert np.array_equal(np.asarray(loaded.image), np.asarray(photo))


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("La", (0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (120, 128, 128), (120, 120, 120)),
        ("HSV", (0, 0, 90), (90, 90, 90)),
        ("I;16", 32768, (128, 128, 128)),
        ("I;16B", 65535, (255, 255, 255)),
        ("I", 65535, (255, 255, 255)),
        ("F", 1.0, (255, 255, 255)),
    ],
)
def test_colour_modes(mode: str, colour: object, wanted: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4), colour)  # pyright: ignore
    assert pixel(image) == wanted


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    data = encode(image, transparency=0)
    assert pixel(data, 0) == (255, 255, 255)
    assert pixel(data, 1) == (0, 200, 0)


def test_transparent_colour_of_an_rgb_file() -> None:
    data = encode(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7))
    assert pixel(data) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    values[-1, -1] = 65535
    for data in (
        encode(Image.fromarray(values)),
        encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
        encode(Image.fromarray(values.astype(np.float32)), "TIFF"),
    ):
        ours = np.asarray(load_image(data).image)[..., 0]
        assert np.abs(ours - values / 257).max() <= 0.5001


def test_odd_ranges_of_grey_say_so() -> None:
    values = np.linspace(-1000, 250_000, 64, dtype=np.float32).reshape(8, 8)
    loaded = load_image(encode(Image.fromarray(values), "TIFF"))
    assert loaded.image.getpixel((0, 0)) == (0, 0, 0)
    assert loaded.image.getpixel((7, 7)) == (255, 255, 255)
    assert "from -1000 to 250000" in loaded.notes[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, photo: Image.Image) -> None:
    upright = np.asarray(photo)
    # How a camera held so stores the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(np.asarray(load_image(data).image), upright)


def test_first_frame_of_an_animation_with_a_note() -> None:
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "lime", "blue")]
    for file_format in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"save_all": True, "append_images": frames[1:]}
        options |= {"lossless": True} if file_format == "WEBP" else {}
        loaded = load_image(encode(frames[0], file_format, **options))
        assert loaded.image.getpixel((0, 0)) == (255, 0, 0)
        assert loaded.notes == ("image holds 3 frames or pages; only the first is used",)


def test_arrays() -> None:
    grey = np.full((50, 60), 7, np.uint8)
    assert pixel(grey) == (7, 7, 7)
    assert pixel(np.dstack([grey, grey + 1, grey + 2])) == (7, 8, 9)
    assert pixel(np.dstack([grey, grey, grey, np.zeros_like(grey)])) == (255, 255, 255)
    assert load_image(np.dstack([grey] * 3)[:, ::-1]).image.size == (60, 50)


def test_a_given_pil_image_is_left_as_it_was() -> None:
    image = Image.new("RGBA", (8, 8))
    process_image(image, 70)
    assert image.mode == "RGBA"


def test_heic(repository: Path) -> None:
    pytest.importorskip("pillow_heif")
    path = repository / "tests" / "data" / "photo.heic"
    for source in (path, path.read_bytes()):
        image = load_image(source).image
        assert (image.mode, image.size) == ("RGB", (96, 64))
        left, right = image.getpixel((2, 32)), image.getpixel((93, 32))
        assert left[0] < 20  # pyright: ignore
        assert 70 < right[0] < 120  # pyright: ignore


def test_heic_without_the_extra(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingExtraError, match=r'pip install "mlx-gemma4\[media\]"'):
        load_image(repository / "tests" / "data" / "photo.heic")


def test_one_pixel_works() -> None:
    ours = process_image(np.full((1, 1, 3), 51, np.uint8), 70)
    assert ours.grid == (8, 8)
    assert ours.patches == pytest.approx(0.2)


@pytest.mark.parametrize("size", [(10_000, 16_001), (20_000, 20_000), (400_000, 400_000)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"million pixels; at most 160 million are decoded"):
        load_image(png_header(*size))


def broken(path: Path) -> dict[str, tuple[object, str]]:
    """Sources that are no pictures, each with a part of its message."""
    whole = encode(Image.effect_noise((200, 200), 90))
    (path / "text.png").write_text("This is no picture.")
    (path / "empty.png").write_bytes(b"")
    return {
        "text": (path / "text.png", "text.png is not a picture that can be read"),
        "pdf": (b"%PDF-1.7 and so on", "export the page of the PDF as a PNG"),
        "zero bytes": (path / "empty.png", "empty.png is empty (0 bytes)"),
        "no bytes": (b"", "image is empty (0 bytes)"),
        "missing": (path / "nowhere.png", "no such file"),
        "folder": (path, "is a folder"),
        "device": ("/dev/zero", "not a regular file"),
        "no name": ("a\0b", "cannot read"),
        "long name": ("a" * 5000, "cannot read"),
        "url": ("https://example.org/a.png", "download it first"),
        "data url": ("data:image/png;base64,AAAA", "download it first"),
        "cut off": (whole[: len(whole) // 2], "image is damaged or cut off"),
        "damaged": (whole[:200] + b"!!" + whole[202:], "image is damaged or cut off"),
        "header only": (whole[:30], "image is"),
        "not numbers": (
            encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
            "not numbers",
        ),
        "postscript": (encode(Image.new("RGB", (8, 8)), "EPS"), "export it as a PNG"),
        "number": (3, "image is of type int; pass a path"),
        "none": (None, "image is of type NoneType"),
        "list": ([["a.png"]], "image is of type list"),
        "float array": (np.zeros((4, 4, 3), np.float32), "pass uint8 values 0..255"),
        "flat array": (np.zeros(16, np.uint8), "array of uint8 [16]"),
        "empty array": (np.zeros((0, 4, 3), np.uint8), "array of uint8 [0, 4, 3]"),
    }


@pytest.mark.parametrize("case", [*broken(Path("/tmp"))] if Path("/tmp").is_dir() else [])
def test_broken_pictures(case: str, tmp_path: Path) -> None:
    source, message = broken(tmp_path)[case]
    with pytest.raises(InputError) as caught:
        process_image(source)  # pyright: ignore
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_cut_of_a_file_is_an_error_or_a_picture(photo: Image.Image) -> None:
    """No decoder's own exception escapes, wherever the file ends."""
    for file_format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = encode(photo, file_format)
        for end in range(1, len(data), max(1, len(data) // 40)):
            try:
                load_image(data[:end])
            except Gemma4Error:
                continue


@pytest.mark.parametrize("budget", [0, -70, 69, 300, 2240, "280", "all", None, 280.5, 280.0])
def test_unknown_budgets(budget: object) -> None:
    with pytest.raises(OptionError, match="choose 70, 140, 280, 560, 1120, or auto"):
        process_image(Image.new("RGB", (48, 48)), budget)  # pyright: ignore


@pytest.mark.parametrize(
    ("size", "budget"),
    [
        ((1, 1), 70),
        ((192, 144), 70),
        ((400, 400), 70),
        ((640, 480), 140),
        ((1024, 768), 280),
        ((1280, 720), 560),
        ((1920, 1080), 1120),
        ((4000, 3000), 1120),
    ],
)
def test_auto_budget(size: tuple[int, int], budget: int) -> None:
    assert auto_budget(*size) == budget
    ours = process_image(Image.new("RGB", size), "auto")
    assert ours.num_soft_tokens <= budget
    # What auto chose either keeps the picture, or is the most there is and says so.
    assert not ours.notes or budget == 1120


def test_auto_budget_never_shrinks_where_a_larger_would_not(rng: np.random.Generator) -> None:
    for width, height in rng.integers(1, 3000, (300, 2)).tolist():
        budget = auto_budget(width, height)
        fitted = fit_size(width, height, budget)
        kept = min(fitted[0] / width, fitted[1] / height)
        assert kept >= 7 / 8 or budget == SOFT_TOKEN_BUDGETS[-1]


def test_notes_say_what_was_lost() -> None:
    def notes(size: tuple[int, int], budget: int) -> tuple[str, ...]:
        return process_image(Image.new("RGB", size), budget).notes

    assert notes((192, 144), 280) == ()  # made larger: nothing lost
    assert notes((640, 480), 70) == (
        "image: 640x480 pixels shrunk to 432x336, 63 soft tokens; "
        "a budget of 140 would keep more detail",
    )
    assert notes((4000, 3000), 1120) == (
        "image: 4000x3000 pixels shrunk to 1824x1344, 1064 soft tokens",
    )
    assert "1x5000 pixels stretched to 48x3360, 70 soft tokens" in notes((1, 5000), 70)[0]


def test_a_nameless_picture_is_called_what_the_caller_calls_it(photo: Image.Image) -> None:
    for source in (photo, np.asarray(photo), encode(photo)):
        wide = Image.new("RGB", (4000, 3000)) if source is photo else source
        ours = process_image(wide, 70, name="image 2")
        assert all(note.startswith("image 2: ") for note in ours.notes)
    with pytest.raises(InputError, match=r"^image 2 is not a picture"):
        process_image(b"This is no picture.", name="image 2")


@pytest.mark.parametrize("arguments", [(0, 5, 70), (5, 0, 70), (-1, 5, 70), (5, 5, 0)])
def test_fit_size_refuses(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot fit"):
        fit_size(*arguments)


@pytest.mark.parametrize("shape", [(47, 48, 3), (48, 50, 3), (48, 48), (48, 48, 4), (0, 48, 3)])
def test_pack_patches_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        pack_patches(np.zeros(shape, np.uint8))


def test_patches_hold_every_pixel_once() -> None:
    height, width = 96, 144
    y, x = np.mgrid[:height, :width]
    pixels = np.dstack([x % 256, y % 256, x // 48 + 3 * (y // 48)]).astype(np.uint8)
    patches, positions = pack_patches(pixels)
    assert (patches.dtype, positions.dtype) == (np.float32, np.int32)
    assert positions.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    for patch, (column, row) in zip(patches, positions, strict=True):
        square = pixels[row * 48 : row * 48 + 48, column * 48 : column * 48 + 48]
        assert np.array_equal(np.rint(patch * 255).astype(np.uint8), square.reshape(-1))


def test_nothing_is_imported_before_it_is_needed() -> None:
    """Text alone pays for no decoder, and a picture for no sound."""
    program = (
        "import sys\n"
        "from mlx_gemma4.processing import audio, image, video\n"
        "heavy = {'PIL', 'soundfile', 'soxr', 'av', 'pillow_heif', 'mlx', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import numpy as np\n"
        "image.process_image(np.zeros((9, 9, 3), np.uint8), 70)\n"
        "assert not (heavy - {'PIL'}) & set(sys.modules)\n"
        "audio.process_audio(np.zeros(9, np.float32))\n"
        "assert 'av' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
