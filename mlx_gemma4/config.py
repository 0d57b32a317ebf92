"""config.json and generation_config.json as frozen dataclasses, checked when they are read.

Google's form and the form that transformers writes mean the same and become the same objects.  The
one rule: whatever a checkpoint asks for is either honoured or refused by the name of its key.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from mlx_gemma4.errors import ConfigError

SLIDING_ATTENTION = "sliding_attention"
FULL_ATTENTION = "full_attention"

# Every 48x48 patch is one soft token, so is every 640-sample frame; processing is made for these.
PATCH_SIZE = 16
POOLING_KERNEL_SIZE = 3
FRAME_SIZE = 640

# mode -> allowed bits, allowed group sizes, each with MLX's default first: what mx.quantize takes.
QUANTIZATION_MODES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

_MAX_CONFIG_BYTES = 16 * 1024 * 1024
_MAX_INTEGER = 2**31 - 1
_MAX_LAYERS = 1024
_SLIDING_PATTERN = 6  # transformers: every sixth layer is global where layer_types is missing
_DTYPES = ("bfloat16", "float16", "float32")

_Choice = TypeVar("_Choice", str, bool)


@dataclass(frozen=True)
class RopeParameters:
    """Rotary positions of one layer type.

    Attributes:
        rope_theta: Base of the frequencies.
        rope_type: "default", or "proportional": a share of the pairs rotates, at the frequencies
            that those pairs have in the whole head.
        partial_rotary_factor: That share, above 0 and at most 1.
    """

    rope_theta: float
    rope_type: str
    partial_rotary_factor: float = 1.0


@dataclass(frozen=True)
class TextConfig:
    """The decoder; every field has the name and meaning of its key in config.json.

    Attributes:
        head_dim: Dimensions of a head in sliding layers; `global_head_dim` in global ones.
        num_key_value_heads: In sliding layers; `num_global_key_value_heads` in global ones.
        attention_k_eq_v: Global layers have no v_proj: keys and values share k_proj.
        sliding_window: Positions that a sliding layer sees, the current one included.
        rope_parameters: By layer type.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    global_head_dim: int
    num_global_key_value_heads: int
    attention_k_eq_v: bool
    layer_types: tuple[str, ...]
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float
    final_logit_softcapping: float | None
    rope_parameters: Mapping[str, RopeParameters]
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    tie_word_embeddings: bool = True

    def is_sliding(self, layer_index: int) -> bool:
        """Whether a layer sees the sliding window alone."""
        return self.layer_types[layer_index] == SLIDING_ATTENTION

    def head_dim_of(self, layer_index: int) -> int:
        """Dimensions of a head in a layer."""
        return self.head_dim if self.is_sliding(layer_index) else self.global_head_dim

    def num_key_value_heads_of(self, layer_index: int) -> int:
        """Key and value heads in a layer."""
        if self.is_sliding(layer_index):
            return self.num_key_value_heads
        return self.num_global_key_value_heads


@dataclass(frozen=True)
class VisionConfig:
    """The front end for pictures: one 48x48-pixel patch is one soft token.

    Attributes:
        model_patch_size: Side of a patch in pixels, patch_size * pooling_kernel_size.
        mm_embed_dim: Dimensions between the patch matrix and the projection.
        mm_posemb_size: Rows of the position table: the longest side of a picture in patches.
        num_soft_tokens: Soft tokens of a picture unless the caller asks for another budget.
        output_proj_dims: Dimensions that go into the projection, equal to mm_embed_dim.
    """

    patch_size: int
    pooling_kernel_size: int
    model_patch_size: int
    mm_embed_dim: int
    mm_posemb_size: int
    num_soft_tokens: int
    output_proj_dims: int
    rms_norm_eps: float

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: three colours of every pixel."""
        return 3 * self.model_patch_size**2


@dataclass(frozen=True)
class AudioConfig:
    """The front end for sound: one frame of 640 samples (40 ms at 16 kHz) is one soft token."""

    audio_embed_dim: int
    audio_samples_per_token: int
    output_proj_dims: int
    rms_norm_eps: float


@dataclass(frozen=True)
class QuantizationSettings:
    """How one module's weight is stored: what mx.quantized_matmul needs to read it."""

    group_size: int
    bits: int
    mode: str = "affine"


