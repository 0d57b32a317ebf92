"""The token loop: prefill in chunks, then one token a step with the next step always in flight."""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_gemma4.cache import PromptCache
from mlx_gemma4.generation.reading import count_tokens, plan_reading, reserve
from mlx_gemma4.generation.sampling import GreedySampler, LogitsProcessor, Sampler
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import bounded
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.prompt_cache.store import PromptReading

# Steps after which MLX gives back the buffers that it keeps for reuse.
STEPS_PER_CLEAR = 256

# Called with (positions read, positions of the prompt), before the first chunk and after each.
PromptProgressCallback = Callable[[int, int], None]


def prefill(
    inputs: ModelInputs,
    model: Gemma4,
    prompt_cache: PromptCache,
    *,
    max_tokens: int = -1,
    prefill_step_size: int | None = None,
    prompt_progress_callback: PromptProgressCallback | None = None,
    reading: PromptReading | None = None,
) -> mx.array:
    """Read a prompt into the cache; return the logits after its last position, [1, V] float32.

    No picture is cut: a chunk ends before it, or is as long as it.  Of a `reading` what remains is
    read, with a snapshot at each of its stops.

    Raises:
        As `plan_reading`.
    """
    stops: Sequence[int] = ()
    if reading is not None:
        inputs, stops = reading.remaining, reading.stops
    plan = plan_reading(
        inputs, model, prompt_cache, max_tokens=max_tokens, prefill_step_size=prefill_step_size
    )
    reserve(model, prompt_cache, plan)
    report = prompt_progress_callback or (lambda done, total: None)
    report(0, len(inputs))
    done = 0
    *chunks, last = (
        chunk
        for start, stop in pairwise(sorted({0, *stops, len(inputs)}))
        for chunk in inputs.slice(start, stop).chunks(plan.prefill_step_size)
    )
    with bounded(plan):
        for chunk in chunks:
            model(chunk, prompt_cache, logits_to_keep=1)  # the logits are never computed
            mx.eval([layer_cache.state for layer_cache in prompt_cache])
            mx.clear_cache()
            done += len(chunk)
            if reading is not None and done in stops:
                reading.take_snapshot()
            report(done, len(inputs))
        logits = model(last, prompt_cache, logits_to_keep=1)
        mx.eval(logits)
        if reading is not None:
            reading.take_snapshot()
    report(len(inputs), len(inputs))
    return logits


class TokenChooser:
    """Chooses tokens: processors, which see the tokens so far, change the logits for a sampler.

    Args:
        input_ids: The prompt, [L] integer.
        sampler: Log-probabilities [B, V] to tokens [B]; None is greedy.
        logits_processors: Applied in order.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        sampler: Sampler | None = None,
        logits_processors: Sequence[LogitsProcessor] | None = None,
    ) -> None:
        self.sampler = sampler or GreedySampler()
        self._processors = logits_processors or ()
        self._tokens = mx.array(input_ids) if self._processors else None

    def choose(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Return the next token [1], which is added, and its log-probabilities [1, V], still lazy.

        Args:
            logits: [1, V] after the tokens so far.
        """
        token, logprobs = self._draw(self._process(self._tokens, logits))
        self.add(token)
        return token, logprobs

    def choose_all(self, logits: mx.array, draft: mx.array) -> tuple[mx.array, mx.array]:
        """Return a token for the place of each draft token and the one after, as if all were right.

        The caller adds those that are.

        Args:
            logits: [1 + L, V] after the tokens so far, and after each draft token.
            draft: [L] integer.

        Returns:
            Tokens [1 + L] and log-probabilities [1 + L, V], which are not evaluated yet.
        """
        if self._tokens is not None:
            have = self._tokens.shape[0]
            tokens = mx.concatenate([self._tokens, draft.astype(self._tokens.dtype)])
            rows = [
                self._process(tokens[: have + index], logits[index : index + 1])
                for index in range(logits.shape[0])
            ]
            logits = mx.concatenate(rows)
        return self._draw(logits)

    def add(self, tokens: mx.array) -> None:
        """Go on with tokens [N]."""
        if self._tokens is not None:
            self._tokens = mx.concatenate([self._tokens, tokens.astype(self._tokens.dtype)])

    def _draw(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        # The greedy choice is that of the logits: log-probabilities are then made if they are read.
        is_greedy = isinstance(self.sampler, GreedySampler)
        return self.sampler(logits if is_greedy else logprobs), logprobs

    def _process(self, tokens: mx.array | None, logits: mx.array) -> mx.array:
        for process in self._processors:
            assert tokens is not None
            logits = process(tokens, logits)
        return logits


def generate_step(
    inputs: ModelInputs,
    model: Gemma4,
    *,
    max_tokens: int = -1,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    prompt_cache: PromptCache | None = None,
    prefill_step_size: int | None = None,
    prompt_progress_callback: PromptProgressCallback | None = None,
    reading: PromptReading | None = None,
) -> Generator[tuple[int, mx.array], None, None]:
    """Yield (token, log-probabilities [V] float32) until `max_tokens`, or the end of the context.

    Without `max_tokens` the context ends where the model's does, or the memory for it.

    The step after a token is launched before the token is read, so that the device never waits for
    Python.  Stopping at an end-of-sequence token is the caller's.

    Args:
        inputs: The prompt, or what follows `prompt_cache`; all of it if there is a `reading`.
        model: With parameters loaded.
        max_tokens: -1 goes on to the end of the context.
        sampler: Log-probabilities [1, V] to tokens [1]; None is greedy.
        logits_processors: Applied in order to the logits.
        prompt_cache: From `model.make_cache`, updated; None makes one.
        prefill_step_size: Positions of one prefill chunk; None takes as many as memory allows.
        prompt_progress_callback: Called with (positions read, positions of the prompt).
        reading: What is known of the prompt already, instead of `prompt_cache`.

    Raises:
        As `plan_reading`.

    Source: mlx-lm generate.py, generate_step.
    """
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    cache = cache if reading is None else reading.prompt_cache
    chooser = TokenChooser(inputs.input_ids, sampler, logits_processors)
    logits = prefill(
        inputs,
        model,
        cache,
        max_tokens=max_tokens,
        prefill_step_size=prefill_step_size,
        prompt_progress_callback=prompt_progress_callback,
        reading=reading,
    )
    limit = count_tokens(model, cache, max_tokens)
    if limit == 0:
        return
    token, logprobs = chooser.choose(logits)
    mx.async_eval(token)
    for count in range(1, limit + 1):
        following = None
        if count < limit:
            logits = model.forward(token[None], [], (), cache).squeeze(0)
            following = chooser.choose(logits)
            mx.async_eval(following[0])
        yield cast(int, token.item()), logprobs[0]
        if following is None:
            return
        token, logprobs = following
        if count % STEPS_PER_CLEAR == 0:
            mx.clear_cache()
