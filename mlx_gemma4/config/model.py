"""Config: all of config.json that matters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mlx_gemma4.config.front_ends import AudioConfig, VisionConfig, read_audio, read_vision
from mlx_gemma4.config.quantization import QuantizationConfig, read_quantization
from mlx_gemma4.config.section import Section, read_json
from mlx_gemma4.config.text import TextConfig, read_text
from mlx_gemma4.errors import ConfigError

_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Config:
    """All of config.json that matters.

    Attributes:
        vision_config: None for a checkpoint without this front end; so is audio_config.
        quantization: None where the weights are plain.
        eos_token_ids: Ids that end a text, unless generation_config.json says otherwise.
        dtype: In which the checkpoint was saved: "bfloat16", "float16", or "float32".
    """

    text_config: TextConfig
    vision_config: VisionConfig | None
    audio_config: AudioConfig | None
    quantization: QuantizationConfig | None
    image_token_id: int
    audio_token_id: int
    video_token_id: int
    boi_token_id: int
    eoi_token_id: int
    boa_token_id: int
    eoa_token_index: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    model_type: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a parsed config.json.

        Raises:
            ConfigError: A value is missing, impossible, or asks for what this package lacks.

        Source: transformers configuration_gemma4_unified.py.
        """
        top = Section(values, "")
        _check_model_type(top)
        quantization = read_quantization(top)
        text_section = top.section("text_config")
        if text_section is None:
            raise ConfigError(
                "config.json: text_config is missing; a gemma4_unified checkpoint describes its "
                "decoder there; download config.json again"
            )
        top.require("tie_word_embeddings", True, default=True)
        text = read_text(text_section)
        vision = read_vision(top.section("vision_config"))
        audio = read_audio(top.section("audio_config"))
        config = cls(
            text_config=text,
            vision_config=vision,
            audio_config=audio,
            quantization=quantization,
            image_token_id=top.integer("image_token_id", 258_880, minimum=0),
            audio_token_id=top.integer("audio_token_id", 258_881, minimum=0),
            video_token_id=top.integer("video_token_id", 258_884, minimum=0),
            boi_token_id=top.integer("boi_token_id", 255_999, minimum=0),
            eoi_token_id=top.integer("eoi_token_id", 258_882, minimum=0),
            boa_token_id=top.integer("boa_token_id", 256_000, minimum=0),
            eoa_token_index=top.integer("eoa_token_index", 258_883, minimum=0),
            eos_token_ids=top.token_ids("eos_token_id") or text_section.token_ids("eos_token_id"),
            dtype=_read_dtype(top, text_section),
            model_type="gemma4_unified",
        )
        _check_token_ids(config)
        return config

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `folder`/config.json.

        Raises:
            ConfigError: The file is missing, no JSON, or fails the checks of `from_dict`.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ConfigError(
                f"{folder} has no config.json; a checkpoint is a folder with config.json, "
                "*.safetensors, and tokenizer.json; check the path"
            )
        return cls.from_dict(read_json(path))


def _check_model_type(top: Section) -> None:
    """Refuse other models, with a word on where they run."""
    model_type = top.get("model_type")
    if model_type == "gemma4_unified":
        return
    if model_type is None:
        raise top.missing("model_type")
    name = str(model_type)
    if name.endswith("assistant"):
        advice = "this is a drafter; pass the model that it drafts for, such as gemma-4-12B-it"
    elif name == "gemma4_unified_text":
        advice = "this is the decoder alone; take the whole gemma4_unified checkpoint"
    elif name.startswith("gemma4"):
        advice = (
            "Gemma 4 E2B, E4B, 26B, and 31B have encoders or experts, which this package lacks; "
            "use mlx-vlm for them, or the 12B here"
        )
    else:
        advice = "use mlx-lm or mlx-vlm for other models"
    raise top.error("model_type", model_type, f'only "gemma4_unified" is supported; {advice}')


def _read_dtype(top: Section, text: Section) -> str:
    """Return the name of the dtype in which the checkpoint was saved."""
    for section in (top, text):
        for key in ("dtype", "torch_dtype"):
            if (value := section.get(key)) is None:
                continue
            if value not in _DTYPES:
                raise section.error(key, value, f"supported are {', '.join(_DTYPES)}")
            return value
    return "bfloat16"


def _check_token_ids(config: Config) -> None:
    """Check that ids which will be embedded have a row in the table."""
    vocab_size = config.text_config.vocab_size
    used = {
        "text_config.bos_token_id": config.text_config.bos_token_id,
        "text_config.pad_token_id": config.text_config.pad_token_id,
    }
    if config.vision_config is not None:
        for key in ("image_token_id", "video_token_id", "boi_token_id", "eoi_token_id"):
            used[key] = getattr(config, key)
    if config.audio_config is not None:
        for key in ("audio_token_id", "boa_token_id", "eoa_token_index"):
            used[key] = getattr(config, key)
    for key, token_id in used.items():
        if token_id >= vocab_size:
            raise ConfigError(
                f"config.json: {key} is {token_id}; it must be below text_config.vocab_size, "
                f"{vocab_size}"
            )
