"""Gemma4: soft tokens and text in one decoder, logits out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma4.cache import LayerCache, PromptCache, SharedCache, SlidingCache
from mlx_gemma4.cache.ragged import offsets_of
from mlx_gemma4.config import Config, GenerationConfig
from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.inputs import ModelInputs, SoftTokenSpan
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.shared_rows import RowFormat
from mlx_gemma4.memory import MemoryLimit
from mlx_gemma4.model.decoder import LanguageModel
from mlx_gemma4.model.embedders import MultimodalEmbedder, VisionEmbedder
from mlx_gemma4.model.global_layout import apply_global_layout
from mlx_gemma4.model.intervals import ImageAttention, intervals_of

# Positions of a sliding ring that can be undone; also short chunks are written in place.
RING_SLACK = 16

# What rows of global layers may be, see `Gemma4`.
KVRows = Literal["shared", "value"]
KV_BITS = (16, 8)


def check_kv(kv_bits: int | None, kv_rows: str) -> None:
    """Refuse rows that are not known.

    Raises:
        OptionError: A value that is not allowed.
    """
    if kv_bits is not None and kv_bits not in KV_BITS:
        raise OptionError(
            f"kv_bits is {kv_bits}; allowed are 16 and 8, and None, which leaves it to the planner"
        )
    if kv_rows not in get_args(KVRows):
        raise OptionError(f'kv_rows is "{kv_rows}"; allowed are shared and value')


class Gemma4(nn.Module):
    """Gemma 4 Unified: embeds text, patches, and frames, and decodes them together.

    Attributes:
        config: Of the whole model.
        image_attention: Layers on which the tokens of a picture see each other in both directions:
            "sliding", or "all" as the plain forward of transformers does.
        generation_config: How the checkpoint wants its tokens sampled; set by whoever loads it.
        memory_limit: What a conversation has to fit into, parameters included; None if it is not
            watched.
        kv_bits: Of global layers' rows in the caches that it makes: 16 is the dtype of activations,
            8 is int8; None is 16, which the planner may change before a cache has rows.
        kv_rows: "shared" keeps the rotated part of keys beside values; "value" keeps values alone,
            a fifth less, and makes keys anew wherever they are read.

    Source: transformers modeling_gemma4_unified.py, Gemma4UnifiedForConditionalGeneration.
    """

    def __init__(self, config: Config, image_attention: ImageAttention = "sliding") -> None:
        """Build the model with random parameters; `from_weights` gives it those of a checkpoint."""
        super().__init__()
        self.config = config
        self.image_attention: ImageAttention = image_attention
        self.generation_config = GenerationConfig.from_dict({}, config)
        self.memory_limit: MemoryLimit | None = None
        self.kv_bits: int | None = None
        self.kv_rows: KVRows = "shared"
        hidden_size = config.text_config.hidden_size
        self.language_model = LanguageModel(config.text_config)
        if config.vision_config is not None:
            self.vision_embedder = VisionEmbedder(config.vision_config)
            self.embed_vision = MultimodalEmbedder(config.vision_config, hidden_size)
        if config.audio_config is not None:
            self.embed_audio = MultimodalEmbedder(config.audio_config, hidden_size)

    @classmethod
    def from_weights(
        cls,
        config: Config,
        weights: Mapping[str, mx.array],
        quantization: Mapping[str, Mapping[str, Any]] | None = None,
        image_attention: ImageAttention = "sliding",
    ) -> Self:
        """Build the model around a checkpoint's parameters, which stay lazy.

        Args:
            config: Of the whole model.
            weights: Every parameter under its canonical name (`mlx_gemma4.weights`).
            quantization: `group_size`, `bits`, and `mode` of each quantized module, by path.
            image_attention: See the class.
        """
        model = cls(config, image_attention)
        settings = {path: dict(of_module) for path, of_module in (quantization or {}).items()}
        group_sizes = {path: of_module["group_size"] for path, of_module in settings.items()}
        arrays, group_sizes = apply_global_layout(dict(weights), config.text_config, group_sizes)
        for path, group_size in group_sizes.items():
            settings[path]["group_size"] = group_size
        if settings:
            nn.quantize(model, class_predicate=lambda path, _: settings.get(path, False))
        model.load_weights(list(arrays.items()))
        model.eval()
        return model

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of activations, which is that of the norms."""
        return self.language_model.norm.weight.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        arrays = cast(list[tuple[str, mx.array]], tree_flatten(self.parameters()))
        return sum(array.nbytes for _, array in arrays)

    def make_cache(
        self,
        *,
        kv_bits: int | None = None,
        kv_rows: KVRows | None = None,
        context_tokens: int = 0,
    ) -> list[LayerCache]:
        """Return an empty prompt cache: one ring or one growing buffer a layer.

        Args:
            kv_bits: See the class; None is the model's.
            kv_rows: Likewise.
            context_tokens: Positions that are planned: room for them is made at once.

        Raises:
            OptionError: A value that is not allowed.
        """
        kv_bits = self.kv_bits if kv_bits is None else kv_bits
        kv_rows = self.kv_rows if kv_rows is None else kv_rows
        check_kv(kv_bits, kv_rows)
        text = self.config.text_config
        bits = KV_BITS[0] if kv_bits is None else kv_bits
        row_format = RowFormat(bits, has_keys=kv_rows == "shared")
        return [
            SlidingCache(text.sliding_window, RING_SLACK)
            if text.is_sliding(index)
            else SharedCache(row_format, context_tokens, are_bits_open=kv_bits is None)
            for index in range(text.num_hidden_layers)
        ]

    def __call__(
        self,
        inputs: ModelInputs,
        cache: PromptCache | None = None,
        *,
        logits_to_keep: int | None = None,
    ) -> mx.array:
        """Return the logits of every position.

        Without a cache this is the plain reference path.  With one, `inputs` goes on where the
        cache ends, and must hold every picture whole (`ModelInputs.chunks` sees to that).

        Args:
            inputs: L positions.
            cache: From `make_cache`; updated.
            logits_to_keep: Return the last positions alone; None returns all.

        Returns:
            [L, V] float32, softcapped.

        Raises:
            InputError: Media for which the checkpoint has no front end.
        """
        return self.forward(
            mx.array(inputs.input_ids)[None],
            self.soft_tokens(inputs),
            inputs.spans,
            cache,
            logits_to_keep,
        )[0]

    def forward(
        self,
        input_ids: mx.array,
        soft_tokens: list[tuple[np.ndarray, mx.array]],
        spans: tuple[SoftTokenSpan, ...],
        cache: PromptCache | None,
        logits_to_keep: int | None = None,
    ) -> mx.array:
        """Return logits [B, L, V] of ids on the device; the decoding loop's way in.

        Args:
            input_ids: [B, L] integer.
            soft_tokens: Positions [M] and embeddings [M, D] that replace those of placeholders.
            spans: Soft tokens among the new positions.
            cache: From `make_cache`; updated.
            logits_to_keep: Return the last positions alone; None returns all.
        """
        B, L = input_ids.shape
        x = self.language_model.embed(input_ids)
        for positions, embeddings in soft_tokens:
            x[:, mx.array(positions)] = embeddings.astype(x.dtype)
        offsets = offsets_of(cache, B)
        masks = self._masks(L, offsets, spans, cache)
        x = self.language_model(x, masks, offsets, cache, logits_to_keep)
        return self.language_model.logits(x)

    def soft_tokens(self, inputs: ModelInputs) -> list[tuple[np.ndarray, mx.array]]:
        """Return positions [M] and embeddings [M, D] of pictures and of sounds in `inputs`.

        Raises:
            InputError: Media for which the checkpoint has no front end.
        """
        embedded: list[tuple[np.ndarray, mx.array]] = []
        if inputs.patches is not None and inputs.patch_positions is not None:
            if self.config.vision_config is None:
                raise InputError(
                    "this checkpoint has no vision front end; leave out "
                    "images and videos, or choose a checkpoint with one"
                )
            patches = mx.array(inputs.patches).astype(self.dtype)
            seen = self.vision_embedder(patches, mx.array(inputs.patch_positions))
            embedded.append((_positions(inputs, is_block=True), self.embed_vision(seen)))
        if inputs.frames is not None:
            if self.config.audio_config is None:
                raise InputError(
                    "this checkpoint has no audio front end; leave out "
                    "sounds, or choose a checkpoint with one"
                )
            frames = mx.array(inputs.frames).astype(self.dtype)
            embedded.append((_positions(inputs, is_block=False), self.embed_audio(frames)))
        return embedded

    def _masks(
        self,
        length: int,
        offsets: Sequence[int],
        spans: tuple[SoftTokenSpan, ...],
        cache: PromptCache | None,
    ) -> dict[str, IntervalMask]:
        """Return the mask of each layer type for `length` new positions of each row."""
        text = self.config.text_config
        of_rows = [
            intervals_of(offset, length, text.sliding_window, spans, self.image_attention)
            for offset in offsets
        ]
        masks: dict[str, IntervalMask] = {}
        for index, layer_type in enumerate(text.layer_types):
            if layer_type in masks:
                continue
            keys = (
                cache[index].key_positions(length) if cache else np.arange(length, dtype=np.int32)
            )
            masks[layer_type] = IntervalMask(
                np.concatenate([intervals[layer_type].lo for intervals in of_rows]),
                np.concatenate([intervals[layer_type].hi for intervals in of_rows]),
                np.broadcast_to(keys, (len(offsets), keys.shape[-1])),
            )
        return masks


def _positions(inputs: ModelInputs, *, is_block: bool) -> np.ndarray:
    """Return the positions of all soft tokens from pixels, or of all from sound, [M] int32."""
    return np.concatenate(
        [
            np.arange(span.start, span.stop, dtype=np.int32)
            for span in inputs.spans
            if span.is_block is is_block
        ]
    )
