"""Write a training state as a checkpoint in Google's form, and check it; read one back.

    python -m benchmarks.demo.export --state build/demo/state.pt --output mlx_gemma4/demo --check

The check loads the folder in transformers' class (no missing, no unexpected tensors) and compares
its logits with those of the training module, both in float32.
"""

import argparse
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.demo.model import DemoConfig, DemoModel
from benchmarks.demo.tasks import FRAME, PATCH, GroupShape, Maker, Sequence, stack
from benchmarks.demo.tokenizer import build_tokenizer

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
CARD = Path(__file__).with_name("card.md")
SOFT_TOKENS = 70
NUM_FRAMES = 8
TRANSFORMERS_VERSION = "5.10.0.dev0"  # the form of the files is that version's
LOGIT_TOLERANCE = 2e-3  # float32 against float32, logits up to 30

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def load_model(path: Path) -> tuple[DemoModel, dict[str, Any]]:
    """Return the module with the weights of a training state, and the state's progress."""
    state = torch.load(path, weights_only=True)
    known = {field.name for field in fields(DemoConfig)}
    model = DemoModel(DemoConfig(**{k: v for k, v in state["config"].items() if k in known}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start, stop = state["places"][name]
            parameter.copy_(state["weights"][start:stop].view_as(parameter))
    return model.eval(), state["progress"]


def google_parameters(model: DemoModel) -> dict[str, Tensor]:
    """Return the parameters themselves under Google's names; the auxiliary head stays behind."""
    M = model.config.mm_embed_dim
    tensors = {
        "model.language_model.embed_tokens.weight": model.embed_tokens,
        "model.language_model.norm.weight": model.norm,
        # Training keeps the first norm as it starts: each patch by its own mean and contrast.
        "model.vision_embedder.patch_ln1.weight": torch.ones(3 * PATCH**2),
        "model.vision_embedder.patch_ln1.bias": torch.zeros(3 * PATCH**2),
        "model.vision_embedder.pos_embedding": model.pos_embedding,
        "model.embed_vision.embedding_projection.weight": model.vision_projection.weight,
        "model.embed_audio.embedding_projection.weight": model.audio_projection.weight,
    }
    for name in ("patch_dense", "patch_ln2", "pos_norm"):
        for kind in ("weight", "bias"):
            tensors[f"model.vision_embedder.{name}.{kind}"] = getattr(getattr(model, name), kind)
    assert model.pos_embedding.shape == (model.config.mm_posemb_size, 2, M)
    for index, layer in enumerate(model.layers):
        prefix = f"model.language_model.layers.{index}"
        for norm in NORMS:
            tensors[f"{prefix}.{norm}.weight"] = getattr(layer, norm)
        tensors[f"{prefix}.layer_scalar"] = torch.ones(1)
        for name in ("q_norm", "k_norm"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = getattr(layer, name)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if hasattr(layer, name):
                tensors[f"{prefix}.self_attn.{name}.weight"] = getattr(layer, name).weight
        for name in ("gate_proj", "up_proj", "down_proj"):
            tensors[f"{prefix}.mlp.{name}.weight"] = getattr(layer, name).weight
    return dict(sorted(tensors.items()))


def google_tensors(model: DemoModel) -> dict[str, Tensor]:
    """Return the weights in bfloat16 under Google's names."""
    return {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in google_parameters(model).items()
    }


@torch.no_grad()
def read_checkpoint(model: DemoModel, folder: Path) -> None:
    """Give the model an exported checkpoint's weights; the auxiliary head starts anew."""
    tensors = load_file(folder / "model.safetensors")
    parameters = google_parameters(model)
    if tensors.keys() != parameters.keys():
        raise SystemExit(f"{folder} was exported from another architecture than {DemoConfig()}")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def config_json(config: DemoConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json with the keys that Google's has."""
    token = tokenizer.token_to_id
    layers = range(config.num_hidden_layers)
    bare = {
        "_name_or_path": "",
        "architectures": None,
        "chunk_size_feed_forward": 0,
        "dtype": None,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "initializer_range": 0.02,
        "is_encoder_decoder": False,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "output_attentions": False,
        "output_hidden_states": False,
        "problem_type": None,
        "return_dict": True,
        "rms_norm_eps": config.rms_norm_eps,
    }
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": True,
        "bos_token_id": token("<bos>"),
        "enable_moe_block": False,
        "eos_token_id": token("<eos>"),
        "final_logit_softcapping": config.final_logit_softcapping,
        "global_head_dim": config.global_head_dim,
        "head_dim": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": config.hidden_size,
        "hidden_size_per_layer_input": 0,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": [
            "full_attention" if config.is_global(k) else "sliding_attention" for k in layers
        ],
        "max_position_embeddings": 8192,
        "model_type": "gemma4_unified_text",
        "moe_intermediate_size": None,
        "num_attention_heads": config.num_attention_heads,
        "num_experts": None,
        "num_global_key_value_heads": config.num_global_key_value_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_kv_shared_layers": 0,
        "pad_token_id": token("<pad>"),
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": config.partial_rotary_factor,
                "rope_theta": config.rope_theta_full,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": config.rope_theta_sliding, "rope_type": "default"},
        },
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": "vision",
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size": config.vocab_size,
        "vocab_size_per_layer_input": config.vocab_size,
    }
    audio = {
        **bare,
        "audio_embed_dim": FRAME,
        "audio_samples_per_token": FRAME,
        "hidden_size": FRAME,
        "model_type": "gemma4_unified_audio",
        "output_proj_dims": FRAME,
    }
    vision = {
        **bare,
        "mm_embed_dim": config.mm_embed_dim,
        "mm_posemb_size": config.mm_posemb_size,
        "model_patch_size": PATCH,
        "model_type": "gemma4_unified_vision",
        "num_soft_tokens": SOFT_TOKENS,
        "output_proj_dims": config.mm_embed_dim,
        "patch_size": 16,
        "pooling_kernel_size": 3,
    }
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "audio_config": dict(sorted(audio.items())),
        "audio_token_id": token("<|audio|>"),
        "boa_token_id": token("<|audio>"),
        "boi_token_id": token("<|image>"),
        "dtype": "bfloat16",
        "eoa_token_index": token("<audio|>"),
        "eoi_token_id": token("<image|>"),
        "eos_token_id": [token("<eos>"), token("<turn|>")],
        "image_token_id": token("<|image|>"),
        "initializer_range": 0.02,
        "model_type": "gemma4_unified",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": TRANSFORMERS_VERSION,
        "video_token_id": token("<|video|>"),
        "vision_config": dict(sorted(vision.items())),
    }


