"""A checkpoint run layer by layer, so that one of 24 GB fits into a small machine.

The hidden states of all prompts go through one layer, which alone is in memory; then it is dropped
and the next one is read.  The embedding, which is also the output head, is read in blocks of rows.
The same serves comparing, which only watches, and calibration, which changes a layer before the
states go through it.

Everything is float32, and quantized weights are dequantized as they are read: what is measured is
then the weights, and not the rounding of a device's 16-bit activations.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma4.config import Config
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.qkv_norm_rope import pack_offsets
from mlx_gemma4.model.decoder import DecoderLayer, LanguageModel
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.model.intervals import ImageAttention, intervals_of
from mlx_gemma4.weights import Checkpoint, load_weights, read_rows
from mlx_gemma4.weights.compressed_tensors import symmetric_biases

_EMBEDDING = "language_model.embed_tokens"
ITEM_BYTES = 4


class LayerStep:
    """One layer that is in memory, before the states go through it.

    Valid in the body of the loop over `LayerwiseRun.layers`.  What is written into the layer there,
    such as `step.layer.mlp.down_proj.weight = rounded`, is what the states meet.

    The weights of a global layer stand in the order of `mlx_gemma4.model.global_layout`, with
    k_norm folded into q_norm; `global_permutations` tells which dimension of the checkpoint each
    row of q_proj and k_proj and each column of o_proj is.

    Attributes:
        index: Of the layer.
        path: Its canonical path, "language_model.layers.N"; modules are below it.
        layer_type: "sliding_attention" or "full_attention".
        layer: With dense float32 weights.
        inputs: Hidden states of every prompt, [1, L, D] float32, before this layer.
    """

    def __init__(
        self, index: int, layer_type: str, layer: DecoderLayer, run: "LayerwiseRun"
    ) -> None:
        self.index = index
        self.path = f"language_model.layers.{index}"
        self.layer_type = layer_type
        self.layer = layer
        self.inputs: Sequence[mx.array] = run.states
        self._run = run

    def forward(self, number: int, x: mx.array | None = None) -> mx.array:
        """Return what the layer, as it is now, makes of a prompt, [1, L, D]; nothing is kept.

        Args:
            number: Of the prompt.
            x: Hidden states [1, L, D] in place of the prompt's own.
        """
        mask = self._run.mask(number, self.layer_type)
        x = self.inputs[number] if x is None else x
        norm = self.layer.input_layernorm
        # The next layer's norm is not here; what this one would make of the result is not computed.
        return self.layer(x, norm(x), norm, mask, pack_offsets([0]), None)[0]


class LayerwiseRun:
    """The prompts on their way through a checkpoint.

        run = LayerwiseRun(checkpoint, inputs)
        for step in run.layers():
            ...  # look at step.inputs, change step.layer
        final = run.finish([positions of each prompt])

    Memory holds a layer, the states, and what one prompt needs in one layer.  On the 12B that is
    0.9 GB for the layer and 15 KiB a position for the states: about 90 MB for either part of the
    bundled set.  A process that compared checkpoints with layers and an embedding of these shapes
    took 1.5 GB at its peak.

    Args:
        checkpoint: From `open_checkpoint`, quantized or not.
        inputs: Of each prompt, whole.
        image_attention: See `Gemma4`.

    Raises:
        InputError: Media for which the checkpoint has no front end.
        CheckpointError: A file cannot be read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        inputs: Sequence[ModelInputs],
        image_attention: ImageAttention = "sliding",
    ) -> None:
        self.config: Config = checkpoint.config
        self.states: list[mx.array] = []
        self._checkpoint = checkpoint
        self._inputs = tuple(inputs)
        self._image_attention: ImageAttention = image_attention
        model = Gemma4.from_weights(checkpoint.config, _dense_weights(checkpoint))
        # The front ends go with the model at the end of this; nothing else of it has been read.
        self._decoder = model.language_model
        self._next = 0
        self._embed(model)

    def layers(self, on_prompt: Callable[[], None] | None = None) -> Iterator[LayerStep]:
        """Yield each layer; when the loop goes on, the states go through it, and it is dropped.

        A loop that was left goes on with the layer at which it was.

        Args:
            on_prompt: Called whenever a prompt has gone through a layer.
        """
        layer_types = self.config.text_config.layer_types
        while self._next < len(layer_types):
            layer: DecoderLayer = self._decoder.layers[self._next]
            _evaluate(layer)
            step = LayerStep(self._next, layer_types[self._next], layer, self)
            yield step
            for number in range(len(self.states)):
                x = step.forward(number)
                mx.eval(x)
                self.states[number] = x
                if on_prompt:
                    on_prompt()
            layer.clear()  # whoever still holds it holds no weights
            mx.clear_cache()
            self._next += 1

    def mask(self, number: int, layer_type: str) -> IntervalMask:
        """Return what each position of a prompt sees in a layer of that type."""
        inputs, text = self._inputs[number], self.config.text_config
        intervals = intervals_of(
            0, len(inputs), text.sliding_window, inputs.spans, self._image_attention
        )[layer_type]
        return IntervalMask(
            intervals.lo, intervals.hi, np.arange(len(inputs), dtype=np.int32)[None]
        )

    def finish(self, positions: Sequence[np.ndarray]) -> "FinalStates":
        """Return the normed states at some positions of each prompt, and give the others up.

        Raises:
            ValueError: Layers are left, or there are more or fewer arrays than prompts.
        """
        if self._next < self.config.text_config.num_hidden_layers:
            raise ValueError(f"the states have gone through {self._next} layers; run them all")
        hidden = [
            self._decoder.norm(x)[0][mx.array(rows)]
            for x, rows in zip(self.states, positions, strict=True)
        ]
        joined = mx.concatenate(hidden)
        mx.eval(joined)
        self.states.clear()
        mx.clear_cache()
        return FinalStates(self._checkpoint, self._decoder, joined)

    def _embed(self, model: Gemma4) -> None:
        """Put text and soft tokens of every prompt into `states`."""
        ids = np.unique(np.concatenate([inputs.input_ids for inputs in self._inputs]))
        runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
        table = mx.concatenate(
            [embedding_rows(self._checkpoint, int(run[0]), int(run[-1]) + 1) for run in runs]
        )
        self._decoder.embed_tokens = _embedding(table)
        for inputs in self._inputs:
            x = self._decoder.embed(mx.array(np.searchsorted(ids, inputs.input_ids))[None])
            for positions, embeddings in model.soft_tokens(inputs):
                x[:, mx.array(positions)] = embeddings.astype(x.dtype)
            mx.eval(x)
            self.states.append(x)
        self._decoder.embed_tokens = _embedding(table[:0])
        mx.clear_cache()