@dataclass(frozen=True)
class QuantizationConfig:
    """Quantization of the checkpoint on disk.

    Attributes:
        group_size: Weights that share a scale, unless overridden.
        bits: Of one weight, unless overridden.
        mode: "affine", "mxfp4", "mxfp8", or "nvfp4", unless overridden.
        overrides: Settings of single modules by the checkpoint's own paths; None for a module that
            is not quantized.
    """

    group_size: int
    bits: int
    mode: str = "affine"
    overrides: Mapping[str, QuantizationSettings | None] = field(default_factory=dict)

    @property
    def default(self) -> QuantizationSettings:
        """Settings of a module without an override."""
        return QuantizationSettings(self.group_size, self.bits, self.mode)


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
        top = _Section(values, "")
        _check_model_type(top)
        quantization = _read_quantization(top)
        text_section = top.section("text_config")
        if text_section is None:
            raise ConfigError(
                "config.json: text_config is missing; a gemma4_unified checkpoint describes its "
                "decoder there; download config.json again"
            )
        top.require("tie_word_embeddings", True, default=True)
        text = _read_text(text_section)
        vision = _read_vision(top.section("vision_config"))
        audio = _read_audio(top.section("audio_config"))
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
        return cls.from_dict(_read_json(path))


@dataclass(frozen=True)
class GenerationConfig:
    """How a checkpoint wants its tokens sampled; a missing value is Google's.

    Attributes:
        do_sample: False: always the most probable token.
        eos_token_ids: Ids that end an answer.
        suppress_tokens: Ids that are never generated, not even greedily.
    """

    temperature: float
    top_k: int
    top_p: float
    do_sample: bool
    eos_token_ids: tuple[int, ...]
    suppress_tokens: tuple[int, ...]

    @classmethod
    def from_folder(cls, folder: str | Path, config: Config) -> Self:
        """Read `folder`/generation_config.json, which need not exist.

        Raises:
            ConfigError: The file is no JSON, or has an impossible value.
        """
        path = Path(folder) / "generation_config.json"
        return cls.from_dict(_read_json(path) if path.is_file() else {}, config)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], config: Config) -> Self:
        """Read a parsed generation_config.json; an empty one gives Google's values.

        Raises:
            ConfigError: A value is impossible.
        """
        section = _Section(values, "", "generation_config.json")
        # Both end markers can win the argmax in plain text; Google suppresses them.
        suppressed = section.token_ids("suppress_tokens")
        if section.get("suppress_tokens") is None:
            suppressed = (config.eoa_token_index, config.eoi_token_id)
        return cls(
            temperature=section.number("temperature", 1.0, minimum=0.0),
            top_k=section.integer("top_k", 64, minimum=0),
            top_p=section.number("top_p", 0.95, minimum=0.0, maximum=1.0),
            do_sample=section.flag("do_sample", True),
            eos_token_ids=section.token_ids("eos_token_id") or config.eos_token_ids,
            suppress_tokens=suppressed,
        )


class _Section:
    """One JSON object, whose values are checked as they are taken out."""

    def __init__(self, values: Mapping[str, Any], path: str, file: str = "config.json") -> None:
        self.values = values
        self.path = path
        self.file = file

    def name(self, key: str) -> str:
        """Return a key as messages call it."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, value: object, allowed: str) -> ConfigError:
        """Return the error for a value that is not allowed."""
        shown = json.dumps(value, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ConfigError(f"{self.file}: {self.name(key)} is {shown}; {allowed}")

    def get(self, key: str) -> Any:
        """Return a value, or None where it is missing or null."""
        return self.values.get(key)

    def section(self, key: str) -> "_Section | None":
        """Return the object at a key, or None where it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, value, "it must be an object or null")
        return _Section(value, self.name(key), self.file)

    def integer(
        self,
        key: str,
        default: int | None = None,
        *,
        minimum: int = 1,
        maximum: int = _MAX_INTEGER,
    ) -> int:
        """Return a whole number within bounds; without a default the key must be there."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.missing(key)
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(key, value, f"it must be a whole number from {minimum} to {maximum}")
        return value

    def number(
        self, key: str, default: float, *, minimum: float = 0.0, maximum: float = math.inf
    ) -> float:
        """Return a finite number within bounds."""
        value = self.get(key)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A whole number beyond float's range would overflow.
        if not is_number or not minimum <= value <= min(maximum, 1e30) or math.isnan(value):
            limit = "" if math.isinf(maximum) else f" and at most {maximum}"
            raise self.error(key, value, f"it must be a number, at least {minimum}{limit}")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """Return a finite number above zero."""
        value = self.number(key, default)
        if not value:
            raise self.error(key, value, "it must be above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, value, "it must be true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return one id or a list of ids as a tuple; empty where the key is missing."""
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise self.error(key, value, "it must be a token id, 0 or more, or a list of them")
        return tuple(ids)

    def require(self, key: str, only: _Choice, *, default: _Choice | None, why: str = "") -> None:
        """Refuse every value but one."""
        value = self.get(key)
        value = default if value is None else value
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            raise self.error(key, value, f"only {json.dumps(only)} is supported{why}")

    def missing(self, key: str) -> ConfigError:
        """Return the error for a key that must be there."""
        return ConfigError(
            f"{self.file}: {self.name(key)} is missing; it has no default; "
            "take the config.json that belongs to the weights"
        )


