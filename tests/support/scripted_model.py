"""Networks whose answers are known beforehand, with the same calls as the real one."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from random_checkpoint import PLACEHOLDERS, SIZES, build_config

from mlx_gemma4.config import Config
from mlx_gemma4.inputs import ModelInputs

_IDS = {name: 5 + index for index, name in enumerate(PLACEHOLDERS)}


class _Counter:
    """The cache of a layer that only counts."""

    def __init__(self) -> None:
        self.offset = self.nbytes = 0
        self.state: list[mx.array] = []

    def is_trimmable(self, count: int) -> bool:
        return count <= min(self.offset, 17)

    def trim(self, count: int) -> None:
        assert self.is_trimmable(count)
        self.offset -= count


class ScriptedModel:
    """Answers any prompt with one list of tokens, then with the last of them for ever.

    Attributes:
        lengths: Positions of each forward pass after the prompt.
    """

    def __init__(self, tokens: list[int], vocab_size: int, context: int = 1000) -> None:
        self.tokens = tokens
        self.vocab_size = vocab_size
        self.prompt_end = 0
        self.lengths: list[int] = []
        self.dtype, self.nbytes, self.memory_limit = mx.float32, 0, None
        self.kv_bits, self.kv_rows = 16, "shared"
        text = Config.from_dict(build_config(SIZES["tiny"], "float32", _IDS)).text_config
        text = replace(text, max_position_embeddings=context, vocab_size=vocab_size)
        self.config = SimpleNamespace(text_config=text)

    def make_cache(self) -> list[Any]:
        return [_Counter()]

    def __call__(self, inputs: ModelInputs, cache: Any, logits_to_keep: int = 1) -> mx.array:
        cache[0].offset += len(inputs)
        self.prompt_end = cache[0].offset
        return self._logits(0, 1)

    def forward(self, input_ids: mx.array, soft_tokens: Any, spans: Any, cache: Any) -> mx.array:
        start, length = cache[0].offset - self.prompt_end, input_ids.shape[1]
        self.lengths.append(length)
        cache[0].offset += length
        return self._logits(start + 1, length)[None]

    def _logits(self, start: int, length: int) -> mx.array:
        """Return the logits [L, V] for the places `start`.. of the answer."""
        places = [min(place, len(self.tokens) - 1) for place in range(start, start + length)]
        tokens = mx.array([self.tokens[place] for place in places])
        return 20.0 * (mx.arange(self.vocab_size) == tokens[:, None]).astype(mx.float32)


class MarkovModel(ScriptedModel):
    """A token's probabilities depend on the one before it alone: `table` [V, V] float32, logits."""

    def __init__(self, table: np.ndarray, context: int) -> None:
        super().__init__([], table.shape[0], context)
        self.table = mx.array(table)

    def __call__(self, inputs: ModelInputs, cache: Any, logits_to_keep: int = 1) -> mx.array:
        cache[0].offset += len(inputs)
        return self.table[int(inputs.input_ids[-1])][None]

    def forward(self, input_ids: mx.array, soft_tokens: Any, spans: Any, cache: Any) -> mx.array:
        self.lengths.append(input_ids.shape[1])
        cache[0].offset += input_ids.shape[1]
        return self.table[input_ids]
