"""What processor_config.json sets: soft tokens a picture and a frame, frames a clip.

Everything else in that file has one value that this project implements, which is checked: a
checkpoint that wants its pixels otherwise is an error, not a wrong answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gemma4.errors import ConfigError
from mlx_gemma4.processing.audio import FRAME_SIZE, SAMPLE_RATE
from mlx_gemma4.processing.image import SOFT_TOKEN_BUDGETS
from mlx_gemma4.processing.json_file import read_json

# Section -> keys and the values that this project implements; absent keys have these values.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "image_processor": {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    },
    "feature_extractor": {
        "audio_samples_per_token": FRAME_SIZE,
        "feature_size": FRAME_SIZE,
        "sampling_rate": SAMPLE_RATE,
        "padding_side": "right",
        "padding_value": 0.0,
    },
}


@dataclass(frozen=True)
class ProcessorSettings:
    """A checkpoint's defaults for media; Google's own where the checkpoint does not say.

    Attributes:
        image_tokens: Soft tokens a picture may take.
        video_tokens: Soft tokens a frame of a video may take.
        num_frames: Frames sampled from a video.
    """

    image_tokens: int = 280
    video_tokens: int = 70
    num_frames: int = 32

    @classmethod
    def from_folder(cls, folder: Path) -> "ProcessorSettings":
        """Read processor_config.json, which may be missing.

        Raises:
            CheckpointError: It cannot be read.
            ConfigError: A value that this project does not implement; the key is named.
        """
        path = folder / "processor_config.json"
        if not path.is_file():
            return cls()
        content = read_json(path)
        sections = {
            name: _section(content, name, path)
            for name in ("image_processor", "video_processor", "feature_extractor")
        }
        for name, section in sections.items():
            for key, wanted in _FIXED.get(name, _FIXED["image_processor"]).items():
                if section.get(key) is not None and not _is_same(section[key], wanted):
                    raise ConfigError(
                        f"{path.name} has {name}.{key} = {section[key]!r:.80}; this project "
                        f"implements {wanted!r}, as in Google's checkpoints"
                    )
        return cls(
            image_tokens=_budget(sections["image_processor"], "image_processor", cls.image_tokens),
            video_tokens=_budget(sections["video_processor"], "video_processor", cls.video_tokens),
            num_frames=_num_frames(sections["video_processor"], cls.num_frames),
        )


def _section(content: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path.name} holds no settings under {name}; fetch it again")
    return section


def _is_same(value: Any, wanted: Any) -> bool:
    # Not a whole number, which may be beyond every float.
    if isinstance(wanted, float) and isinstance(value, float):
        return math.isclose(value, wanted, rel_tol=1e-6)
    return value == wanted


def _budget(section: Mapping[str, Any], name: str, default: int) -> int:
    value = section.get("max_soft_tokens", default)
    if value not in SOFT_TOKEN_BUDGETS:
        allowed = ", ".join(map(str, SOFT_TOKEN_BUDGETS))
        raise ConfigError(f"{name}.max_soft_tokens is {value!r:.80}; allowed: {allowed}")
    return value


def _num_frames(section: Mapping[str, Any], default: int) -> int:
    value = section.get("num_frames", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"video_processor.num_frames is {value!r:.80}; it must be 1 or more")
    return value
