"""Containers that PyAV opens: m4a, mp4, mov, mkv, webm, and whatever else holds sound or video.

PyAV belongs to the extra `media` and takes 0.2 s to import, so it is imported by the first file
that needs it.
"""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_gemma4.errors import InputError
from mlx_gemma4.processing.source import missing_extra

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

# Everything people record, but no playlists, image sequences, or devices: those name other files.
_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,ivf,dv,mxf,rm,nut,h264,hevc,m4v,"
    "wav,w64,aiff,caf,flac,mp3,aac,amr,ac3,eac3,ape,wv,tta,au,dsf"
)


@dataclass(frozen=True)
class SoundBlocks:
    """A sound that is being decoded, piece by piece.

    Attributes:
        sample_rate: In Hz.
        num_channels: Of the first block.
        seconds: Length that the header announces; None if it does not.
        blocks: [n, num_channels] float32 each, of any lengths.
    """

    sample_rate: int
    num_channels: int
    seconds: float | None
    blocks: Iterator[np.ndarray]


@contextmanager
def open_container(
    stream: Path | io.BytesIO, name: str, medium: str
) -> Generator["InputContainer"]:
    """Open a file with PyAV; whatever PyAV raises until it is closed becomes an InputError.

    Args:
        stream: What `open_source` returned.
        name: The file's name in messages.
        medium: "sound" or "video", what the caller hopes to find.

    Raises:
        MissingExtraError: PyAV is not installed.
        InputError: Not such a file, or damaged.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise missing_extra(name, "is read by PyAV, which is not installed") from None
    if isinstance(stream, io.BytesIO):
        stream.seek(0)  # another decoder may have been there
    # An absolute path: FFmpeg takes what stands before a colon for a protocol.
    file = stream if isinstance(stream, io.BytesIO) else str(stream.absolute())
    options = {"format_whitelist": _FORMATS}
    try:  # titles and artists are not read, so they may be in any encoding
        with av.open(file, mode="r", options=options, metadata_errors="replace") as container:
            yield container
    except FFmpegError as error:
        raise InputError(
            f"{name} is not a {medium} that can be read, or is damaged ({error.strerror}); "
            "open it in a player, and export it again"
        ) from None


def decode_sound(stream: Path | io.BytesIO, name: str, medium: str) -> SoundBlocks | None:
    """Start decoding the first sound track; None if the file has none.

    Raises:
        MissingExtraError: PyAV is not installed.
        InputError: Not such a file, or damaged; also while the blocks are read.
    """
    frames = _frames(stream, name, medium)
    first = next(frames, None)
    if first is None:
        return None
    sample_rate, seconds, block = first

    def blocks() -> Iterator[np.ndarray]:
        yield block
        for _, _, more in frames:
            yield more

    return SoundBlocks(sample_rate, block.shape[1], seconds, blocks())


def _frames(
    stream: Path | io.BytesIO, name: str, medium: str
) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """Yield (sample rate, announced seconds, [n, channels] float32), frame by frame."""
    with open_container(stream, name, medium) as container:
        import av

        if not container.streams.audio:
            return
        # Pictures may go on after the sound has ended, so beside them the length says nothing.
        length = 0 if container.streams.video else container.duration
        seconds = length / av.time_base if length else None
        for frame in _to_float(container.decode(audio=0)):
            yield frame.sample_rate, seconds, frame.to_ndarray().T


def _to_float(frames: Iterator["AudioFrame"]) -> Iterator["AudioFrame"]:
    """Yield frames in float32 and at one sample rate, the first frame's.

    Files that were put together from several change rate, channels, or format on the way.
    """
    from av import AudioResampler

    resampler, source, rate = None, None, None
    for frame in frames:
        rate = rate or frame.sample_rate
        if source != (source := (frame.format.name, frame.layout.name, frame.sample_rate)):
            if resampler is not None:
                yield from resampler.resample(None)
            resampler = AudioResampler(format="fltp", rate=rate)
        assert resampler is not None
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)
