"""Samplers and logits processors under mlx-lm's names and signatures.

A sampler maps log-probabilities [B, V] to tokens [B]; a logits processor maps the tokens so far and
logits [B, V] to logits.  Every filter keeps a prefix of the tokens sorted by probability, so their
order does not matter, and the tokens that top-k leaves can be filtered without sorting the
vocabulary.  As in mlx-lm, filters look at the distribution before the temperature.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import mlx.core as mx

from mlx_gemma4.config import GenerationConfig
from mlx_gemma4.errors import OptionError

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def make_sampler(
    temp: float = 0.0,
    top_p: float = 0.0,
    min_p: float = 0.0,
    min_tokens_to_keep: int = 1,
    top_k: int = 0,
    *,
    seed: int | None = None,
) -> "RewindableSampler":
    """Return a function from log-probabilities [B, V] to tokens [B].

    Args:
        temp: 0 takes the most likely token, whatever the filters.
        top_p: Keep the most likely tokens up to this total probability; 0 and 1 keep all.
        min_p: Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
        min_tokens_to_keep: Tokens that min_p leaves at least.
        top_k: Keep this many of the most likely tokens; 0 keeps all.
        seed: Makes the draws of this sampler repeatable; None draws from MLX's global state.

    Raises:
        OptionError: A value out of its range.

    Source: mlx-lm sample_utils.py, make_sampler.
    """
    _check("temperature", temp, temp >= 0 and math.isfinite(temp), "0 (greedy) or more")
    _check("top_p", top_p, 0 <= top_p <= 1, "0 to 1")
    _check("min_p", min_p, 0 <= min_p <= 1, "0 to 1")
    _check("top_k", top_k, top_k >= 0, "0 (off) or more")
    _check("min_tokens_to_keep", min_tokens_to_keep, min_tokens_to_keep >= 1, "1 or more")
    if temp == 0:
        return GreedySampler()
    return CategoricalSampler(temp, top_p, min_p, min_tokens_to_keep, top_k, seed)


def choose_sampling(
    config: GenerationConfig,
    *,
    temp: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
) -> tuple[Sampler, list[LogitsProcessor]]:
    """Return sampler and processors; a value of None is the checkpoint's.

    Args:
        config: How the checkpoint wants its tokens sampled.
        temp: See `make_sampler`, as the next three.
        top_p: As there.
        top_k: As there.
        min_p: As there.
        repetition_penalty: See `make_logits_processors`.
        seed: Makes the draws repeatable.
        sampler: Replaces all of the above but the penalty.
        logits_processors: Applied after those of the options.

    Raises:
        OptionError: A value out of its range.
    """
    if temp is None:
        temp = config.temperature if config.do_sample else 0.0
    sampler = sampler or make_sampler(
        temp=temp,
        top_p=config.top_p if top_p is None else top_p,
        top_k=config.top_k if top_k is None else top_k,
        min_p=min_p,
        seed=seed,
    )
    processors = make_logits_processors(
        repetition_penalty=repetition_penalty, suppress_tokens=config.suppress_tokens
    )
    return sampler, [*processors, *logits_processors]


@runtime_checkable
class RewindableSampler(Protocol):
    """A sampler that draws each row by itself and can take draws back.

    Verifying a draft draws a token for every position at once, and keeps the draws up to the first
    that differs.  Only with such a sampler is the answer then as likely as without drafts.
    """

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Map log-probabilities [B, V] to tokens [B], one draw a row."""
        ...

    def rewind(self, count: int) -> None:
        """Forget the last `count` draws."""
        ...


