"""A small random drafter under the names and config keys of Google's assistant checkpoint."""

import json
from pathlib import Path
from typing import Any

from random_checkpoint import Tensor, write_safetensors
from tiny_tokenizer import write_tiny_checkpoint

HIDDEN, INTERMEDIATE, BACKBONE, VOCAB = 64, 128, 96, 512
NUM_HEADS, HEAD_DIM, GLOBAL_HEAD_DIM = 2, 32, 64
LAYER_TYPES = ["sliding_attention"] * 3 + ["full_attention"]


def build_config() -> dict[str, Any]:
    """Return config.json."""
    return {
        "architectures": ["Gemma4UnifiedAssistantForCausalLM"],
        "backbone_hidden_size": BACKBONE,
        "dtype": "bfloat16",
        "model_type": "gemma4_unified_assistant",
        "num_centroids": 2048,
        "text_config": {
            "final_logit_softcapping": None,
            "global_head_dim": GLOBAL_HEAD_DIM,
            "head_dim": HEAD_DIM,
            "hidden_size": HIDDEN,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": INTERMEDIATE,
            "layer_types": LAYER_TYPES,
            "model_type": "gemma4_unified_text",
            "num_attention_heads": NUM_HEADS,
            "num_global_key_value_heads": 1,
            "num_hidden_layers": len(LAYER_TYPES),
            "num_key_value_heads": 1,
            "num_kv_shared_layers": len(LAYER_TYPES),
            "vocab_size": VOCAB,
            "vocab_size_per_layer_input": 0,
        },
        "tie_word_embeddings": True,
        "use_ordered_embeddings": False,
    }


def list_tensors() -> list[Tensor]:
    """Return every tensor under Google's name."""
    tensors = [matrix("model.embed_tokens", VOCAB, HIDDEN)]
    for index, layer_type in enumerate(LAYER_TYPES):
        layer = f"model.layers.{index}"
        head_dim = HEAD_DIM if layer_type == "sliding_attention" else GLOBAL_HEAD_DIM
        tensors += [
            norm(f"{layer}.input_layernorm", HIDDEN),
            Tensor(f"{layer}.layer_scalar", (1,)),
            matrix(f"{layer}.mlp.down_proj", HIDDEN, INTERMEDIATE),
            matrix(f"{layer}.mlp.gate_proj", INTERMEDIATE, HIDDEN),
            matrix(f"{layer}.mlp.up_proj", INTERMEDIATE, HIDDEN),
            norm(f"{layer}.post_attention_layernorm", HIDDEN),
            norm(f"{layer}.post_feedforward_layernorm", HIDDEN),
            norm(f"{layer}.pre_feedforward_layernorm", HIDDEN),
            matrix(f"{layer}.self_attn.o_proj", HIDDEN, NUM_HEADS * head_dim),
            norm(f"{layer}.self_attn.q_norm", head_dim),
            matrix(f"{layer}.self_attn.q_proj", NUM_HEADS * head_dim, HIDDEN),
        ]
    tensors.append(norm("model.norm", HIDDEN))
    tensors.append(matrix("post_projection", BACKBONE, HIDDEN))
    tensors.append(matrix("pre_projection", HIDDEN, 2 * BACKBONE))
    return tensors


def matrix(path: str, rows: int, columns: int) -> Tensor:
    return Tensor(f"{path}.weight", (rows, columns), scale=columns**-0.5)


def norm(path: str, dims: int) -> Tensor:
    return Tensor(f"{path}.weight", (dims,), center=1.0)


def write_drafter(folder: Path) -> Path:
    """Write the drafter in bfloat16, with a tokenizer, and return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(build_config(), indent=2), encoding="utf-8")
    tensors = {tensor.name: tensor for tensor in list_tensors()}
    write_safetensors(folder / "model.safetensors", tensors, 0, "bfloat16")
    return write_tiny_checkpoint(folder)