def generation_config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Greedy by default: the demo's answers are facts about what it was shown."""
    token = tokenizer.token_to_id
    return {
        "bos_token_id": token("<bos>"),
        "do_sample": False,
        "eos_token_id": [token("<eos>"), token("<turn|>"), token("<|tool_response>")],
        "pad_token_id": token("<pad>"),
        "suppress_tokens": [token("<audio|>"), token("<image|>")],
        "transformers_version": TRANSFORMERS_VERSION,
    }


def processor_config_json() -> dict[str, Any]:
    picture = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": SOFT_TOKENS,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
    }
    return {
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "feature_extractor": {
            "audio_samples_per_token": FRAME,
            "feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor",
            "feature_size": FRAME,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": 16000,
        },
        "image_processor": {**picture, "image_processor_type": "Gemma4UnifiedImageProcessor"},
        "image_seq_length": SOFT_TOKENS,
        "processor_class": "Gemma4UnifiedProcessor",
        "video_processor": {
            **picture,
            "do_normalize": True,
            "do_sample_frames": True,
            "num_frames": NUM_FRAMES,
            "return_metadata": False,
            "video_processor_type": "Gemma4UnifiedVideoProcessor",
        },
    }


def tokenizer_config_json() -> dict[str, Any]:
    return {
        "audio_token": "<|audio|>",
        "backend": "tokenizers",
        "boa_token": "<|audio>",
        "boi_token": "<|image>",
        "bos_token": "<bos>",
        "eoa_token": "<audio|>",
        "eoc_token": "<channel|>",
        "eoi_token": "<image|>",
        "eos_token": "<eos>",
        "eot_token": "<turn|>",
        "escape_token": '<|"|>',
        "etc_token": "<tool_call|>",
        "etd_token": "<tool|>",
        "etr_token": "<tool_response|>",
        "extra_special_tokens": ["<|video|>"],
        "image_token": "<|image|>",
        "mask_token": "<mask>",
        "model_max_length": 8192,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "Gemma4UnifiedProcessor",
        "soc_token": "<|channel>",
        "sot_token": "<|turn>",
        "stc_token": "<|tool_call>",
        "std_token": "<|tool>",
        "str_token": "<|tool_response>",
        "think_token": "<|think|>",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }


def write_card(model: DemoModel, progress: dict[str, Any], output: Path) -> None:
    """Write the model card; accuracy.py puts its table in."""
    parameters = sum(t.numel() for t in google_tensors(model).values())
    card = CARD.read_text(encoding="utf-8")
    for name, value in (
        ("parameters", f"{parameters / 1e6:.1f}"),
        ("steps", f"{progress['step']:,}"),
        ("minutes", f"{progress['seconds'] / 60:.0f}"),
        ("samples", f"{progress['samples']:,}"),
        ("tokens", f"{progress['tokens'] / 1e6:.0f}"),
    ):
        card = card.replace(f"{{{name}}}", value)
    (output / "README.md").write_text(card, encoding="utf-8")


