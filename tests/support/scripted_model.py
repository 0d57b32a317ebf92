"""A network that says a given text, with the same calls as the real one."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from mlx_gemma4.inputs import ModelInputs


class _Counter:
    """The cache of a layer that only counts."""

    def __init__(self) -> None:
        self.offset = 0
        self.state: list[mx.array] = []


class ScriptedModel:
    """Answers any prompt with one list of tokens, then with the last of them for ever."""

    def __init__(self, tokens: list[int], vocab_size: int, context: int = 1000) -> None:
        self.tokens = tokens
        self.vocab_size = vocab_size
        self.said = 0
        text = SimpleNamespace(max_position_embeddings=context)
        self.config = SimpleNamespace(text_config=text)

    def make_cache(self) -> list[Any]:
        return [_Counter()]

    def __call__(self, inputs: ModelInputs, cache: Any, logits_to_keep: int = 1) -> mx.array:
        cache[0].offset += len(inputs)
        self.said = 0
        return self._logits()

    def forward(self, input_ids: mx.array, soft_tokens: Any, spans: Any, cache: Any) -> mx.array:
        cache[0].offset += 1
        return self._logits()[None]

    def _logits(self) -> mx.array:
        token = self.tokens[min(self.said, len(self.tokens) - 1)]
        self.said += 1
        return mx.zeros((1, self.vocab_size)).at[0, token].add(20.0)
