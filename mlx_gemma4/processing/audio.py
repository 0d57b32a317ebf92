"""Sounds to frames: any file, rate, and number of channels to 640-sample frames at 16 kHz.

The model has no audio encoder: a frame of raw samples, 40 ms, becomes one soft token.  Sounds are
decoded and resampled in pieces, so an hour of studio recording never stands in memory whole.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_gemma4.errors import InputError
from mlx_gemma4.processing.container import SoundBlocks, decode_sound
from mlx_gemma4.processing.source import open_source, read_head

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16_000
"""Hz; what the model hears."""

FRAME_SIZE = 640
"""Samples that become one soft token, 40 ms."""

TRAINED_SECONDS = 30
"""Longest sound in training; longer ones are taken, with a note."""

MAX_SECONDS = 262_144 * FRAME_SIZE / SAMPLE_RATE
"""About 2 h 55 min: as many soft tokens as Gemma 4's longest context has positions."""

_ALLOWED = "a path, the bytes of a file, an array, or a pair (array, sample rate)"
_BLOCK_SIZE = 1 << 16  # samples a channel
_INTEGER_SCALE = {"int16": 1 << 15, "int32": 1 << 31}


@dataclass(frozen=True)
class LoadedAudio:
    """A sound as the model hears it.

    Attributes:
        samples: [n] float32, mono, 16 kHz, mostly in -1..1.
        name: What messages call it: the file's name, if it has one.
        notes: What was converted, one line each.
    """

    samples: np.ndarray
    name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AudioFrames:
    """A sound as the audio front end takes it.

    Attributes:
        frames: [F, 640] float32; F is the number of soft tokens.
        seconds: Length of the sound, without the padding of the last frame.
        notes: What was converted, one line each.
    """

    frames: np.ndarray
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens that the sound takes in the prompt, F."""
        return len(self.frames)


def process_audio(
    source: str | Path | bytes | np.ndarray | tuple[np.ndarray, int] | LoadedAudio,
    *,
    name: str = "sound",
) -> AudioFrames:
    """Load a sound and cut it into frames.

    Args:
        source: Whatever `load_audio` takes, or what it returned.
        name: What messages call a sound that has no file name.

    Raises:
        InputError: The sound cannot be read.
        MissingExtraError: It takes the extra `media` to read it.
    """
    loaded = source if isinstance(source, LoadedAudio) else load_audio(source, name)
    seconds = len(loaded.samples) / SAMPLE_RATE
    notes = loaded.notes
    if seconds > TRAINED_SECONDS:
        notes += (
            f"{loaded.name} lasts {seconds:.1f} s and is heard whole; the model was trained on "
            f"sounds of at most {TRAINED_SECONDS} s",
        )
    return AudioFrames(pack_frames(loaded.samples), seconds, notes)


def pack_frames(samples: np.ndarray) -> np.ndarray:
    """Cut samples [n] into frames [ceil(n / 640), 640] float32, the last padded with zeros.

    Raises:
        ValueError: No samples, or not one row of them.

    Source: transformers, feature_extraction_gemma4_unified.Gemma4UnifiedAudioFeatureExtractor.
    """
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples must be [n] with n > 0, not {list(samples.shape)}")
    frames = np.zeros((-(-len(samples) // FRAME_SIZE), FRAME_SIZE), np.float32)
    frames.reshape(-1)[: len(samples)] = samples
    return frames


def load_audio(
    source: str | Path | bytes | np.ndarray | tuple[np.ndarray, int], name: str = "sound"
) -> LoadedAudio:
    """Decode a sound to mono at 16 kHz.

    wav, flac, ogg, opus, mp3, aiff, and caf are read without extras; m4a, and the sound of videos,
    by PyAV.  Channels are averaged.

    Args:
        source: A path, the bytes of a file, or samples [n] or [n, channels] as floats in -1..1 or
            int16 or int32, alone (at 16 kHz) or with their sample rate.
        name: What messages call a sound that has no file name.

    Raises:
        InputError: Not a sound, damaged, empty, too long (`MAX_SECONDS`), with samples that are
            not numbers, or of another type.
        MissingExtraError: A file that only PyAV reads, without the extra `media`.

    Source: transformers, audio_utils._load_audio_soundfile: the same mixing, resampler, and length.
    """
    if isinstance(source, np.ndarray):
        source = (source, SAMPLE_RATE)
    if isinstance(source, tuple) and len(source) == 2:
        return to_mono(_from_array(*source, name), name)
    stream, name = open_source(source, "sound", _ALLOWED, name)
    return to_mono(_open(stream, name), name)


def to_mono(sound: SoundBlocks, name: str) -> LoadedAudio:
    """Mix, resample, and check a sound while it is decoded.

    Raises:
        InputError: See `load_audio`.
    """
    import soxr

    if sound.seconds is not None and sound.seconds > MAX_SECONDS:
        raise _too_long(name, sound.seconds)
    resampler = soxr.ResampleStream(sound.sample_rate, SAMPLE_RATE, 1, "float32", "HQ")
    num_samples, is_silent = 0, True
    parts: list[np.ndarray] = []
    for block in sound.blocks:
        with np.errstate(invalid="ignore"):  # infinity less infinity, which is refused below
            mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            first = num_samples + int(np.argmin(np.isfinite(mono)))
            raise InputError(
                f"{name} holds samples that are not numbers (the first at "
                f"{first / sound.sample_rate:.3f} s); export it again, as 16-bit wav"
            )
        num_samples += len(mono)
        is_silent = is_silent and not mono.any()
        if num_samples > MAX_SECONDS * sound.sample_rate:  # the header had lied, or been silent
            raise _too_long(name, num_samples / sound.sample_rate)
        parts.append(mono if sound.sample_rate == SAMPLE_RATE else resampler.resample_chunk(mono))
    if not num_samples:
        raise InputError(f"{name} is empty (0 samples); pass a sound of at least one sample")
    if sound.sample_rate != SAMPLE_RATE:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = _fit_length(parts, math.ceil(num_samples * SAMPLE_RATE / sound.sample_rate))
    notes = _conversion_notes(sound, num_samples, name)
    if is_silent:
        notes += (f"{name} is silent: every sample is 0",)
    return LoadedAudio(samples, name, notes)


class _SoundBytes(io.BytesIO):
    """Bytes in which libsndfile may seek anywhere, as the headers of damaged files tell it to."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # would be printed, with a traceback, from a callback in C
            return self.tell()


