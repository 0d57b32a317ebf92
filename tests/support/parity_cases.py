"""The prompts and random networks on which this project and transformers must agree.

Everything is drawn by NumPy from seeds, so that a stored golden and a live reference see the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan

VOCAB_SIZE = 320
IMAGE_ID, AUDIO_ID, VIDEO_ID = 300, 301, 302
PATCH_DIM, FRAME_DIM = 6912, 640


def config_of(variant: str) -> dict[str, Any]:
    """Return the config.json of a reduced network, in Google's form."""
    sizes = {
        # hidden, intermediate, layers, heads, kv heads, head_dim, global_head_dim, window
        "narrow": (96, 192, 6, 4, 2, 32, 64, 32),
        "deep": (128, 256, 12, 6, 3, 64, 128, 48),
        "real_heads": (128, 256, 6, 4, 2, 256, 512, 64),
    }
    hidden, intermediate, layers, heads, kv_heads, head_dim, global_dim, window = sizes[variant]
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "dtype": "float32",
        "image_token_id": IMAGE_ID,
        "audio_token_id": AUDIO_ID,
        "video_token_id": VIDEO_ID,
        "boi_token_id": 303,
        "eoi_token_id": 304,
        "boa_token_id": 305,
        "eoa_token_index": 306,
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma4_unified_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_k_eq_v": True,
            "bos_token_id": 2,
            "enable_moe_block": False,
            "eos_token_id": 1,
            "final_logit_softcapping": 30.0,
            "global_head_dim": global_dim,
            "head_dim": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": hidden,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": intermediate,
            "layer_types": [
                "full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)
            ],
            "max_position_embeddings": 4096,
            "num_attention_heads": heads,
            "num_global_key_value_heads": 1,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "num_kv_shared_layers": 0,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                    "rope_type": "proportional",
                },
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "sliding_window": window,
            "tie_word_embeddings": True,
            "use_bidirectional_attention": "vision",
            "vocab_size": VOCAB_SIZE,
            "vocab_size_per_layer_input": VOCAB_SIZE,
        },
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "model_patch_size": 48,
            "mm_embed_dim": hidden,
            "mm_posemb_size": 64,
            "num_soft_tokens": 280,
            "output_proj_dims": hidden,
            "rms_norm_eps": 1e-6,
        },
        "audio_config": {
            "model_type": "gemma4_unified_audio",
            "audio_embed_dim": FRAME_DIM,
            "audio_samples_per_token": FRAME_DIM,
            "hidden_size": FRAME_DIM,
            "output_proj_dims": FRAME_DIM,
            "rms_norm_eps": 1e-6,
        },
    }


@dataclass(frozen=True)
class Case:
    """A prompt on one network.

    Attributes:
        name: Of the test and of the golden.
        variant: Of `config_of`.
        seed: Of parameters and prompt.
        prompt: Runs of the prompt: an int is so many tokens of text, "image 5x4" a picture of
            5 columns and 4 rows, "video 3 4x4" three frames, "audio 50" fifty frames of sound.
        decoded: Last positions that the cached path reads one at a time.
    """

    name: str
    variant: str
    seed: int
    prompt: tuple[int | str, ...]
    decoded: int = 0


CASES = (
    Case("text", "narrow", 1, (20,)),
    Case("text_past_window", "narrow", 2, (150,)),
    Case("text_past_window_deep", "deep", 3, (400,)),
    Case("text_decode", "narrow", 4, (140,), decoded=64),
    Case("text_decode_real_heads", "real_heads", 5, (200,), decoded=64),
    Case("image", "narrow", 6, (6, "image 5x4", 12)),
    Case("image_late", "deep", 7, (130, "image 8x6", 30)),
    Case("image_decode", "narrow", 8, (6, "image 8x6", 80), decoded=64),
    Case("two_images", "real_heads", 9, (5, "image 7x5", 40, "image 3x9", 20)),
    Case("image_longer_than_window", "real_heads", 10, (8, "image 40x28", 30)),
    Case("audio", "narrow", 11, (10, "audio 90", 15)),
    Case("audio_real_heads", "real_heads", 12, (10, "audio 25", 5, "audio 130", 9)),
    Case("video", "narrow", 13, (4, "video 3 6x4", 20)),
    Case("everything", "deep", 14, (9, "image 9x7", 7, "audio 40", 3, "video 2 7x5", 25)),
    Case("second_turn_after_image", "real_heads", 15, (5, "image 9x7", 120, "image 6x6", 40)),
)
CASES_BY_NAME = {case.name: case for case in CASES}


