"""Config: both written forms read the same, and what cannot be honoured is refused by its key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from random_checkpoint import SIZES, build_config

from mlx_gemma4.config import (
    FULL_ATTENTION,
    Config,
    GenerationConfig,
    QuantizationSettings,
    RopeParameters,
)
from mlx_gemma4.errors import ConfigError

TOKEN_IDS = {
    "image_token_id": 4091,
    "audio_token_id": 4092,
    "video_token_id": 4093,
    "boi_token_id": 4089,
    "eoi_token_id": 4094,
    "boa_token_id": 4090,
    "eoa_token_index": 4095,
    "eos_token_id": [1, 106],
}
MISSING = object()


@pytest.fixture
def values() -> dict[str, Any]:
    """Return a parsed config.json in Google's form, free to be changed."""
    return build_config(SIZES["tiny"], "bfloat16", copy.deepcopy(TOKEN_IDS))


def as_transformers_writes(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same config in the form of transformers' save_pretrained."""
    values = copy.deepcopy(values)
    text = values["text_config"]
    sizes = {
        "head_dim": text.pop("global_head_dim"),
        "num_key_value_heads": text.pop("num_global_key_value_heads"),
    }
    text["per_layer_config"] = {
        f"{index:02}": sizes
        for index, layer_type in enumerate(text["layer_types"])
        if layer_type == FULL_ATTENTION
    }
    del text["hidden_size_per_layer_input"], values["vision_config"]["model_patch_size"]
    for key in ("audio_samples_per_token", "hidden_size", "output_proj_dims"):
        del values["audio_config"][key]
    return values


def change(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Set or remove the value at a path such as "text_config.head_dim"."""
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    if value is MISSING:
        del section[key]
    else:
        section[key] = value
    return values


@pytest.mark.google_files
def test_reads_googles_config(google_checkpoint: Path) -> None:
    config = Config.from_folder(google_checkpoint)
    text = config.text_config
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (48, 3840, 262_144)
    global_layers = [i for i in range(48) if not text.is_sliding(i)]
    assert global_layers == [5, 11, 17, 23, 29, 35, 41, 47]
    assert (text.head_dim_of(0), text.num_key_value_heads_of(0)) == (256, 8)
    assert (text.head_dim_of(5), text.num_key_value_heads_of(5)) == (512, 1)
    assert text.rope_parameters == {
        "sliding_attention": RopeParameters(10_000.0, "default"),
        "full_attention": RopeParameters(1_000_000.0, "proportional", 0.25),
    }
    assert config.vision_config is not None
    assert config.vision_config.patch_dim == 6912
    assert config.eos_token_ids == (1, 106)
    assert (config.image_token_id, config.eoa_token_index) == (258_880, 258_883)
    assert GenerationConfig.from_folder(google_checkpoint, config) == GenerationConfig(
        1.0, 64, 0.95, True, (1, 106, 50), (258_883, 258_882)
    )


@pytest.mark.google_files
def test_reads_the_form_that_transformers_writes_of_googles(google_checkpoint: Path) -> None:
    values = json.loads((google_checkpoint / "config.json").read_text())
    assert Config.from_dict(as_transformers_writes(values)) == Config.from_dict(values)


@pytest.mark.google_files
def test_reads_other_releases(google_checkpoint: Path) -> None:
    june = json.loads((google_checkpoint / "config.release-2026-06.json").read_text())
    assert Config.from_dict(june).text_config.max_position_embeddings == 131_072
    base = Config.from_folder(google_checkpoint.parent / "base")
    assert base.eos_token_ids == (1,)


@pytest.mark.google_files
def test_a_drafter_is_told_apart(google_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="a drafter; pass the model that it drafts for"):
        Config.from_folder(google_checkpoint.parent / "assistant")


@pytest.mark.parity
def test_transformers_writes_what_is_read(values: dict[str, Any], tmp_path: Path) -> None:
    from transformers import Gemma4UnifiedConfig

    Gemma4UnifiedConfig(**copy.deepcopy(values)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "per_layer_config" in written["text_config"]
    assert Config.from_folder(tmp_path) == Config.from_dict(values)


def test_both_forms_are_one(values: dict[str, Any]) -> None:
    assert Config.from_dict(as_transformers_writes(values)) == Config.from_dict(values)


def test_per_layer_config_counts_where_global_sizes_are_given_too(values: dict[str, Any]) -> None:
    written = as_transformers_writes(values)
    written["text_config"]["global_head_dim"] = 4096
    assert Config.from_dict(written) == Config.from_dict(values)


def test_front_ends_may_be_absent(values: dict[str, Any]) -> None:
    config = Config.from_dict(values | {"vision_config": None, "audio_config": None})
    assert config.vision_config is None
    assert config.audio_config is None
    del values["audio_config"]
    assert Config.from_dict(values).audio_config is None


def test_missing_keys_have_the_defaults_of_transformers(values: dict[str, Any]) -> None:
    wanted = Config.from_dict(values)
    for key in ("layer_types", "max_position_embeddings", "rope_parameters", "rms_norm_eps"):
        del values["text_config"][key]
    assert Config.from_dict(values) == wanted


def test_eos_falls_back_to_the_decoders(values: dict[str, Any]) -> None:
    del values["eos_token_id"]
    assert Config.from_dict(values).eos_token_ids == (1,)


REFUSED = [
    ("model_type", "gemma4", "mlx-vlm for them"),
    ("model_type", "gemma4_text", "mlx-vlm for them"),
    ("model_type", "gemma4_unified_text", "the decoder alone"),
    ("model_type", "gemma4_unified_assistant", "a drafter"),
    ("model_type", "llama", "other models"),
    ("model_type", MISSING, "missing"),
    ("text_config", MISSING, "text_config is missing"),
    ("text_config", [], "an object or null"),
    ("vision_config", "yes", "an object or null"),
    ("tie_word_embeddings", False, "only true"),
    ("image_token_id", 4096, "below text_config.vocab_size"),
    ("audio_token_id", -1, "whole number from 0"),
    ("eos_token_id", ["</s>"], "token id"),
    ("dtype", "float8", "supported are bfloat16"),
    ("text_config.hidden_activation", "silu", "gelu_pytorch_tanh"),
    ("text_config.attention_k_eq_v", False, "only true"),
    ("text_config.attention_bias", True, "only false"),
    ("text_config.enable_moe_block", True, "only false"),
    ("text_config.use_double_wide_mlp", True, "only false"),
    ("text_config.num_kv_shared_layers", 2, "only 0"),
    ("text_config.hidden_size_per_layer_input", 256, "only 0"),
    ("text_config.num_experts", 128, "only 0"),
    ("text_config.use_bidirectional_attention", "all", "only"),
    ("text_config.use_bidirectional_attention", None, "only"),
    ("text_config.hidden_size", MISSING, "missing"),
    ("text_config.hidden_size", 0, "whole number from 1"),
    ("text_config.hidden_size", 256.0, "whole number"),
    ("text_config.hidden_size", True, "whole number"),
    ("text_config.vocab_size", 2**40, "to 2147483647"),
    ("text_config.num_hidden_layers", 10**9, "to 1024"),
    ("text_config.num_hidden_layers", 11, "each of the 11 layers"),
    ("text_config.layer_types", ["sliding_attention"], "each of the 12 layers"),
    ("text_config.layer_types", ["linear_attention"] * 12, "linear_attention"),
    ("text_config.layer_types", ["sliding_attention"] * 12, "the last layer"),
    ("text_config.head_dim", 63, "must be even"),
    ("text_config.global_head_dim", 127, "must be even"),
    ("text_config.num_key_value_heads", 3, "divide num_attention_heads, 4"),
    ("text_config.num_global_key_value_heads", 3, "divide num_attention_heads, 4"),
    ("text_config.rms_norm_eps", 0, "above 0"),
    ("text_config.rms_norm_eps", float("nan"), "must be a number"),
    ("text_config.final_logit_softcapping", float("inf"), "must be a number"),
    ("text_config.rope_parameters.full_attention", MISSING, "full_attention is missing"),
    ("text_config.rope_parameters.full_attention.rope_type", "yarn", "proportional"),
    ("text_config.rope_parameters.sliding_attention.factor", 8, "only 1"),
    ("text_config.rope_parameters.full_attention.partial_rotary_factor", 1.5, "at most 1.0"),
    ("text_config.rope_parameters.full_attention.partial_rotary_factor", 0.0, "must rotate"),
    ("text_config.per_layer_config", {"05": {"head_dim": 128}}, "all layers of type"),
    ("text_config.per_layer_config", {"12": {"head_dim": 128}}, "index below 12"),
    ("text_config.per_layer_config", {"five": {}}, "index below 12"),
    ("text_config.per_layer_config", {"5": {"sliding_window": 8}}, "only head_dim and"),
    ("vision_config.patch_size", 14, "only 16"),
    ("vision_config.model_patch_size", 32, "only 48"),
    ("vision_config.output_proj_dims", 512, "mm_embed_dim, 256"),
    ("audio_config.audio_embed_dim", 320, "only 640"),
    ("quantization", {"group_size": 64, "bits": 7}, "allows 2, 3, 4, 5, 6, 8"),
    ("quantization", {"group_size": 48, "bits": 4}, "allows 32, 64, 128"),
    ("quantization", {"bits": 4, "mode": "mxfp5"}, "supported are affine"),
    ("quantization", {"mode": "nvfp4", "group_size": 32, "bits": 4}, "allows 16"),
    ("quantization", {"bits": 4, "lm_head": {"bits": 9}}, "allows 2, 3, 4"),
    ("quantization_config", {"quant_method": "compressed-tensors"}, "not supported yet; use"),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}, "not supported yet; use"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_its_key(
    values: dict[str, Any], path: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Config.from_dict(change(values, path, value))
    assert path.rsplit(".")[-1] in str(caught.value)
    assert len(str(caught.value)) < 400


def test_reads_quantization_with_overrides(values: dict[str, Any]) -> None:
    values["quantization"] = {
        "group_size": 32,
        "bits": 4,
        "language_model.model.layers.0.mlp.down_proj": {"group_size": 64, "bits": 8},
        "language_model.model.layers.1.mlp.down_proj": {"mode": "mxfp8"},
        "embed_audio.embedding_projection": False,
    }
    quantization = Config.from_dict(values).quantization
    assert quantization is not None
    assert quantization.default == QuantizationSettings(32, 4, "affine")
    assert quantization.overrides == {
        "language_model.model.layers.0.mlp.down_proj": QuantizationSettings(64, 8),
        "language_model.model.layers.1.mlp.down_proj": QuantizationSettings(32, 8, "mxfp8"),
        "embed_audio.embedding_projection": None,
    }


def test_quantization_may_stand_under_the_other_key(values: dict[str, Any]) -> None:
    values["quantization_config"] = {"group_size": 64, "bits": 8, "mode": "affine"}
    quantization = Config.from_dict(values).quantization
    assert quantization is not None
    assert quantization.default == QuantizationSettings(64, 8)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"],
    ids=["empty", "open", "no UTF-8", "list", "string", "deep", "long number"],
)
def test_a_file_without_a_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json (is not JSON|holds no JSON object)"):
        Config.from_folder(tmp_path)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json; a checkpoint is a folder"):
        Config.from_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        Config.from_folder(tmp_path / "nowhere")


def test_generation_defaults_are_googles(values: dict[str, Any], tmp_path: Path) -> None:
    config = Config.from_dict(values)
    wanted = GenerationConfig(1.0, 64, 0.95, True, (1, 106), (4095, 4094))
    assert GenerationConfig.from_folder(tmp_path, config) == wanted
    (tmp_path / "generation_config.json").write_text('{"suppress_tokens": [], "top_k": 0}')
    changed = GenerationConfig.from_folder(tmp_path, config)
    assert (changed.suppress_tokens, changed.top_k, changed.top_p) == ((), 0, 0.95)


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1), ("top_p", 2), ("top_k", 1.5), ("do_sample", 1), ("eos_token_id", "x")],
)
def test_impossible_generation_defaults_are_refused(
    values: dict[str, Any], tmp_path: Path, key: str, value: object
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {key} is"):
        GenerationConfig.from_folder(tmp_path, Config.from_dict(values))
