"""Targets that decode: pictures, sounds, and clips."""

import io
import zlib
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np

from fuzz.case import Files, Target
from fuzz.mutation import PNG_SIGNATURE, mutate_bytes, mutate_png
from mlx_gemma4.processing.audio import MAX_SECONDS, SAMPLE_RATE, process_audio
from mlx_gemma4.processing.image import SOFT_TOKEN_BUDGETS, process_image
from mlx_gemma4.processing.image_file import MAX_PIXELS
from mlx_gemma4.processing.video import extract_sound, process_video

_DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
_SAMPLES = Path(__file__).resolve().parents[2] / "mlx_gemma4" / "demo" / "samples"
# A case is given as the bytes of a file if it has this name, and else as a file of that name.
_AS_BYTES = "bytes"
_NAMES = (_AS_BYTES, _AS_BYTES, "a.bin", "a.png", "a.wav", "a.mp4", "a.raw", "a.gif", "a")


@cache
def read_pictures() -> tuple[Files, ...]:
    """Return small pictures of the formats and colour modes that people have."""
    from PIL import Image

    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (24, 32, 4), dtype=np.uint8))
    rgb, deep = colours.convert("RGB"), rng.integers(0, 65536, (24, 32), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    animation: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90), rgb]}
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("P"), "GIF", animation),
        (colours, "WEBP", {"lossless": True}),
        (rgb, "WEBP", animation),
        (rgb, "BMP", {}),
        (rgb.convert("1"), "BMP", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (colours, "TIFF", animation),
        (Image.fromarray(deep), "TIFF", {}),
        (Image.fromarray(deep.astype(np.float32)), "TIFF", {}),
        (Image.fromarray(deep), "PNG", {}),
        (colours, "PNG", {"exif": exif}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb, "PNG", animation),
        (rgb, "AVIF", {}),
        (colours, "ICO", {}),
        (rgb, "PPM", {}),
        (rgb, "JPEG2000", {}),
        (rgb, "TGA", {"compression": "tga_rle"}),
        (colours, "DDS", {}),
        (rgb, "SGI", {}),
        (rgb, "PCX", {}),
        (colours, "QOI", {}),
        (rgb, "MPO", animation),
        (rgb.convert("L"), "SPIDER", {}),
        (rgb.convert("1"), "XBM", {}),
    ]
    files = [_encoded(image, kind, options) for image, kind, options in made]
    files += [(_DATA / name).read_bytes() for name in ("shapes.png", "photo.heic")]
    files.append((_SAMPLES / "count.png").read_bytes())
    return tuple({_AS_BYTES: content} for content in files)


def _encoded(image: Any, kind: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def read_sounds() -> tuple[Files, ...]:
    """Return short sounds of the formats, rates, and widths that people have."""
    import soundfile

    rng = np.random.default_rng(1)
    samples = (rng.standard_normal((1500, 2)) / 8).astype(np.float32)
    made = [
        ("WAV", "PCM_16", 16_000),
        ("WAV", "FLOAT", 44_100),
        ("WAV", "ULAW", 8_000),
        ("WAV", "IMA_ADPCM", 22_050),
        ("WAVEX", "PCM_24", 48_000),
        ("FLAC", "PCM_16", 44_100),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("MP3", "MPEG_LAYER_III", 44_100),
        ("AIFF", "PCM_16", 16_000),
        ("CAF", "ALAC_16", 16_000),
        ("AU", "PCM_16", 8_000),
        ("W64", "PCM_16", 16_000),
        ("RF64", "PCM_16", 16_000),
        ("VOC", "PCM_16", 16_000),
    ]
    files = []
    for kind, subtype, rate in made:
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
        files.append(stream.getvalue())
    files += [(_DATA / "note.m4a").read_bytes(), (_DATA / "demo" / "sound0.flac").read_bytes()]
    files += [_contained(kind, None, codec) for kind, codec in (("adts", "aac"), ("mp4", "aac"))]
    return tuple({_AS_BYTES: content} for content in files)


@cache
def read_clips() -> tuple[Files, ...]:
    """Return short clips of the containers and codecs that people have."""
    made = [
        ("mp4", "libx264", "aac"),
        ("mp4", "mpeg4", None),
        ("matroska", "mjpeg", "pcm_s16le"),
        ("webm", "libvpx-vp9", None),
        ("avi", "mpeg4", "mp3"),
        ("mpegts", "mpeg2video", "mp2"),
        ("gif", "gif", None),
        ("mov", "png", None),
        ("flv", "flv", None),
    ]
    files = [_contained(*how) for how in made]
    files += [(_DATA / "demo" / "clip0.mkv").read_bytes(), (_SAMPLES / "clip.mkv").read_bytes()]
    return tuple({_AS_BYTES: content} for content in files)


def _contained(kind: str, video_codec: str | None, audio_codec: str | None) -> bytes:
    """Return 6 frames of 32 x 24 pixels, and half a second of sound."""
    import av

    rng = np.random.default_rng(1)
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        video = sound = None
        if video_codec:
            video = cast(Any, container.add_stream(video_codec, rate=10))
            video.width, video.height = 32, 24
            formats = {"gif": "rgb8", "mjpeg": "yuvj420p", "png": "rgb24"}
            video.pix_fmt = formats.get(video_codec, "yuv420p")
        if audio_codec:
            sound = cast(Any, container.add_stream(audio_codec, rate=44_100))
        if video is not None:
            for number in range(6):
                pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if sound is not None:
            noise = (rng.standard_normal((1, 22_050)) * 1000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate = 44_100
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return stream.getvalue()


def mutate_medium(rng: Random, real: Sequence[Files]) -> Files:
    """Change some bytes of a file; those of a PNG in a chunk that then has a proper checksum."""
    content = rng.choice(real)[_AS_BYTES]
    if content.startswith(PNG_SIGNATURE) and rng.random() < 0.8:
        return {rng.choice(_NAMES): mutate_png(rng, content)}
    others = [files[_AS_BYTES] for files in real]
    return {rng.choice(_NAMES): mutate_bytes(rng, content, others)}


def _source(files: Files, folder: Path) -> Path | bytes:
    ((name, content),) = files.items()
    if name == _AS_BYTES:
        return content
    (folder / name).write_bytes(content)
    return folder / name


def run_picture(files: Files, folder: Path) -> None:
    """Cut a picture into patches."""
    (content,) = files.values()
    budgets = (*SOFT_TOKEN_BUDGETS, "auto")
    process_image(_source(files, folder), budgets[zlib.crc32(content) % len(budgets)])


def run_sound(files: Files, folder: Path) -> None:
    """Cut a sound into frames."""
    process_audio(_source(files, folder))


def run_clip(files: Files, folder: Path) -> None:
    """Cut a clip into patches, and its sound into frames."""
    source = _source(files, folder)
    process_video(source, num_frames=4)
    if (sound := extract_sound(source)) is not None:
        process_audio(sound)


# The largest picture with transparency, the white that it is laid over, and the result.
_PICTURE_BYTES = 3 * 4 * MAX_PIXELS + (64 << 20)
# The longest sound as it comes in pieces, as a whole, and in frames.
_SOUND_BYTES = 3 * 4 * int(MAX_SECONDS * SAMPLE_RATE)

TARGETS = (
    Target("picture", read_pictures, mutate_medium, run_picture, _PICTURE_BYTES),
    Target("sound", read_sounds, mutate_medium, run_sound, _SOUND_BYTES),
    Target("clip", read_clips, mutate_medium, run_clip, _PICTURE_BYTES),
)
