"""Speculative decoding: one forward pass verifies a draft, and the caches' counters roll back.

A pass over the last token and a draft gives logits at every place.  A token is drawn for each, as
it would be without a draft; the draft is right up to the first place where the two differ, and the
token drawn there comes instead.  So every token is drawn from the distribution that it has without
drafts.  For a draft that is no random choice itself, this is rejection sampling: a draft token of
probability p is accepted with probability p, and otherwise another comes with its share of 1 - p.
"""

from collections.abc import Generator, Sequence
from typing import Literal, cast, get_args

import mlx.core as mx

from mlx_gemma4.cache import PromptCache, trim_prompt_cache
from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.generate import (
    STEPS_PER_CLEAR,
    PromptProgressCallback,
    TokenChooser,
    prefill,
)
from mlx_gemma4.generation.lookup import PromptLookup
from mlx_gemma4.generation.reading import count_tokens
from mlx_gemma4.generation.sampling import (
    GreedySampler,
    LogitsProcessor,
    RewindableSampler,
)
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.prompt_cache.store import PromptReading

Speculate = Literal["lookup", "off"]


def check_speculate(speculate: str) -> None:
    """Refuse a kind of speculation that there is not.

    Raises:
        OptionError: It is none of "lookup" and "off".
    """
    if speculate not in get_args(Speculate):
        allowed = " and ".join(get_args(Speculate))
        raise OptionError(f'speculate is "{speculate}"; allowed are {allowed}')


def speculative_generate_step(
    inputs: ModelInputs,
    model: Gemma4,
    lookup: PromptLookup,
    *,
    max_tokens: int = -1,
    sampler: RewindableSampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    prompt_cache: PromptCache | None = None,
    prefill_step_size: int | None = None,
    prompt_progress_callback: PromptProgressCallback | None = None,
    reading: PromptReading | None = None,
) -> Generator[tuple[int, mx.array, bool], None, None]:
    """Yield (token, log-probabilities [V] float32, whether it was drafted), like `generate_step`.

    While there is nothing to draft from, the next step is launched before a token is read, as in
    `generate_step`.  A draft has to know the token before it: that step waits for Python, and so
    does the one after it, which has to know what was accepted.

    Whenever the caller stops, the cache holds what `generate_step` would have left in it.  Of the
    ring's slack some is then used up: fewer positions than usual can be undone until as many
    tokens more have been read.

    Args:
        inputs: The prompt, or what follows `prompt_cache`.
        model: With parameters loaded.
        lookup: Has read the prompt.
        max_tokens: -1 goes on to the end of the context.
        sampler: Log-probabilities [B, V] to tokens [B]; None is greedy.
        logits_processors: Applied in order to the logits of each place, with the tokens up to it:
            draft tokens too, so their result must depend on what they are given alone.
        prompt_cache: From `model.make_cache`, updated; None makes one.
        prefill_step_size: Positions of one prefill chunk; None takes as many as memory allows.
        prompt_progress_callback: Called with (positions read, positions of the prompt).
        reading: What is known of the prompt already, instead of `prompt_cache`.

    Raises:
        As `plan_reading`.

    Source: mlx-lm generate.py, speculative_generate_step; Leviathan et al., Fast Inference from
    Transformers via Speculative Decoding, 2023, section 2.3.
    """
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    cache = cache if reading is None else reading.prompt_cache
    sampler = sampler or GreedySampler()
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
    start, count, steps = cache[0].offset, 0, 0
    token, logprobs = chooser.choose(logits)
    mx.async_eval(token)
    is_read = False
    try:
        while count + 1 < limit:
            count += 1
            draft: list[int] = []
            # A text that was predictable up to the token probably goes on so: it is worth reading.
            if is_read or lookup.draft():
                lookup.add(cast(int, token.item()))
                is_read = True
                # One token always follows the draft.
                draft = lookup.draft(limit - count - 1)
            ids = mx.concatenate([token, mx.array(draft, token.dtype)]) if draft else token
            logits = model.forward(ids[None], [], (), cache).squeeze(0)
            following = chooser.choose_all(logits, ids[1:]) if draft else chooser.choose(logits)
            mx.async_eval(following[0])
            yield cast(int, token.item()), logprobs[0], False
            if not is_read:
                lookup.add(cast(int, token.item()))
            is_read = bool(draft)
            tokens, logprobs = following
            num_accepted = _count_accepted(draft, tokens) if draft else 0
            if draft:
                trim_prompt_cache(cache, len(draft) - num_accepted)
                sampler.rewind(len(draft) - num_accepted)
                chooser.add(tokens[: num_accepted + 1])
                lookup.learn(len(draft), num_accepted)
            for index in range(num_accepted):
                count += 1
                lookup.add(draft[index])
                yield draft[index], logprobs[index], True
            token, logprobs = tokens[num_accepted:][:1], logprobs[num_accepted:][:1]
            steps += 1
            if steps % STEPS_PER_CLEAR == 0:
                mx.clear_cache()
        count += 1
        yield cast(int, token.item()), logprobs[0], False
    except GeneratorExit:
        # Positions and draws beyond what one step ahead of the last token yielded has.
        ahead = cache[0].offset - (start + min(count, limit - 1))
        trim_prompt_cache(cache, ahead)
        sampler.rewind(ahead)
        raise


def _count_accepted(draft: Sequence[int], tokens: mx.array) -> int:
    """Return how many tokens of a draft are those drawn for their places."""
    drawn = cast(list[int], tokens.tolist())
    pairs = zip(draft, drawn, strict=False)  # one more was drawn than drafted
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(draft))