class GreedySampler:
    """Takes the most likely token."""

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Map log-probabilities [B, V] to tokens [B]."""
        return mx.argmax(logprobs, axis=-1)

    def rewind(self, count: int) -> None:
        """There is nothing to forget."""


class CategoricalSampler:
    """Draws from what the filters leave; the arguments are those of `make_sampler`.

    With a seed, the n-th row ever drawn has the n-th key: the draws do not depend on how many rows
    came at a time.
    """

    def __init__(
        self,
        temp: float,
        top_p: float,
        min_p: float,
        min_tokens_to_keep: int,
        top_k: int,
        seed: int | None,
    ) -> None:
        self._temp = temp
        self._top_p = top_p
        self._min_p = min_p
        self._min_tokens_to_keep = min_tokens_to_keep
        self._top_k = top_k
        self._seed = None if seed is None else mx.random.split(mx.random.key(seed))[0, 0]
        self._num_drawn = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Map log-probabilities [B, V] to tokens [B]."""
        top_k, top_p = self._top_k, self._top_p
        if not 0 < top_k < logprobs.shape[-1]:
            if 0 < top_p < 1:
                logprobs = apply_top_p(logprobs, top_p)
            if self._min_p > 0:
                logprobs = apply_min_p(logprobs, self._min_p, self._min_tokens_to_keep)
            return self._draw(logprobs)
        candidates = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., :top_k]
        kept = mx.take_along_axis(logprobs, candidates, axis=-1)
        if 0 < top_p < 1:
            total = mx.exp(mx.logsumexp(logprobs.astype(mx.float32), axis=-1, keepdims=True))
            kept = apply_top_p(kept, top_p, total)
        if self._min_p > 0:
            kept = apply_min_p(kept, self._min_p, min(self._min_tokens_to_keep, top_k))
        return mx.take_along_axis(candidates, self._draw(kept)[..., None], axis=-1)[..., 0]

    def rewind(self, count: int) -> None:
        """Forget the last `count` draws."""
        self._num_drawn -= count

    def _draw(self, logits: mx.array) -> mx.array:
        logits = logits * (1 / self._temp)
        if self._seed is None:
            return mx.random.categorical(logits)
        numbers = mx.arange(self._num_drawn, self._num_drawn + logits.shape[0], dtype=mx.uint32)
        self._num_drawn += logits.shape[0]
        keys = mx.stack([mx.broadcast_to(self._seed, numbers.shape), numbers], axis=-1)
        return mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(logits, keys)


def apply_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Set all but the `top_k` most likely of [B, V] log-probabilities to -inf."""
    if not 0 < top_k < logprobs.shape[-1]:
        return logprobs
    dropped = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, dropped, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def apply_top_p(logprobs: mx.array, top_p: float, total: mx.array | None = None) -> mx.array:
    """Set the tail of [B, V] log-probabilities beyond a total probability to -inf.

    A token stays while the probability of all likelier ones is below `top_p`.

    Args:
        logprobs: Log-probabilities, of the whole vocabulary or of its most likely tokens.
        top_p: Share of `total` to keep.
        total: [B, 1] float32, probability of the whole vocabulary; None takes that of `logprobs`.
    """
    ascending = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ascending.astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    if total is None:
        total = above[..., :1] + probabilities[..., :1]
    num_dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ascending, num_dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)


def apply_min_p(logprobs: mx.array, min_p: float, min_tokens_to_keep: int = 1) -> mx.array:
    """Set [B, V] log-probabilities below `min_p` times the largest probability to -inf."""
    top = mx.max(logprobs, axis=-1, keepdims=True)
    is_dropped = logprobs < top + math.log(min_p)
    if min_tokens_to_keep > 1:
        first = mx.argpartition(-logprobs, kth=min_tokens_to_keep - 1, axis=-1)
        first = first[..., :min_tokens_to_keep]
        is_dropped = mx.put_along_axis(is_dropped, first, mx.array(False), axis=-1)
    return mx.where(is_dropped, -mx.inf, logprobs)


def make_logits_processors(
    logit_bias: Mapping[int, float] | None = None,
    repetition_penalty: float | None = None,
    repetition_context_size: int = 20,
    suppress_tokens: Sequence[int] = (),
) -> list[LogitsProcessor]:
    """Return the functions from (tokens so far, logits [B, V]) to logits, in order of use.

    Args:
        logit_bias: Added to the logits of these tokens.
        repetition_penalty: Above 1 makes recent tokens less likely; None and 1 leave them.
        repetition_context_size: How many tokens count as recent.
        suppress_tokens: Never produced, greedily neither (`generation_config.json`).

    Raises:
        OptionError: A value out of its range.

    Source: mlx-lm sample_utils.py, make_logits_processors; transformers
    generation/logits_process.py, SuppressTokensLogitsProcessor.
    """
    processors: list[LogitsProcessor] = []
    if logit_bias:
        processors.append(_make_addition(list(logit_bias), list(logit_bias.values())))
    if repetition_penalty is not None and repetition_penalty != 1:
        _check("repetition_penalty", repetition_penalty, repetition_penalty > 0, "above 0")
        processors.append(_make_repetition_penalty(repetition_penalty, repetition_context_size))
    if suppress_tokens:
        processors.append(_make_addition(list(suppress_tokens), [-math.inf] * len(suppress_tokens)))
    return processors


def _make_addition(tokens: list[int], values: list[float]) -> LogitsProcessor:
    indices, addends = mx.array(tokens), mx.array(values)
    return lambda _, logits: logits.at[:, indices].add(addends)


def _make_repetition_penalty(penalty: float, context_size: int) -> LogitsProcessor:
    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        recent = tokens[-context_size:]
        chosen = logits[:, recent]
        logits[:, recent] = mx.where(chosen < 0, chosen * penalty, chosen / penalty)
        return logits

    return process


def _check(name: str, value: float, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise OptionError(f"{name} is {value}; allowed is {allowed}")
