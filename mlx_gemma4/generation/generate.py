"""The token loop: prefill in chunks, then one token a step with the next step always in flight."""

from collections.abc import Callable, Generator, Sequence
from typing import cast

import mlx.core as mx

from mlx_gemma4.cache import PromptCache
from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.generation.sampling import LogitsProcessor, Sampler
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4

# Positions of one prefill chunk: enough rows for full matmul speed, few enough for activations of
# some hundred megabytes on the 12B.
PREFILL_STEP_SIZE = 2048

# Called with (positions read, positions of the prompt), before the first chunk and after each.
PromptProgressCallback = Callable[[int, int], None]


def prefill(
    inputs: ModelInputs,
    model: Gemma4,
    prompt_cache: PromptCache,
    *,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    prompt_progress_callback: PromptProgressCallback | None = None,
) -> mx.array:
    """Read a prompt into the cache; return the logits after its last position, [1, V] float32.

    No picture is cut: a chunk ends before it, or is as long as it.

    Raises:
        InputError: The prompt is empty, or longer than the model's context.
        OptionError: A chunk size below 1.
    """
    report = prompt_progress_callback or (lambda done, total: None)
    if not len(inputs):
        raise InputError("the prompt is empty; give at least one token")
    if prefill_step_size < 1:
        raise OptionError(f"prefill_step_size is {prefill_step_size}; allowed is 1 or more")
    context = model.config.text_config.max_position_embeddings
    end = prompt_cache[0].offset + len(inputs)
    if end > context:
        raise InputError(
            f"the prompt has {end} tokens, the model's context {context}; shorten the prompt, or "
            "give pictures fewer soft tokens"
        )
    report(0, len(inputs))
    done = 0
    *chunks, last = inputs.chunks(prefill_step_size)
    for chunk in chunks:
        model(chunk, prompt_cache, logits_to_keep=1)  # the logits are never computed
        mx.eval([layer_cache.state for layer_cache in prompt_cache])
        mx.clear_cache()
        done += len(chunk)
        report(done, len(inputs))
    logits = model(last, prompt_cache, logits_to_keep=1)
    mx.async_eval(logits)
    report(len(inputs), len(inputs))
    return logits


def generate_step(
    inputs: ModelInputs,
    model: Gemma4,
    *,
    max_tokens: int = -1,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    prompt_cache: PromptCache | None = None,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    prompt_progress_callback: PromptProgressCallback | None = None,
) -> Generator[tuple[int, mx.array], None, None]:
    """Yield (token, log-probabilities [V] float32) until `max_tokens`, or the end of the context.

    The step after a token is launched before the token is read, so that the device never waits for
    Python.  Stopping at an end-of-sequence token is the caller's.

    Args:
        inputs: The prompt, or what follows `prompt_cache`.
        model: With parameters loaded.
        max_tokens: -1 goes on to the end of the context.
        sampler: Log-probabilities [1, V] to tokens [1]; None is greedy.
        logits_processors: Applied in order to the logits.
        prompt_cache: From `model.make_cache`, updated; None makes one.
        prefill_step_size: Positions of one prefill chunk.
        prompt_progress_callback: Called with (positions read, positions of the prompt).

    Raises:
        InputError: The prompt is empty, or longer than the model's context.
        OptionError: A chunk size below 1.

    Source: mlx-lm generate.py, generate_step.
    """
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    sampler = sampler or (lambda logprobs: mx.argmax(logprobs, axis=-1))
    processors = logits_processors or []
    tokens = mx.array(inputs.input_ids) if processors else None

    def choose(logits: mx.array) -> tuple[mx.array, mx.array]:
        """Return the next token [1] and its log-probabilities [1, V]."""
        nonlocal tokens
        for process in processors:
            assert tokens is not None
            logits = process(tokens, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        token = sampler(logprobs)
        if tokens is not None:
            tokens = mx.concatenate([tokens, token.astype(tokens.dtype)])
        return token, logprobs

    logits = prefill(
        inputs,
        model,
        cache,
        prefill_step_size=prefill_step_size,
        prompt_progress_callback=prompt_progress_callback,
    )
    room = model.config.text_config.max_position_embeddings - cache[0].offset
    limit = room if max_tokens < 0 else min(max_tokens, room)
    if limit == 0:
        return
    token, logprobs = choose(logits)
    mx.async_eval(token, logprobs)
    for count in range(1, limit + 1):
        following = None
        if count < limit:
            logits = model.forward(token[None], [], (), cache)[0]
            following = choose(logits)
            mx.async_eval(*following)
        yield cast(int, token.item()), logprobs[0]
        if following is None:
            return
        token, logprobs = following
        if count % 256 == 0:
            mx.clear_cache()
