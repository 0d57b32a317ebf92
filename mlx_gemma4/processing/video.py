"""Clips to frames: which frames are shown to the model, and when they were.

A clip is a row of pictures, each with its time.  The frames are spread evenly, exactly as
transformers spreads them; they are decoded one by one, and only those chosen are kept.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.processing.audio import LoadedAudio, to_mono
from mlx_gemma4.processing.container import decode_sound, open_container
from mlx_gemma4.processing.image import (
    PATCH_SIZE,
    ImagePatches,
    check_budget,
    fit_size,
    pack_patches,
    resize,
)
from mlx_gemma4.processing.image_file import MAX_PIXELS
from mlx_gemma4.processing.source import open_source

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL.Image import Image

TRAINED_SECONDS = 60
"""Longest clip in training; longer ones are taken, with a note."""

MAX_SOFT_TOKENS = 262_144
"""Gemma 4's longest context: no clip may ask for more soft tokens."""

_ALLOWED = "a path, or the bytes of a file"
_DEFAULT_FPS = 24.0  # what the reference assumes where a file does not say
_SAME_TIME_S = 0.5  # true times that differ by less from the frame rate's are rounding


@dataclass(frozen=True)
class VideoFrames:
    """A clip as the vision front end takes it.

    Attributes:
        frames: One picture for each frame shown, all of the same grid.
        timestamps_s: When each was, in seconds from the start.
        seconds: Length of the clip.
        notes: What was left out, one line each.
    """

    frames: tuple[ImagePatches, ...]
    timestamps_s: tuple[float, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The timestamps as the prompt writes them: mm:ss, fractions of a second cut off."""
        return tuple(f"{int(s // 60):02d}:{int(s % 60):02d}" for s in self.timestamps_s)

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens that all frames together take in the prompt."""
        return sum(frame.num_soft_tokens for frame in self.frames)


@dataclass(frozen=True)
class _Clip:
    """What a file says of itself."""

    fps: float
    total: int  # frames
    announced_s: float  # 0 where the file does not say

    @property
    def seconds(self) -> float:
        return self.total / self.fps


@dataclass
class _Decoded:
    """What came out of a file, up to the last frame asked for."""

    pixels: list[np.ndarray] = field(default_factory=list)  # [height, width, 3] uint8, resized
    times_s: list[float] = field(default_factory=list)  # by the file's clock, the first frame at 0
    size: tuple[int, int] = (0, 0)  # width, height, upright, before resizing
    num_frames: int = 0  # decoded, shown or not
    end_s: float = 0.0  # time of the last of them


@dataclass(frozen=True)
class _Sample:
    """The chosen frames of one clip, before they are cut into patches."""

    indices: list[int]
    decoded: _Decoded
    clip: _Clip


def process_video(
    source: str | Path | bytes,
    num_frames: int | None = None,
    max_soft_tokens: int = 70,
    fps: float | None = None,
    *,
    name: str = "video",
) -> VideoFrames:
    """Choose frames of a clip, resize them, and cut them into patches.

    Args:
        source: A path, or the bytes of a file.
        num_frames: How many frames to show, spread evenly over the clip; 32 if neither this nor
            `fps` is given.  A clip with fewer is shown whole, with a note.
        max_soft_tokens: Budget of one frame, one of `SOFT_TOKEN_BUDGETS`.
        fps: Frames to show for each second, instead of `num_frames`.
        name: What messages call a clip that has no file name.

    Raises:
        OptionError: An impossible number of frames, rate, or budget, or both `num_frames` and
            `fps`.
        InputError: Not a clip, or damaged.
        MissingExtraError: The extra `media` is not installed.

    Source: transformers, video_utils.read_video_pyav, default_sample_indices_fn, and
        video_processing_gemma4_unified.Gemma4UnifiedVideoProcessor.
    """
    check_budget(max_soft_tokens, is_auto_allowed=False)
    num_frames = _check_frames(num_frames, fps)
    stream, name = open_source(source, "video", _ALLOWED, name)
    sample = _sample(stream, name, num_frames, fps, max_soft_tokens)
    timestamps, notes = _timestamps(sample, name)
    frames: list[ImagePatches] = []
    for pixels in sample.decoded.pixels:
        patches, positions = pack_patches(pixels)
        grid = (pixels.shape[1] // PATCH_SIZE, pixels.shape[0] // PATCH_SIZE)
        frames.append(ImagePatches(patches, positions, grid, sample.decoded.size))
    notes = _sampling_notes(sample, name, num_frames) + notes
    return VideoFrames(tuple(frames), timestamps, sample.clip.seconds, notes)


def extract_sound(source: str | Path | bytes, *, name: str = "video") -> LoadedAudio | None:
    """Return the sound of a clip as `audio.load_audio` returns sounds; None if it has none.

    Args:
        source: A path, or the bytes of a file.
        name: What messages call a clip that has no file name.

    Raises:
        InputError: Not a clip, or damaged.
        MissingExtraError: The extra `media` is not installed.
    """
    stream, name = open_source(source, "video", _ALLOWED, name)
    sound = decode_sound(stream, name, "video")
    return None if sound is None else to_mono(sound, name)


def sample_indices(
    total: int, clip_fps: float, num_frames: int | None, fps: float | None
) -> list[int]:
    """Return which frames of a clip to show, in ascending order.

    Args:
        total: Frames in the clip; more are never asked for.
        clip_fps: Its frames a second.
        num_frames: How many to show, or None to go by `fps`.
        fps: How many to show for each second.

    Source: transformers, video_utils.default_sample_indices_fn.
    """
    if num_frames is None:
        assert fps is not None
        num_frames = max(1, int(total / clip_fps * fps))
    num_frames = min(num_frames, total)
    return [i * total // num_frames for i in range(num_frames)]


def _check_frames(num_frames: int | None, fps: float | None) -> int | None:
    if num_frames is not None and fps is not None:
        raise OptionError(f"both num_frames ({num_frames}) and fps ({fps}) are given; give one")
    if fps is not None:
        if not 0 < fps < math.inf:
            raise OptionError(f"fps is {fps}; it must be positive, for example 1")
        return None
    num_frames = 32 if num_frames is None else num_frames
    if num_frames < 1:
        raise OptionError(f"num_frames is {num_frames}; it must be at least 1")
    return num_frames


def _sample(
    stream: Path | io.BytesIO,
    name: str,
    num_frames: int | None,
    fps: float | None,
    max_soft_tokens: int,
) -> _Sample:
    """Decode the chosen frames.

    Some headers announce more frames than there are: an edit list hides a few, or the recorder
    counted frames that it dropped.  Then the clip is sampled again by the true number.
    """
    clip = announced = _inspect(stream, name)
    while True:
        indices = sample_indices(clip.total, clip.fps, num_frames, fps)
        if len(indices) * max_soft_tokens > MAX_SOFT_TOKENS:
            raise OptionError(
                f"{len(indices)} frames of {max_soft_tokens} soft tokens exceed the longest "
                f"context, {MAX_SOFT_TOKENS} tokens; ask for fewer frames"
            )
        decoded = _decode(stream, name, indices, max_soft_tokens)
        if len(decoded.pixels) == len(indices):
            return _Sample(indices, decoded, clip)
        count, end_s = decoded.num_frames, decoded.end_s
        is_whole = end_s > 0.9 * announced.announced_s - _SAME_TIME_S
        if not count or (count < 0.9 * announced.total and not is_whole):
            raise InputError(
                f"{name} breaks off after frame {count} of {announced.total}; get the whole file"
            )
        rate = (count - 1) / end_s if end_s > 0 else clip.fps
        clip = replace(clip, total=count, fps=rate)


def _inspect(stream: Path | io.BytesIO, name: str) -> _Clip:
    """Return rate and number of frames, counting packets where no header tells."""
    with open_container(stream, name, "video") as container:
        import av  # which `open_container` has found, or told how to install

        video = _video_stream(container, name)
        if video.width * video.height > MAX_PIXELS:
            raise InputError(
                f"{name} has frames of {video.width}x{video.height} pixels; at most "
                f"{MAX_PIXELS / 1e6:.0f} million pixels are decoded; shrink it first"
            )
        rate = video.average_rate or video.guessed_rate
        total = video.frames or sum(packet.size > 0 for packet in container.demux(video))
        announced_s = (container.duration or 0) / av.time_base
        if video.duration and video.time_base:  # without the sound, which may be longer
            announced_s = float(video.duration * video.time_base)
    if not total:
        raise InputError(f"{name} has no frames; pass another clip")
    return _Clip(float(rate) if rate else _DEFAULT_FPS, total, announced_s)


def _decode(
    stream: Path | io.BytesIO, name: str, indices: Sequence[int], max_soft_tokens: int
) -> _Decoded:
    """Decode up to the last frame asked for, and keep those asked for."""
    out, wanted, start = _Decoded(), set(indices), None
    with open_container(stream, name, "video") as container:
        video = _video_stream(container, name)
        video.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video)):
            time = frame.time if frame.time is not None else math.nan
            start = time if start is None else start
            out.num_frames, out.end_s = index + 1, time - start
            if index in wanted:
                image = _upright(frame)
                out.size = out.size if out.pixels else image.size
                out.pixels.append(resize(image, fit_size(*out.size, max_soft_tokens)))
                out.times_s.append(time - start)
            if index == indices[-1]:
                break
    return out


def _video_stream(container: "InputContainer", name: str) -> "VideoStream":
    """The first track of moving pictures; the cover of an album is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        # Of a codec that is not known, PyAV has neither a decoder nor a size.
        if stream.codec_context is None:
            continue
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise InputError(
        f"{name} holds no moving pictures that can be decoded; pass a video, or pass it as a sound"
    )


def _upright(frame: "VideoFrame") -> "Image":
    """Return a frame as RGB, turned the way the phone was held."""
    from PIL import Image

    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise, as is Pillow's
    if not quarter_turns:
        return image
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(turns[quarter_turns - 1])


def _timestamps(sample: _Sample, name: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return the time of each frame by the frame rate, as the reference does, unless that is wrong.

    Recordings of screens and phones have no constant rate, so a frame's number says little about
    its time; the file's clock does.
    """
    by_rate = tuple(index / sample.clip.fps for index in sample.indices)
    errors = [abs(a - b) for a, b in zip(by_rate, sample.decoded.times_s, strict=True)]
    if any(map(math.isnan, errors)) or max(errors) <= _SAME_TIME_S:  # NaN: the file has no clock
        return by_rate, ()
    note = f"{name} has a variable frame rate; its frames carry their true times"
    return tuple(sample.decoded.times_s), (note,)


def _sampling_notes(sample: _Sample, name: str, num_frames: int | None) -> tuple[str, ...]:
    shown, total, seconds = len(sample.indices), sample.clip.total, sample.clip.seconds
    notes: list[str] = []
    if num_frames is not None and shown < num_frames:
        notes.append(f"{name} has {total} frames, fewer than {num_frames}: all are shown")
    elif shown < total:
        notes.append(f"{name}: {shown} of {total} frames shown, one every {seconds / shown:.2f} s")
    if seconds > TRAINED_SECONDS:
        notes.append(
            f"{name} lasts {seconds:.0f} s; the model was trained on clips of at most "
            f"{TRAINED_SECONDS} s"
        )
    if seconds < 0.9 * sample.clip.announced_s - _SAME_TIME_S:
        notes.append(
            f"{name} shows {seconds:.1f} s of the {sample.clip.announced_s:.1f} s that it "
            "announces: is the file complete?"
        )
    return tuple(notes)
