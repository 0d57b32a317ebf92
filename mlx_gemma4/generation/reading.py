"""How a prompt is read in the memory there is: positions at a time, and whether it fits."""

import sys

import mlx.core as mx

from mlx_gemma4.cache import PromptCache, global_caches
from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels.shared_rows import PLAIN_ROWS, RowFormat
from mlx_gemma4.memory import (
    PREFILL_STEPS,
    MemoryPlan,
    Reading,
    check_memory,
    choose_reading,
    computes_on_cpu,
    longest_context,
    plan_memory,
)
from mlx_gemma4.model.gemma4 import Gemma4


def plan_reading(
    inputs: ModelInputs,
    model: Gemma4,
    prompt_cache: PromptCache,
    *,
    max_tokens: int = -1,
    prefill_step_size: int | None = None,
) -> MemoryPlan:
    """Return what reading a prompt will take, with the chunk size and the bits of the cache.

    Bits are chosen while nobody has settled them: 16 wherever these fit with any chunk size.

    Args:
        inputs: The prompt, or what follows `prompt_cache`.
        model: With its parameters, and the `memory_limit` that the plan has to keep.
        prompt_cache: Not yet updated; it takes `kv_bits` of the plan with `reserve`.
        max_tokens: Of the answer; -1 plans for the prompt alone, and `count_tokens` ends the answer
            where memory does.
        prefill_step_size: Positions of a chunk; None takes as many as temporary memory allows.

    Raises:
        InputError: The prompt is empty, or longer than the model's context.
        MemoryLimitError: It does not fit; the message has the sum, and what would fit.
        OptionError: A chunk size below 1.
    """
    text, limit = model.config.text_config, model.memory_limit
    end = _check_length(inputs, prompt_cache, text.max_position_embeddings)
    if prefill_step_size is not None and prefill_step_size < 1:
        raise OptionError(f"prefill_step_size is {prefill_step_size}; allowed is 1 or more")
    context = min(end + max(0, max_tokens), text.max_position_embeddings)
    sizes = text, _other_bytes(model, prompt_cache), context, model.dtype.size
    row_format = _row_format_of(prompt_cache)
    reading = Reading(
        prefill_step_size or PREFILL_STEPS[0],
        longest_picture=max((span.length for span in inputs.spans if span.is_block), default=0),
        pixel_tokens=inputs.num_patches,
        is_cpu=computes_on_cpu(),
        kv_bits=row_format.bits,
        kv_rows=_kv_rows_of(row_format),
        copied_tokens=_count_copied(prompt_cache, context),
    )
    reading = choose_reading(
        *sizes,
        limit_bytes=limit.limit_bytes if limit else sys.maxsize,
        reading=reading,
        may_shorten=prefill_step_size is None,
        may_compact=any(layer_cache.are_bits_open for layer_cache in global_caches(prompt_cache)),
    )
    if limit is None:
        return plan_memory(*sizes, reading)
    weights_bytes, item_bytes = sizes[1], sizes[3]
    return check_memory(
        text,
        weights_bytes,
        context,
        item_bytes=item_bytes,
        limit=limit,
        reading=reading,
        may_shorten=prefill_step_size is None,
        has_rows=any(layer_cache.state for layer_cache in global_caches(prompt_cache)),
    )


def count_tokens(model: Gemma4, prompt_cache: PromptCache, max_tokens: int) -> int:
    """Return how many tokens may follow what the cache holds.

    Args:
        model: Whose context it is.
        prompt_cache: After prefill.
        max_tokens: -1 goes on to the end of the context, or of what memory holds.
    """
    offset = prompt_cache[0].offset
    room = model.config.text_config.max_position_embeddings - offset
    if max_tokens >= 0:
        return min(max_tokens, room)
    return max(0, min(room, memory_context(model, prompt_cache) - offset))


def memory_context(model: Gemma4, prompt_cache: PromptCache, kv_bits: int | None = None) -> int:
    """Return the positions of a conversation for which there is memory, at most the context.

    Args:
        model: Whose context and `memory_limit` it is.
        prompt_cache: Of the conversation.
        kv_bits: As if the cache had these; None takes its own.
    """
    text, row_format = model.config.text_config, _row_format_of(prompt_cache)
    if model.memory_limit is None:
        return text.max_position_embeddings
    return longest_context(
        text,
        _other_bytes(model, prompt_cache),
        model.memory_limit.limit_bytes,
        model.dtype.size,
        Reading(
            PREFILL_STEPS[-1],
            is_cpu=computes_on_cpu(),
            kv_bits=kv_bits or row_format.bits,
            kv_rows=_kv_rows_of(row_format),
        ),
    )


def reserve(model: Gemma4, prompt_cache: PromptCache, plan: MemoryPlan) -> None:
    """Have caches keep to a plan.

    Rows have its bits; room for its positions is made at once, and more as far as memory allows.
    """
    for layer_cache in global_caches(prompt_cache):
        layer_cache.choose_bits(plan.kv_bits)
    limit_tokens = memory_context(model, prompt_cache)
    for layer_cache in global_caches(prompt_cache):
        layer_cache.context_tokens = plan.context_tokens
        layer_cache.limit_tokens = limit_tokens


def _row_format_of(prompt_cache: PromptCache) -> RowFormat:
    """Return how global layers keep their rows."""
    return next((c.row_format for c in global_caches(prompt_cache)), PLAIN_ROWS)


def _kv_rows_of(row_format: RowFormat) -> str:
    return "shared" if row_format.has_keys else "value"


def _check_length(inputs: ModelInputs, prompt_cache: PromptCache, context: int) -> int:
    """Return the position after the prompt."""
    if not len(inputs):
        raise InputError("the prompt is empty; give at least one token")
    end = prompt_cache[0].offset + len(inputs)
    if end > context:
        raise InputError(
            f"the prompt has {end} tokens, the model's context {context}; shorten the prompt, or "
            "give pictures fewer soft tokens"
        )
    return end


def _count_copied(prompt_cache: PromptCache, context_tokens: int) -> int:
    """Return the positions whose rows are copied when there is room for a context."""
    return max(
        (
            layer_cache.offset
            for layer_cache in global_caches(prompt_cache)
            if layer_cache.allocated < context_tokens
        ),
        default=0,
    )


def _other_bytes(model: Gemma4, prompt_cache: PromptCache) -> int:
    """Return the bytes of everything but this conversation.

    Parameters may still be in their files; other models and conversations may be in memory.
    """
    own_bytes = sum(layer_cache.nbytes for layer_cache in prompt_cache)
    return max(model.nbytes, mx.get_active_memory() - own_bytes)