def inputs_of(case: Case) -> ModelInputs:
    """Return the prompt of a case."""
    rng = np.random.default_rng(case.seed)
    ids: list[int] = [2]
    spans: list[SoftTokenSpan] = []
    patches: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    frames: list[np.ndarray] = []

    def picture(grid: str, modality: Modality, token: int) -> None:
        columns, rows = map(int, grid.split("x"))
        ids.append(303)
        spans.append(SoftTokenSpan(len(ids), columns * rows, modality))
        ids.extend([token] * (columns * rows) + [304])
        # Smooth pictures with their own brightness, as photographs are.
        base = rng.random((columns * rows, 1)) * 0.6
        patches.append(base + 0.4 * rng.random((columns * rows, PATCH_DIM)))
        y, x = np.divmod(np.arange(columns * rows), columns)
        positions.append(np.stack([x, y], axis=1))

    for part in case.prompt:
        match part if isinstance(part, int) else part.split():
            case int(count):
                ids.extend(rng.integers(3, 290, count).tolist())
            case ["image", grid]:
                picture(grid, Modality.IMAGE, IMAGE_ID)
            case ["video", count, grid]:
                for _ in range(int(count)):
                    ids.extend(rng.integers(3, 290, 3).tolist())
                    picture(grid, Modality.VIDEO, VIDEO_ID)
            case ["audio", count]:
                ids.append(305)
                spans.append(SoftTokenSpan(len(ids), int(count), Modality.AUDIO))
                ids.extend([AUDIO_ID] * int(count) + [306])
                frames.append(rng.normal(0, 0.2, (int(count), FRAME_DIM)))
            case unknown:
                raise ValueError(f"unknown part {unknown}")
    return ModelInputs(
        np.array(ids, np.int32),
        tuple(spans),
        np.concatenate(patches).astype(np.float32) if patches else None,
        np.concatenate(positions).astype(np.int32) if positions else None,
        np.concatenate(frames).astype(np.float32) if frames else None,
    )


def parameters_of(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Return random float32 parameters under Google's names on disk.

    Layer scalars are 0.6 to 1.1 as in the real checkpoint's range, norms vary, and the final norm
    is large enough for the softcap to matter.
    """
    rng = np.random.default_rng(1000 + seed)
    text, vision, audio = config["text_config"], config["vision_config"], config["audio_config"]
    hidden, intermediate = text["hidden_size"], text["intermediate_size"]
    heads = text["num_attention_heads"]
    parameters: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        parameters[name] = rng.normal(0, columns**-0.5, (rows, columns))

    def norm(name: str, dims: int, center: float = 1.0) -> None:
        parameters[name] = center * rng.uniform(0.5, 1.5, dims)

    language = "model.language_model"
    parameters[f"{language}.embed_tokens.weight"] = rng.normal(
        0, hidden**-0.5, (text["vocab_size"], hidden)
    )
    norm(f"{language}.norm.weight", hidden, 8.0)
    for index, layer_type in enumerate(text["layer_types"]):
        layer = f"{language}.layers.{index}"
        is_sliding = layer_type == "sliding_attention"
        head_dim = text["head_dim"] if is_sliding else text["global_head_dim"]
        kv_heads = text["num_key_value_heads"] if is_sliding else text["num_global_key_value_heads"]
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            norm(f"{layer}.{name}.weight", hidden)
        parameters[f"{layer}.layer_scalar"] = rng.uniform(0.6, 1.1, 1)
        matrix(f"{layer}.self_attn.q_proj.weight", heads * head_dim, hidden)
        matrix(f"{layer}.self_attn.k_proj.weight", kv_heads * head_dim, hidden)
        if is_sliding:
            matrix(f"{layer}.self_attn.v_proj.weight", kv_heads * head_dim, hidden)
        matrix(f"{layer}.self_attn.o_proj.weight", hidden, heads * head_dim)
        # Attention is not scaled: this keeps the scores of a random network at a few units.
        norm(f"{layer}.self_attn.q_norm.weight", head_dim, 2 * head_dim**-0.5)
        norm(f"{layer}.self_attn.k_norm.weight", head_dim)
        matrix(f"{layer}.mlp.gate_proj.weight", intermediate, hidden)
        matrix(f"{layer}.mlp.up_proj.weight", intermediate, hidden)
        matrix(f"{layer}.mlp.down_proj.weight", hidden, intermediate)
    if vision is not None:
        embedder, dims = "model.vision_embedder", vision["mm_embed_dim"]
        for name, size in (("patch_ln1", PATCH_DIM), ("patch_ln2", dims), ("pos_norm", dims)):
            norm(f"{embedder}.{name}.weight", size)
            parameters[f"{embedder}.{name}.bias"] = rng.normal(0, 0.1, size)
        matrix(f"{embedder}.patch_dense.weight", dims, PATCH_DIM)
        parameters[f"{embedder}.patch_dense.bias"] = rng.normal(0, 0.1, dims)
        parameters[f"{embedder}.pos_embedding"] = rng.normal(
            0, 0.3, (vision["mm_posemb_size"], 2, dims)
        )
        matrix("model.embed_vision.embedding_projection.weight", hidden, dims)
    if audio is not None:
        matrix("model.embed_audio.embedding_projection.weight", hidden, FRAME_DIM)
    return {name: array.astype(np.float32) for name, array in parameters.items()}
