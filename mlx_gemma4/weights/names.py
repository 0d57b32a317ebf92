"""Names and shapes of parameters: what a config asks for, and what files call it."""

import re
from collections.abc import Iterator

from mlx_gemma4.config import Config

# Names that transformers 5 writes for what Google's files call vision_embedder.*.
_MOVED_TO_VISION_EMBEDDER = re.compile(
    r"embed_vision\.(?=(?:patch_ln1|patch_dense|patch_ln2|pos_norm|pos_embedding)(?:\.|$))"
)


def expected_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by canonical name, for a checkpoint without quantization.

    Source: transformers modeling_gemma4_unified.py; linears are [out, in].
    """
    shapes = dict(_expected_decoder(config))
    hidden_size = config.text_config.hidden_size
    if (vision := config.vision_config) is not None:
        for norm, dims in (
            ("patch_ln1", vision.patch_dim),
            ("patch_ln2", vision.mm_embed_dim),
            ("pos_norm", vision.mm_embed_dim),
        ):
            shapes[f"vision_embedder.{norm}.weight"] = (dims,)
            shapes[f"vision_embedder.{norm}.bias"] = (dims,)
        shapes["vision_embedder.patch_dense.weight"] = (vision.mm_embed_dim, vision.patch_dim)
        shapes["vision_embedder.patch_dense.bias"] = (vision.mm_embed_dim,)
        shapes["vision_embedder.pos_embedding"] = (vision.mm_posemb_size, 2, vision.mm_embed_dim)
        shapes["embed_vision.embedding_projection.weight"] = (hidden_size, vision.output_proj_dims)
    if (audio := config.audio_config) is not None:
        shapes["embed_audio.embedding_projection.weight"] = (hidden_size, audio.output_proj_dims)
    return shapes


def _expected_decoder(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the decoder's parameters."""
    text = config.text_config
    hidden_size = text.hidden_size
    yield "language_model.embed_tokens.weight", (text.vocab_size, hidden_size)
    for index in range(text.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        head_dim = text.head_dim_of(index)
        query_dims = text.num_attention_heads * head_dim
        key_value_dims = text.num_key_value_heads_of(index) * head_dim
        yield f"{layer}.layer_scalar", (1,)
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            yield f"{layer}.{norm}.weight", (hidden_size,)
        yield f"{layer}.self_attn.q_proj.weight", (query_dims, hidden_size)
        yield f"{layer}.self_attn.k_proj.weight", (key_value_dims, hidden_size)
        if text.is_sliding(index):  # global layers take their values from k_proj
            yield f"{layer}.self_attn.v_proj.weight", (key_value_dims, hidden_size)
        yield f"{layer}.self_attn.o_proj.weight", (hidden_size, query_dims)
        yield f"{layer}.self_attn.q_norm.weight", (head_dim,)
        yield f"{layer}.self_attn.k_norm.weight", (head_dim,)
        yield f"{layer}.mlp.gate_proj.weight", (text.intermediate_size, hidden_size)
        yield f"{layer}.mlp.up_proj.weight", (text.intermediate_size, hidden_size)
        yield f"{layer}.mlp.down_proj.weight", (hidden_size, text.intermediate_size)
    yield "language_model.norm.weight", (hidden_size,)


def canonical_name(name: str) -> str:
    """Return the path in the model of a tensor, or of a module, as any of the layouts calls it.

    Google's and ours are "model.language_model.layers...", those of mlx-lm and mlx-vlm
    "language_model.model.layers...", and transformers 5 has moved "vision_embedder.*".

    Source: transformers conversion_mapping.py, "gemma4_unified".
    """
    name = name.removeprefix("model.")
    if name.startswith("language_model.model."):
        name = "language_model." + name.removeprefix("language_model.model.")
    if name.startswith("language_model.lm_head."):
        name = name.removeprefix("language_model.")
    name = name.replace("embed_vision.multimodal_embedder.", "embed_vision.")
    return _MOVED_TO_VISION_EMBEDDER.sub("vision_embedder.", name)