def _read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a small JSON file."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path} has {path.stat().st_size:,} bytes; at most {_MAX_CONFIG_BYTES:,} are "
                "read; download it again"
            )
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no JSON object; download it again")
    return values


def _check_model_type(top: _Section) -> None:
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


def _read_text(section: _Section) -> TextConfig:
    """Return the decoder's configuration."""
    section.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    section.require("attention_k_eq_v", True, default=False)
    section.require("tie_word_embeddings", True, default=True)
    for key in ("attention_bias", "enable_moe_block", "use_double_wide_mlp"):
        section.require(key, False, default=False)
    for key in ("num_kv_shared_layers", "hidden_size_per_layer_input", "num_experts"):
        if section.get(key) not in (None, 0):
            raise section.error(
                key, section.get(key), "only 0 is supported; that is not a 12B; use mlx-vlm"
            )
    if "use_bidirectional_attention" in section.values:
        bidirectional = section.get("use_bidirectional_attention")
        if bidirectional != "vision":  # null is that of smaller Gemma 4 models
            raise section.error(
                "use_bidirectional_attention", bidirectional, 'only "vision" is supported'
            )
    layer_types = _read_layer_types(section)
    (head_dim, num_key_value_heads), (global_head_dim, num_global_heads) = _read_heads(
        section, layer_types
    )
    softcap = section.get("final_logit_softcapping")
    eos = section.token_ids("eos_token_id")
    return TextConfig(
        vocab_size=section.integer("vocab_size"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_hidden_layers=len(layer_types),
        num_attention_heads=section.integer("num_attention_heads"),
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        global_head_dim=global_head_dim,
        num_global_key_value_heads=num_global_heads,
        attention_k_eq_v=True,
        layer_types=layer_types,
        sliding_window=section.integer("sliding_window", 1024),
        max_position_embeddings=section.integer("max_position_embeddings", 262_144),
        rms_norm_eps=section.positive("rms_norm_eps", 1e-6),
        final_logit_softcapping=(
            None if softcap is None else section.positive("final_logit_softcapping", 30.0)
        ),
        rope_parameters=_read_rope(section, layer_types, head_dim, global_head_dim),
        bos_token_id=section.integer("bos_token_id", 2, minimum=0),
        eos_token_id=eos[0] if eos else 1,
        pad_token_id=section.integer("pad_token_id", 0, minimum=0),
    )


def _read_layer_types(section: _Section) -> tuple[str, ...]:
    """Return the type of every layer."""
    num_layers = section.integer("num_hidden_layers", maximum=_MAX_LAYERS)
    layer_types = section.get("layer_types")
    if layer_types is None:
        layer_types = [
            SLIDING_ATTENTION if (index + 1) % _SLIDING_PATTERN else FULL_ATTENTION
            for index in range(num_layers)
        ]
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise section.error(
            "layer_types",
            layer_types,
            f"it must list one type for each of the {num_layers} layers of num_hidden_layers",
        )
    for layer_type in layer_types:
        if layer_type not in (SLIDING_ATTENTION, FULL_ATTENTION):
            raise section.error(
                "layer_types",
                layer_type,
                f'only "{SLIDING_ATTENTION}" and "{FULL_ATTENTION}" are supported',
            )
    if layer_types[-1] != FULL_ATTENTION:
        raise section.error(
            "layer_types", layer_types[-1], f'the last layer must be "{FULL_ATTENTION}"'
        )
    return tuple(layer_types)


def _read_heads(
    section: _Section, layer_types: Sequence[str]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (head_dim, key/value heads) of sliding layers and of global ones."""
    num_heads = section.integer("num_attention_heads")
    sliding = (section.integer("head_dim", 256), section.integer("num_key_value_heads"))
    if section.get("per_layer_config") is None:
        heads = (
            sliding,
            (
                section.integer("global_head_dim", 512),
                section.integer("num_global_key_value_heads", sliding[1]),
            ),
        )
    else:
        heads = _read_per_layer(section, layer_types, sliding)
    for prefix, (head_dim, num_key_value_heads) in zip(("", "global_"), heads, strict=True):
        if head_dim % 2:
            raise section.error(
                f"{prefix}head_dim", head_dim, "it must be even, because positions rotate pairs"
            )
        if num_heads % num_key_value_heads:
            raise section.error(
                f"num_{prefix}key_value_heads",
                num_key_value_heads,
                f"it must divide num_attention_heads, {num_heads}",
            )
    return heads


def _read_per_layer(
    section: _Section, layer_types: Sequence[str], sliding: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the same from the form of transformers, which lists layers that differ as "05"."""
    per_layer = section.section("per_layer_config")
    assert per_layer is not None
    heads = dict.fromkeys(range(len(layer_types)), sliding)
    for key in per_layer.values:
        layer = per_layer.section(key)
        # Four digits hold any layer index; int() of a longer key could take forever.
        is_index = key.isascii() and key.isdecimal() and len(key) <= 4 and int(key) in heads
        if not is_index or layer is None:
            raise per_layer.error(
                key, per_layer.get(key), f"its key must be a layer index below {len(layer_types)}"
            )
        for unknown in sorted(set(layer.values) - {"head_dim", "num_key_value_heads"}):
            raise layer.error(
                unknown, layer.get(unknown), "only head_dim and num_key_value_heads are supported"
            )
        heads[int(key)] = (
            layer.integer("head_dim", sliding[0]),
            layer.integer("num_key_value_heads", sliding[1]),
        )
    by_type: dict[str, tuple[int, int]] = {SLIDING_ATTENTION: sliding}
    for layer_type in sorted(set(layer_types)):
        found = {heads[i] for i, of_layer in enumerate(layer_types) if of_layer == layer_type}
        if len(found) > 1:
            raise section.error(
                "per_layer_config",
                sorted(found),
                f"all layers of type {layer_type} must have one head_dim and one "
                "num_key_value_heads",
            )
        by_type[layer_type] = found.pop()
    return by_type[SLIDING_ATTENTION], by_type[FULL_ATTENTION]


def _read_rope(
    section: _Section, layer_types: Sequence[str], head_dim: int, global_head_dim: int
) -> dict[str, RopeParameters]:
    """Return the rotary parameters of every layer type in use."""
    parameters = section.section("rope_parameters")
    defaults: dict[str, dict[str, Any]] = {
        SLIDING_ATTENTION: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL_ATTENTION: {
            "rope_type": "proportional",
            "rope_theta": 1_000_000.0,
            "partial_rotary_factor": 0.25,
        },
    }
    rope: dict[str, RopeParameters] = {}
    for layer_type in sorted(set(layer_types)):
        of_type = (
            _Section(defaults[layer_type], layer_type)
            if parameters is None
            else parameters.section(layer_type)
        )
        if of_type is None:
            assert parameters is not None
            raise parameters.missing(layer_type)
        rope_type = of_type.get("rope_type")
        if rope_type not in ("default", "proportional"):
            raise of_type.error(
                "rope_type", rope_type, 'only "default" and "proportional" are supported'
            )
        if of_type.get("factor") not in (None, 1, 1.0):
            raise of_type.error("factor", of_type.get("factor"), "only 1 is supported")
        share = 1.0
        if rope_type == "proportional":
            share = of_type.number("partial_rotary_factor", 1.0, maximum=1.0)
        size = head_dim if layer_type == SLIDING_ATTENTION else global_head_dim
        if share * size < 2:
            raise of_type.error(
                "partial_rotary_factor",
                share,
                f"at least one pair of {size} dimensions must rotate",
            )
        rope[layer_type] = RopeParameters(
            rope_theta=of_type.positive("rope_theta", 10_000.0),
            rope_type=rope_type,
            partial_rotary_factor=share,
        )
    return rope


def _read_vision(section: _Section | None) -> VisionConfig | None:
    """Return the front end for pictures, or None where the checkpoint has none."""
    if section is None:
        return None
    sizes = {
        "patch_size": (PATCH_SIZE, PATCH_SIZE),
        "pooling_kernel_size": (POOLING_KERNEL_SIZE, POOLING_KERNEL_SIZE),
        "model_patch_size": (PATCH_SIZE * POOLING_KERNEL_SIZE,) * 2,
    }
    for key, (default, only) in sizes.items():
        if (value := section.integer(key, default)) != only:
            raise section.error(key, value, f"only {only} is supported")
    mm_embed_dim = section.integer("mm_embed_dim", 3840)
    output_proj_dims = section.integer("output_proj_dims", mm_embed_dim)
    if output_proj_dims != mm_embed_dim:
        raise section.error(
            "output_proj_dims", output_proj_dims, f"it must equal mm_embed_dim, {mm_embed_dim}"
        )
    return VisionConfig(
        patch_size=PATCH_SIZE,
        pooling_kernel_size=POOLING_KERNEL_SIZE,
        model_patch_size=PATCH_SIZE * POOLING_KERNEL_SIZE,
        mm_embed_dim=mm_embed_dim,
        mm_posemb_size=section.integer("mm_posemb_size", 1120),
        num_soft_tokens=section.integer("num_soft_tokens", 280),
        output_proj_dims=output_proj_dims,
        rms_norm_eps=section.positive("rms_norm_eps", 1e-6),
    )


def _read_audio(section: _Section | None) -> AudioConfig | None:
    """Return the front end for sound, or None where the checkpoint has none.

    Newer files write audio_embed_dim alone; the other keys are the same number.
    """
    if section is None:
        return None
    keys = ("audio_embed_dim", "audio_samples_per_token", "output_proj_dims", "hidden_size")
    for key in keys:
        if (value := section.integer(key, FRAME_SIZE)) != FRAME_SIZE:
            raise section.error(key, value, f"only {FRAME_SIZE} is supported")
    return AudioConfig(
        audio_embed_dim=FRAME_SIZE,
        audio_samples_per_token=FRAME_SIZE,
        output_proj_dims=FRAME_SIZE,
        rms_norm_eps=section.positive("rms_norm_eps", 1e-6),
    )


def _read_quantization(top: _Section) -> QuantizationConfig | None:
    """Return the settings that MLX converters write, under either of two keys."""
    section = top.section("quantization") or top.section("quantization_config")
    if section is None:
        return None
    if (method := section.get("quant_method")) is not None:
        raise section.error(
            "quant_method",
            method,
            "this kind of quantization is not supported yet; use a bfloat16 checkpoint such as "
            "google/gemma-4-12B-it-qat-q4_0-unquantized with --quantize 4, or an mlx-community "
            "conversion",
        )
    default = _read_settings(section)
    overrides: dict[str, QuantizationSettings | None] = {}
    for key, value in section.values.items():
        if isinstance(value, Mapping):
            overrides[key] = _read_settings(_Section(value, section.name(key)))
        elif value is False:
            overrides[key] = None
    return QuantizationConfig(default.group_size, default.bits, default.mode, overrides)


def _read_settings(section: _Section) -> QuantizationSettings:
    """Return quantization settings; like MLX, what is missing follows from the mode alone."""
    mode = section.get("mode")
    mode = "affine" if mode is None else mode
    if not isinstance(mode, str) or mode not in QUANTIZATION_MODES:
        raise section.error("mode", mode, f"supported are {', '.join(QUANTIZATION_MODES)}")
    bits_allowed, group_sizes_allowed = QUANTIZATION_MODES[mode]
    bits = section.integer("bits", bits_allowed[0])
    group_size = section.integer("group_size", group_sizes_allowed[0])
    for key, value, allowed in (
        ("bits", bits, bits_allowed),
        ("group_size", group_size, group_sizes_allowed),
    ):
        if value not in allowed:
            shown = ", ".join(map(str, sorted(allowed)))
            raise section.error(key, value, f"mode {mode} allows {shown}")
    return QuantizationSettings(group_size, bits, mode)


def _read_dtype(top: _Section, text: _Section) -> str:
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