class FinalStates:
    """Hidden states behind the last layer, and the output head over them.

    Attributes:
        hidden: [N, D] float32, of the chosen positions of all prompts, one after the other.
    """

    def __init__(self, checkpoint: Checkpoint, decoder: LanguageModel, hidden: mx.array) -> None:
        self.hidden = hidden
        self._checkpoint = checkpoint
        self._decoder = decoder

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows start..stop of the head, [stop - start, D] float32, read now."""
        return embedding_rows(self._checkpoint, start, stop)

    def logits(self, rows: mx.array, positions: slice = slice(None)) -> mx.array:
        """Return float32 logits, softcapped, of some states for some rows [R, D] of the head."""
        self._decoder.embed_tokens = _embedding(rows)
        return self._decoder.logits(self.hidden[positions])


def embedding_rows(checkpoint: Checkpoint, start: int, stop: int) -> mx.array:
    """Return rows start..stop of the embedding, [stop - start, D] float32.

    Only their bytes are read; quantized ones are dequantized.

    Raises:
        CheckpointError: The file cannot be read.
    """
    settings = checkpoint.quantization.get(_EMBEDDING)
    parts = ("weight", "scales", "biases") if settings else ("weight",)
    stored = {
        part: read_rows(checkpoint.tensors[name], start, stop)
        for part in parts
        if (name := f"{_EMBEDDING}.{part}") in checkpoint.tensors
    }
    rows = _dequantize(stored, vars(settings)) if settings else stored["weight"].astype(mx.float32)
    mx.eval(rows)
    return rows


def _dense_weights(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return every parameter as float32; read, and dequantized, when it is first used."""
    arrays, quantization = load_weights(checkpoint, dtype=mx.float32)
    for path, settings in quantization.items():
        stored = {
            part: arrays.pop(name)
            for part in ("weight", "scales", "biases")
            if (name := f"{path}.{part}") in arrays
        }
        arrays[f"{path}.weight"] = _dequantize(stored, settings)
    return arrays


def _dequantize(stored: dict[str, mx.array], settings: dict[str, Any]) -> mx.array:
    scales, biases = stored["scales"], stored.get("biases")
    if settings["mode"] == "affine":
        scales = scales.astype(mx.float32)
        if biases is None:
            biases = symmetric_biases(scales, settings["bits"])
        biases = biases.astype(mx.float32)
    return mx.dequantize(stored["weight"], scales, biases, dtype=mx.float32, **settings)


def _evaluate(layer: nn.Module) -> None:
    """Read a layer one array at a time, so that the file's own copies do not pile up."""
    for _, array in tree_flatten(layer.parameters()):
        mx.eval(array)
        mx.clear_cache()


def _embedding(rows: mx.array) -> nn.Embedding:
    embedding = nn.Embedding(1, 1)
    embedding.weight = rows
    return embedding
