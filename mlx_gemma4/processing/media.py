"""One medium of a prompt, read: soft tokens for the text, pixels or samples for the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlx_gemma4.inputs import Modality
from mlx_gemma4.processing.audio import AudioFrames, process_audio
from mlx_gemma4.processing.image import process_image
from mlx_gemma4.processing.prompt import Expansion, expand_audio, expand_image, expand_video
from mlx_gemma4.processing.tokenizer import Tokenizer
from mlx_gemma4.processing.video import extract_sound, process_video


@dataclass(frozen=True)
class Medium:
    """A picture, a sound, or a clip as the model will see it.

    Attributes:
        name: The file's name, or the modality and a number.
        expansion: What its placeholder becomes.
        patches: [P, 6912] float32, of a picture or of all frames of a clip.
        patch_positions: [P, 2] int32.
        frames: [F, 640] float32, of a sound.
        size: (width, height) in pixels before resizing.
        grid: (columns, rows) of soft tokens of a picture or of each frame.
        timestamps_s: Times of a clip's frames.
        seconds: Length of a sound or a clip.
        sound: A clip's own, if the model is to hear it; its placeholder follows the clip's.
        notes: What was resized, resampled, or left out.
    """

    name: str
    expansion: Expansion
    patches: np.ndarray | None = None
    patch_positions: np.ndarray | None = None
    frames: np.ndarray | None = None
    size: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    timestamps_s: tuple[float, ...] = ()
    seconds: float | None = None
    sound: "Medium | None" = None
    notes: tuple[str, ...] = ()

    @property
    def modality(self) -> Modality:
        """Which of the three it is."""
        return self.expansion.modality

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens that it takes in the prompt."""
        return sum(self.expansion.lengths)


def read_image(
    source: Any, name: str, tokenizer: Tokenizer, image_tokens: int | Literal["auto"]
) -> Medium:
    """Read a picture; see `image.process_image`."""
    image = process_image(source, image_tokens)
    return Medium(
        name,
        expand_image(tokenizer, image.num_soft_tokens),
        patches=image.patches,
        patch_positions=image.positions,
        size=image.size,
        grid=image.grid,
        notes=image.notes,
    )


def read_audio(source: Any, name: str, tokenizer: Tokenizer) -> Medium:
    """Read a sound; see `audio.process_audio`."""
    return _sound(process_audio(source), name, tokenizer)


def read_video(
    source: Any,
    name: str,
    tokenizer: Tokenizer,
    num_frames: int,
    video_tokens: int,
    *,
    with_sound: bool = False,
) -> Medium:
    """Read the frames of a clip, and its sound if asked for; see `video.process_video`."""
    video = process_video(source, num_frames, video_tokens)
    track = extract_sound(source) if with_sound else None
    sound = None if track is None else _sound(process_audio(track), f"sound of {name}", tokenizer)
    is_missing = with_sound and sound is None
    first = video.frames[0]
    return Medium(
        name,
        expand_video(tokenizer, [f.num_soft_tokens for f in video.frames], video.timestamps_s),
        patches=np.concatenate([frame.patches for frame in video.frames]),
        patch_positions=np.concatenate([frame.positions for frame in video.frames]),
        size=first.size,
        grid=first.grid,
        timestamps_s=video.timestamps_s,
        seconds=video.seconds,
        sound=sound,
        notes=video.notes + (f"{name} has no sound",) * is_missing,
    )


def name_of(source: Any, modality: Modality, number: int) -> str:
    """Return what to call a medium: its file's name, or "image 2"."""
    return Path(source).name if isinstance(source, str | Path) else f"{modality} {number}"


def _sound(sound: AudioFrames, name: str, tokenizer: Tokenizer) -> Medium:
    return Medium(
        name,
        expand_audio(tokenizer, sound.num_soft_tokens),
        frames=sound.frames,
        seconds=sound.seconds,
        notes=sound.notes,
    )