def _open(stream: Path | io.BytesIO, name: str) -> SoundBlocks:
    import soundfile

    try:
        whole = isinstance(stream, io.BytesIO)
        file = soundfile.SoundFile(_SoundBytes(stream.getbuffer()) if whole else stream)
    except (soundfile.SoundFileError, TypeError):  # TypeError: .raw, which has no header
        return _open_container(stream, name)
    seconds = file.frames / file.samplerate * _announced_share(stream)
    return SoundBlocks(file.samplerate, file.channels, seconds, _read_blocks(file, name))


def _announced_share(stream: Path | io.BytesIO) -> float:
    """How many times longer a wav file calls itself than it is; libsndfile hides the difference."""
    head = read_head(stream)
    size = int.from_bytes(head[4:8], "little") + 8
    if head[:4] != b"RIFF" or size > 0x7FFFFFFF:  # written to a pipe: the size was never filled in
        return 1.0
    actual = len(stream.getbuffer()) if isinstance(stream, io.BytesIO) else stream.stat().st_size
    return max(size / actual, 1.0)


def _read_blocks(file: "soundfile.SoundFile", name: str) -> Iterator[np.ndarray]:
    import soundfile

    with file:
        try:
            yield from file.blocks(_BLOCK_SIZE, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise InputError(
                f"{name} is damaged ({error}); open it in a player, and export it again"
            ) from None


def _open_container(stream: Path | io.BytesIO, name: str) -> SoundBlocks:
    head = read_head(stream)
    if not _is_container(head):
        raise InputError(
            f"{name} is not a sound that can be read (it starts with {head[:8]!r}); "
            "pass a wav, flac, ogg, mp3, or m4a file"
        )
    sound = decode_sound(stream, name, "sound")
    if sound is None:
        raise InputError(f"{name} holds no sound; pass a file that does")
    return sound


def _is_container(head: bytes) -> bool:
    """Whether it looks like something that PyAV reads, so that a text file asks for no extra."""
    return (
        head[4:8] == b"ftyp"  # m4a, mp4, mov, 3gp
        or head[4:8] in (b"moov", b"mdat", b"wide", b"free")  # old mov
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head.startswith(
            (
                b"\x1aE\xdf\xa3",  # webm, mkv
                b"0&\xb2u\x8ef\xcf\x11",  # wma, asf
                b"#!AMR",
                b"FLV\x01",
                b"OggS",  # a codec that libsndfile lacks
                b"ADIF",
                b"\xff\xf1",  # aac, as is ...
                b"\xff\xf9",
                b"\xff\xf0",
                b"\xff\xf8",
                b"ID3",  # ... or after a tag
                b"MAC ",
                b"wvpk",
                b"TTA1",
                b"\x0bw",  # ac3
                b"G@",  # mpegts
                b"\x00\x00\x01\xba",  # mpeg
            )
        )
    )


def _from_array(samples: object, sample_rate: object, name: str) -> SoundBlocks:
    if not isinstance(samples, np.ndarray):
        raise InputError(f"{name} is a pair with a {type(samples).__name__}; pass {_ALLOWED}")
    is_number = isinstance(sample_rate, int | float | np.number)
    if not is_number or not 1 <= sample_rate < math.inf or sample_rate != int(sample_rate):
        raise InputError(f"{name} has a sample rate of {sample_rate!r}; pass whole Hz")
    scale = _INTEGER_SCALE.get(samples.dtype.name, None if samples.dtype.kind != "f" else 1)
    # A long second axis means [channels, n], which would be mixed the wrong way round.
    if scale is None or samples.ndim not in (1, 2) or samples[0:1].size > 64:
        raise InputError(
            f"{name} is an array of {samples.dtype} {list(samples.shape)}; pass [n] or "
            "[n, channels] as floats in -1..1, int16, or int32"
        )
    rows = samples.reshape(len(samples), -1) if samples.size else np.zeros((0, 1))
    rate = int(sample_rate)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), _BLOCK_SIZE):
            with np.errstate(over="ignore"):  # becomes infinity, which `to_mono` refuses
                block = rows[start : start + _BLOCK_SIZE].astype(np.float32)
            yield block / np.float32(scale)

    return SoundBlocks(rate, rows.shape[1], len(rows) / rate, blocks())


