"""transformers' Gemma4Unified in float32 with the masks of `create_masks_for_vision_model`.

Imports torch: used by tests marked `parity` and by the script that makes goldens.
"""

from importlib.resources import files
from typing import Any

import numpy as np
import torch
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration
from transformers.models.gemma4_unified.modeling_gemma4_unified import (
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

from mlx_gemma4.inputs import Modality, ModelInputs

TOKEN_TYPES = {Modality.IMAGE: 1, Modality.VIDEO: 2, Modality.AUDIO: 3}

# Google's names on disk, and those that transformers 5 uses in memory.
RENAMED = (
    ("model.vision_embedder.", "model.embed_vision."),
    (
        "model.embed_vision.embedding_projection.",
        "model.embed_vision.multimodal_embedder.embedding_projection.",
    ),
)


def reference_model(
    config: dict[str, Any], parameters: dict[str, np.ndarray]
) -> Gemma4UnifiedForConditionalGeneration:
    """Build the reference around parameters under Google's names; every one must find its place."""
    settings = Gemma4UnifiedConfig(**config)
    settings._attn_implementation = "eager"
    model = Gemma4UnifiedForConditionalGeneration(settings).float().eval()
    state: dict[str, torch.Tensor] = {}
    for name, array in parameters.items():
        for old, new in RENAMED:
            if name.startswith(old):
                name = name.replace(old, new)
                break
        state[name] = torch.from_numpy(array)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert missing == ["lm_head.weight"], missing
    model.tie_weights()
    return model


def token_types(inputs: ModelInputs) -> torch.Tensor:
    """Return mm_token_type_ids [1, L]: 0 text, 1 image, 2 video, 3 audio."""
    types = torch.zeros(1, len(inputs), dtype=torch.long)
    for span in inputs.spans:
        types[0, span.start : span.stop] = TOKEN_TYPES[span.modality]
    return types


def media_arguments(inputs: ModelInputs) -> dict[str, torch.Tensor]:
    """Return the media of a prompt as arguments of the reference's forward."""
    arguments: dict[str, torch.Tensor] = {}
    row = 0
    pictures: dict[Modality, list[tuple[np.ndarray, np.ndarray]]] = {
        Modality.IMAGE: [],
        Modality.VIDEO: [],
    }
    for span in inputs.spans:
        if span.is_block:
            assert inputs.patches is not None
            assert inputs.patch_positions is not None
            rows = slice(row, row + span.length)
            pictures[span.modality].append((inputs.patches[rows], inputs.patch_positions[rows]))
            row += span.length
    for modality, pixels, positions in (
        (Modality.IMAGE, "pixel_values", "image_position_ids"),
        (Modality.VIDEO, "pixel_values_videos", "video_position_ids"),
    ):
        if found := pictures[modality]:
            longest = max(len(patches) for patches, _ in found)
            padded = np.zeros((len(found), longest, found[0][0].shape[1]), np.float32)
            places = np.full((len(found), longest, 2), -1, np.int64)
            for i, (patches, patch_positions) in enumerate(found):
                padded[i, : len(patches)] = patches
                places[i, : len(patches)] = patch_positions
            arguments[pixels] = torch.from_numpy(padded)
            arguments[positions] = torch.from_numpy(places)
    if pictures[Modality.VIDEO]:
        arguments["num_frames_per_video"] = torch.tensor([len(pictures[Modality.VIDEO])])
    if inputs.frames is not None:
        arguments["input_features"] = torch.from_numpy(inputs.frames[None])
        arguments["input_features_mask"] = torch.ones(1, len(inputs.frames), dtype=torch.bool)
    return arguments


def reference_logits(
    model: Gemma4UnifiedForConditionalGeneration, inputs: ModelInputs, *, forward_rule: bool = False
) -> np.ndarray:
    """Return float32 logits [L, V] of a whole prompt.

    Args:
        model: From `reference_model`.
        inputs: The prompt.
        forward_rule: Let the reference's forward make its own masks, which overlay the blocks on
            every layer, after the window.
    """
    ids = torch.from_numpy(inputs.input_ids.astype(np.int64))[None]
    text = model.config.get_text_config()
    positions = torch.arange(len(inputs))[None]
    types = token_types(inputs)
    attention_mask: dict[str, torch.Tensor] | None = None
    if not forward_rule:
        attention_mask = create_masks_for_vision_model(
            text,
            torch.zeros(1, len(inputs), text.hidden_size),
            None,
            None,
            positions,
            get_block_sequence_ids_for_mask(types, ids.device),
        )
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions,
            mm_token_type_ids=types,
            use_cache=False,
            **media_arguments(inputs),
        )
    return out.logits[0].numpy()


def demo_reference() -> Gemma4UnifiedForConditionalGeneration:
    """Load the demo checkpoint as transformers does, in float32; no tensor may be left over."""
    model, found = Gemma4UnifiedForConditionalGeneration.from_pretrained(
        str(files("mlx_gemma4.demo")),
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not found["missing_keys"], found
    assert not found["unexpected_keys"], found
    assert not found["mismatched_keys"], found
    return model.eval()


def greedy_ids(
    model: Gemma4UnifiedForConditionalGeneration, inputs: ModelInputs, max_tokens: int
) -> list[int]:
    """Return what `generate` answers greedily, the end-of-sequence token included.

    A static cache makes `generate` prepare the masks of `create_masks_for_vision_model`.
    """
    ids = torch.from_numpy(inputs.input_ids.astype(np.int64))[None]
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=token_types(inputs),
        do_sample=False,
        top_k=None,
        top_p=None,
        temperature=None,
        max_new_tokens=max_tokens,
        cache_implementation="static",
        disable_compile=True,
        **media_arguments(inputs),
    )
    return out[0, ids.shape[1] :].tolist()
