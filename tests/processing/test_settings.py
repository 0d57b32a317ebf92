import json
from pathlib import Path
from typing import Any

import pytest

from mlx_gemma4.errors import CheckpointError, ConfigError
from mlx_gemma4.processing.settings import ProcessorSettings


def read(folder: Path, content: Any) -> ProcessorSettings:
    (folder / "processor_config.json").write_text(json.dumps(content))
    return ProcessorSettings.from_folder(folder)


def test_defaults_are_googles(tmp_path: Path) -> None:
    defaults = ProcessorSettings(image_tokens=280, video_tokens=70, num_frames=32)
    assert ProcessorSettings.from_folder(tmp_path) == defaults
    assert read(tmp_path, {}) == defaults
    assert read(tmp_path, {"image_processor": None, "video_processor": {}}) == defaults


@pytest.mark.google_files
def test_googles_file(google_checkpoint: Path) -> None:
    assert ProcessorSettings.from_folder(google_checkpoint) == ProcessorSettings(280, 70, 32)


def test_what_a_checkpoint_may_set(tmp_path: Path) -> None:
    content = {
        "image_processor": {"max_soft_tokens": 70, "rescale_factor": 0.00392156862745098},
        "video_processor": {"max_soft_tokens": 140, "num_frames": 8, "image_std": [1, 1, 1]},
        "feature_extractor": {"sampling_rate": 16000, "audio_samples_per_token": None},
    }
    assert read(tmp_path, content) == ProcessorSettings(70, 140, 8)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("image_processor", "max_soft_tokens", 100),
        ("image_processor", "patch_size", 14),
        ("image_processor", "image_mean", [0.5, 0.5, 0.5]),
        ("image_processor", "resample", 2),
        ("image_processor", "rescale_factor", 10**400),
        ("video_processor", "pooling_kernel_size", 2),
        ("video_processor", "num_frames", 0),
        ("video_processor", "num_frames", "8"),
        ("video_processor", "do_rescale", False),
        ("feature_extractor", "sampling_rate", 44100),
        ("feature_extractor", "feature_size", 320),
    ],
)
def test_what_is_not_implemented_is_an_error(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{key} (=|is) "):
        read(tmp_path, {section: {key: value}})


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no settings under image_processor"):
        read(tmp_path, {"image_processor": 3})
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read(tmp_path, [])
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        ProcessorSettings.from_folder(tmp_path)
