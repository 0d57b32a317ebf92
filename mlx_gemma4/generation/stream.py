"""Tokens into an answer: channels told apart, stops recognised, speed and memory counted."""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx

from mlx_gemma4.cache import PromptCache, global_caches
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.lookup import (
    MAX_DRAFT_TOKENS,
    PromptLookup,
    check_num_draft_tokens,
)
from mlx_gemma4.generation.reading import memory_context, plan_reading, reserve
from mlx_gemma4.generation.reply import FinishReason, Reply, ReplyPart
from mlx_gemma4.generation.sampling import RewindableSampler, Sampler
from mlx_gemma4.generation.speculation import (
    Speculate,
    check_speculate,
    speculative_generate_step,
)
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels import registry
from mlx_gemma4.memory import COMPACT_KV_BITS, PREFILL_STEPS, MemoryPlan, format_bytes
from mlx_gemma4.messages import ToolCall
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.tokenizer import Tokenizer
from mlx_gemma4.prompt_cache.store import PromptReading


@dataclass(frozen=True, kw_only=True)
class GenerationResponse:
    """What one token added, and the account so far; the names are mlx-lm's.

    Attributes:
        text: New words of the answer.
        thinking: New words of the thinking channel.
        tool_calls: Calls that this token completed.
        token: The token; None in a last part that only gives out what was held back.
        logprobs: [V] float32, log-probabilities of the token's place; None as `token`.
        from_draft: Whether the token was drafted, and the model accepted it.
        prompt_tokens: Positions of the prompt.
        cached_tokens: How many of them were known already.
        prompt_tps: Positions of the prompt read per second, media included, known ones not.
        generation_tokens: Tokens so far.
        generation_tps: Tokens per second after the first.
        peak_memory: Gigabytes (10^9 bytes) that MLX held at most in this process.
        prefill_step_size: Positions of the prompt read at a time.
        kv_bits: Of global layers' rows in the cache: 16 is the dtype of activations, 8 is int8.
        speculate: Where drafts came from: "lookup", or "off" if there were none, as a note says
            where they had been asked for.
        draft_tokens: Tokens that were drafted so far.
        accepted_tokens: How many of the tokens so far were drafted.
        forwards: Forward passes that gave the tokens so far, the prompt's last one included.
        finish_reason: In the last part: "stop", "length", or "tool_calls".
        notes: What the prompt's preparation and the answer have to say, so far.
        kernels: Metal kernels that were on; the rest ran on MLX's own operations.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    token: int | None = None
    logprobs: mx.array | None = None
    from_draft: bool = False
    prompt_tokens: int
    cached_tokens: int = 0
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    prefill_step_size: int = 0
    kv_bits: int = 16
    speculate: Speculate = "off"
    draft_tokens: int = 0
    accepted_tokens: int = 0
    forwards: int = 0
    finish_reason: FinishReason | None = None
    notes: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """A whole answer.

    Attributes:
        text: The answer.
        thinking: What was thought before it; "" if nothing was.
        tool_calls: Functions that the model asks to be run.
        tokens: Every generated token, end-of-sequence included.
        finish_reason: "stop", "length", "tool_calls"; None if the caller stopped listening.
        notes: What was resized, resampled, cut, or not understood: one line each.

    The others are as in `GenerationResponse`.
    """

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    prefill_step_size: int
    kv_bits: int
    speculate: Speculate
    draft_tokens: int
    accepted_tokens: int
    forwards: int
    notes: tuple[str, ...]
    kernels: tuple[str, ...]

    @classmethod
    def from_responses(cls, responses: Iterable[GenerationResponse]) -> Self:
        """Join the parts of a stream, which may have been left early.

        Raises:
            ValueError: There are no parts.
        """
        text: list[str] = []
        thinking: list[str] = []
        tool_calls: list[ToolCall] = []
        tokens: list[int] = []
        last = None
        for last in responses:  # none is kept: each holds the log-probabilities of a vocabulary
            text.append(last.text)
            thinking.append(last.thinking)
            tool_calls.extend(last.tool_calls)
            if last.token is not None:
                tokens.append(last.token)
        if last is None:
            raise ValueError("no response to make a result of")
        return cls(
            text="".join(text),
            thinking="".join(thinking),
            tool_calls=tuple(tool_calls),
            tokens=tuple(tokens),
            finish_reason=last.finish_reason,
            prompt_tokens=last.prompt_tokens,
            cached_tokens=last.cached_tokens,
            prompt_tps=last.prompt_tps,
            generation_tokens=last.generation_tokens,
            generation_tps=last.generation_tps,
            peak_memory=last.peak_memory,
            prefill_step_size=last.prefill_step_size,
            kv_bits=last.kv_bits,
            speculate=last.speculate,
            draft_tokens=last.draft_tokens,
            accepted_tokens=last.accepted_tokens,
            forwards=last.forwards,
            notes=last.notes,
            kernels=last.kernels,
        )


def stream_response(
    inputs: ModelInputs,
    model: Gemma4,
    tokenizer: Tokenizer,
    *,
    eos_token_ids: Sequence[int],
    stop: Sequence[str] = (),
    sampler: Sampler | None = None,
    max_tokens: int = -1,
    prompt_cache: PromptCache | None = None,
    prefill_step_size: int | None = None,
    speculate: Speculate = "off",
    num_draft_tokens: int = MAX_DRAFT_TOKENS,
    reading: PromptReading | None = None,
    **options: Any,
) -> Generator[GenerationResponse, None, None]:
    """Yield what each token adds to the answer; the last part has a `finish_reason`.

    Args:
        inputs: The prompt.
        model: With parameters loaded.
        tokenizer: The checkpoint's.
        eos_token_ids: Any of these ends the answer and is not part of it.
        stop: Any of these texts in the answer ends it and is not part of it.
        sampler: Log-probabilities [B, V] to tokens [B]; None is greedy.  With one that cannot take
            draws back, `speculate` is off, with a note.
        max_tokens: -1 goes on to the end of the context, or of the memory for it, with a note.
        prompt_cache: From `model.make_cache`, updated; None makes one.  If neither has settled its
            bits, they are 16, or 8 where these alone fit, with a note.
        prefill_step_size: Positions of a chunk; None takes as many as memory allows, with a note
            where those are fewer than they could be.
        speculate: "lookup" drafts tokens from n-grams of the prompt and the answer.
        num_draft_tokens: Tokens of a draft at most.
        reading: What is known of the prompt, instead of a `prompt_cache`; gets the answer's tokens.
        options: The others of `generate_step`.

    Raises:
        InputError: The prompt is empty, or longer than the model's context.
        MemoryLimitError: The prompt does not fit into memory.
        OptionError: An option out of its range.
    """
    check_speculate(speculate)
    check_num_draft_tokens(num_draft_tokens)
    reply = Reply(inputs, tokenizer, eos_token_ids=eos_token_ids, stop=stop)
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    remaining = inputs
    if reading is not None:
        cache, remaining = reading.prompt_cache, reading.remaining
    plan = plan_reading(
        remaining, model, cache, max_tokens=max_tokens, prefill_step_size=prefill_step_size
    )
    is_compacted = any(c.row_format.bits != plan.kv_bits for c in global_caches(cache))
    reserve(model, cache, plan)  # what is said of bits stays true, whatever memory does next
    cached_tokens = 0 if reading is None else reading.cached_tokens
    account = _Account(inputs, plan, cached_tokens)
    if is_compacted:
        assert model.memory_limit is not None
        limit = model.memory_limit
        account.add_note(
            f"global layers keep int8 rows, since 16 bits do not fit; so it needs {plan}; "
            f"{limit.source} {format_bytes(limit.limit_bytes)}"
        )
    if prefill_step_size is None and plan.prefill_step_size < min(len(inputs), PREFILL_STEPS[0]):
        account.add_note(
            f"the prompt is read {plan.prefill_step_size:,} tokens at a time, which takes "
            f"{format_bytes(plan.workspace_bytes)} of temporary memory"
        )
    options |= {
        "max_tokens": max_tokens,
        "prompt_cache": cache,
        "prefill_step_size": plan.prefill_step_size,
        "reading": reading,
    }
    steps: Generator[tuple[int, mx.array, bool], None, None]
    if speculate == "lookup" and isinstance(sampler, RewindableSampler | None):
        account.lookup = PromptLookup(
            inputs, stop_tokens=eos_token_ids, num_draft_tokens=num_draft_tokens
        )
        steps = speculative_generate_step(inputs, model, account.lookup, sampler=sampler, **options)
    else:
        if speculate != "off":
            account.add_note(
                "prompt lookup is off: the sampler has no rewind(), which takes back the draws "
                "for tokens that are not accepted; make_sampler makes one that has"
            )
        plain = generate_step(inputs, model, sampler=sampler, **options)
        steps = ((token, logprobs, False) for token, logprobs in plain)
    # Closed at once, whoever still refers to it: then the prompt cache is as it is described.
    with closing(steps):
        for token, logprobs, from_draft in steps:
            account.count(from_draft)
            if reading is not None:
                reading.tokens.append(token)
            response = account.respond(reply.add(token), token, logprobs)
            yield response
            if response.finish_reason:
                return
    if max_tokens < 0 and (room := memory_context(model, cache)) < _context_of(model):
        compact = memory_context(model, cache, COMPACT_KV_BITS)
        more = f", {compact:,} with --kv-bits {COMPACT_KV_BITS}" if compact > room else ""
        account.add_note(
            f"the answer ends where memory does: {room:,} tokens with the prompt{more}"
        )
    yield account.respond(reply.end())


def _context_of(model: Gemma4) -> int:
    return model.config.text_config.max_position_embeddings


class _Account:
    """Counts tokens and time of one answer, and turns parts of output into responses.

    Attributes:
        lookup: Where drafts come from; None if there are none.
    """

    def __init__(self, inputs: ModelInputs, plan: MemoryPlan, cached_tokens: int = 0) -> None:
        self.lookup: PromptLookup | None = None
        self._prompt_tokens, self._cached_tokens = len(inputs), cached_tokens
        self._plan = plan
        self._notes = list(inputs.notes)
        self._start = self._first = self._last = time.perf_counter()
        self._tokens = self._accepted = 0
        self._is_drafted = False  # the last token

    def add_note(self, note: str) -> None:
        """Add a line to what there is to say."""
        self._notes.append(note)

    def count(self, from_draft: bool) -> None:
        """Note that a token has come."""
        self._last = time.perf_counter()
        self._tokens += 1
        self._accepted += from_draft
        self._is_drafted = from_draft
        if self._tokens == 1:
            self._first = self._last

    def respond(
        self, part: ReplyPart, token: int | None = None, logprobs: mx.array | None = None
    ) -> GenerationResponse:
        """Return the response for a part of the answer.

        Args:
            part: What is new.
            token: That brought it.
            logprobs: Of the token's place.
        """
        self._notes.extend(part.notes)
        read_s, generated_s = self._first - self._start, self._last - self._first
        return GenerationResponse(
            text=part.text,
            thinking=part.thinking,
            tool_calls=part.tool_calls,
            token=token,
            logprobs=logprobs,
            from_draft=self._is_drafted and token is not None,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            prompt_tps=(self._prompt_tokens - self._cached_tokens) / read_s if read_s > 0 else 0.0,
            generation_tokens=self._tokens,
            generation_tps=(self._tokens - 1) / generated_s if generated_s > 0 else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            prefill_step_size=self._plan.prefill_step_size,
            kv_bits=self._plan.kv_bits,
            speculate="lookup" if self.lookup else "off",
            draft_tokens=self.lookup.draft_tokens if self.lookup else 0,
            accepted_tokens=self._accepted,
            # A pass gives one token that is not drafted, after those that are.
            forwards=self._tokens - self._accepted + self._is_drafted,
            finish_reason=part.finish_reason,
            notes=tuple(self._notes),
            kernels=registry.all_on(),
        )
