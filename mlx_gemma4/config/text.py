"""TextConfig: the decoder, in Google's form and in that of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_gemma4.config.section import Section

SLIDING_ATTENTION = "sliding_attention"
FULL_ATTENTION = "full_attention"
_MAX_LAYERS = 1024
_SLIDING_PATTERN = 6  # transformers: every sixth layer is global where layer_types is missing


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


def read_text(section: Section) -> TextConfig:
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


def _read_layer_types(section: Section) -> tuple[str, ...]:
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
    section: Section, layer_types: Sequence[str]
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
    section: Section, layer_types: Sequence[str], sliding: tuple[int, int]
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
    section: Section, layer_types: Sequence[str], head_dim: int, global_head_dim: int
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
            Section(defaults[layer_type], layer_type)
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