def write_checkpoint(model: DemoModel, output: Path) -> None:
    """Write all files of the checkpoint; each is complete before it takes its name."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    documents = {
        "config.json": config_json(model.config, tokenizer),
        "generation_config.json": generation_config_json(tokenizer),
        "processor_config.json": processor_config_json(),
        "tokenizer_config.json": tokenizer_config_json(),
    }
    for name, document in documents.items():
        (output / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    tokenizer.save(str(output / "tokenizer.json"))
    shutil.copyfile(TEMPLATE, output / "chat_template.jinja")
    part = output / "model.safetensors.part"
    save_file(google_tensors(model), part, metadata={"format": "pt"})
    part.chmod(0o644)  # save_file makes it private
    part.replace(output / "model.safetensors")


def transformers_logits(reference: Any, sequence: Sequence, config: DemoConfig) -> Tensor:
    """Logits [L, V] of a sequence without branches from transformers' class, given the masks."""
    L = len(sequence.ids)
    positions = torch.arange(L)
    distance = positions[:, None] - positions[None]
    block = torch.tensor(sequence.blocks)
    same_block = (block[:, None] == block[None]) & (block[None] >= 0)
    causal = distance >= 0
    sliding = (causal | same_block) & (distance < config.sliding_window)
    masks = {
        name: torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None]
        for name, mask in (("full_attention", causal), ("sliding_attention", sliding))
    }
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(sequence.ids)[None],
        "attention_mask": masks,
    }
    if sequence.patches:
        patches = torch.from_numpy(np.stack(sequence.patches)).float() / 255
        positions_xy = torch.from_numpy(np.stack(sequence.patch_positions))
        if len(sequence.patches) == 1:
            inputs |= {"pixel_values": patches, "image_position_ids": positions_xy}
        else:
            inputs |= {
                "pixel_values_videos": patches,
                "video_position_ids": positions_xy,
                "num_frames_per_video": torch.tensor([len(patches)]),
            }
    if sequence.frames is not None:
        inputs["input_features"] = torch.from_numpy(sequence.frames)[None]
        inputs["input_features_mask"] = torch.ones(1, len(sequence.frames), dtype=torch.bool)
    with torch.no_grad():
        return reference(**inputs).logits[0]


def check_checkpoint(output: Path, model: DemoModel) -> float:
    """Return the largest logit difference to transformers' class over samples of every medium.

    Raises:
        SystemExit: A tensor is missing or unexpected, or the logits differ.
    """
    from transformers import AutoModelForImageTextToText

    reference, report = AutoModelForImageTextToText.from_pretrained(
        output, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {k: v for k, v in report.items() if v}
    if problems:
        raise SystemExit(f"{output} does not load cleanly: {problems}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    maker = Maker(build_tokenizer(), seed=7, held_out=True)
    makers = (
        lambda: maker.make_picture(300),
        lambda: maker.make_sound(300),
        lambda: maker.make_clip(900, 8),
        maker.make_text,
    )
    worst = 0.0
    for make in makers:
        for _ in range(3):
            sequence = first_branch(make())
            wanted = transformers_logits(reference.eval(), sequence, model.config)
            K = len(sequence.targets)
            patches = sum(len(p) for p in sequence.patches)
            frames = 0 if sequence.frames is None else len(sequence.frames)
            arrays, _ = stack([sequence], GroupShape(1, len(sequence.ids), patches, frames, K))
            with torch.no_grad():
                logits, _ = model({k: torch.from_numpy(v) for k, v in arrays.items()})
            rows = [position for position, _, _ in sequence.targets]
            worst = max(worst, float((logits[0] - wanted[rows]).abs().max()))
    if worst > LOGIT_TOLERANCE:
        raise SystemExit(
            f"logits differ from transformers' by {worst:.2g}; "
            f"at most {LOGIT_TOLERANCE} is rounding"
        )
    return worst


def first_branch(sequence: Sequence) -> Sequence:
    """The prefix and the first branch alone: an ordinary prompt with its answer."""
    keep = [k for k, branch in enumerate(sequence.branches) if branch in (0, 1)]
    assert keep == list(range(len(keep)))
    n = len(keep)
    return Sequence(
        ids=sequence.ids[:n],
        positions=sequence.positions[:n],
        branches=[0] * n,
        blocks=sequence.blocks[:n],
        soft=sequence.soft[:n],
        targets=[t for t in sequence.targets if t[0] < n - 1],
        tasks=sequence.tasks[:1],
        patches=sequence.patches,
        patch_positions=sequence.patch_positions,
        frames=sequence.frames,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=Path("build/demo/state.pt"))
    parser.add_argument("--output", type=Path, default=Path("mlx_gemma4/demo"))
    parser.add_argument("--check", action="store_true", help="compare with transformers' class")
    options = parser.parse_args()
    model, progress = load_model(options.state)
    write_checkpoint(model, options.output)
    write_card(model, progress, options.output)
    size = sum(f.stat().st_size for f in options.output.rglob("*") if f.is_file())
    print(
        f"{options.output}: step {progress['step']}, {progress['seconds'] / 60:.0f} minutes, "
        f"{size / 1e6:.1f} MB"
    )
    if options.check:
        worst = check_checkpoint(options.output, model)
        print(f"transformers agrees: largest logit difference {worst:.2g}")


if __name__ == "__main__":
    main()