def _fit_length(parts: list[np.ndarray], length: int) -> np.ndarray:
    """Join the parts; the resampler may be a few samples off what the duration asks for."""
    samples = np.zeros(length, np.float32)
    end = 0
    for part in parts:
        part = part[: length - end]
        samples[end : end + len(part)] = part
        end += len(part)
    return samples


def _conversion_notes(sound: SoundBlocks, num_samples: int, name: str) -> tuple[str, ...]:
    notes: list[str] = []
    if sound.sample_rate != SAMPLE_RATE or sound.num_channels != 1:
        channels = {1: "mono", 2: "stereo"}.get(
            sound.num_channels, f"{sound.num_channels} channels"
        )
        notes.append(f"{name}: {sound.sample_rate} Hz {channels} converted to 16000 Hz mono")
    seconds = num_samples / sound.sample_rate
    # Some headers only estimate the length; a file cut off while copied is short by more.
    if sound.seconds is not None and seconds < min(sound.seconds * 0.95, sound.seconds - 0.5):
        notes.append(
            f"{name} ends after {seconds:.1f} s of the {sound.seconds:.1f} s that it announces: "
            "is the file complete?"
        )
    return tuple(notes)


def _too_long(name: str, seconds: float) -> InputError:
    return InputError(
        f"{name} lasts {seconds / 60:.0f} minutes or more; at most {MAX_SECONDS / 60:.0f} fit into "
        "any Gemma 4 context; cut it into parts"
    )
