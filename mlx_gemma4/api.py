"""What a program calls: load a checkpoint, ask it, get an answer."""

from collections.abc import Generator, Sequence
from typing import Any, TypedDict, Unpack

from mlx_gemma4.cache import PromptCache
from mlx_gemma4.config import GenerationConfig
from mlx_gemma4.generation.generate import PromptProgressCallback
from mlx_gemma4.generation.sampling import (
    LogitsProcessor,
    Sampler,
    make_logits_processors,
    make_sampler,
)
from mlx_gemma4.generation.stream import GenerationResponse, GenerationResult, stream_response
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.processor import Processor, Prompt, PromptOptions


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; what is left out is the checkpoint's generation_config.

    Attributes:
        temp: 0 takes the most likely token.
        top_p: Keep the most likely tokens up to this total probability.
        top_k: Keep this many of the most likely tokens; 0 keeps all.
        min_p: Keep tokens at least this fraction as likely as the most likely one.
        repetition_penalty: Above 1 makes recent tokens less likely.
        seed: Makes the answer repeatable.
        sampler: Replaces all of the above but the penalty.
        logits_processors: Applied after those of the options.
    """

    temp: float | None
    top_p: float | None
    top_k: int | None
    min_p: float
    repetition_penalty: float | None
    seed: int | None
    sampler: Sampler | None
    logits_processors: Sequence[LogitsProcessor]


class GenerateOptions(PromptOptions, SamplingOptions, total=False):
    """Everything that may be said about an answer.

    Attributes:
        max_tokens: -1, the default, goes on to the end of the answer or of the context.
        stop: Texts that end the answer.
        prompt_cache: From `model.make_cache`: what was read before the prompt; updated.
        prefill_step_size: Positions that are read at a time.
        prompt_progress_callback: Called with (positions read, positions of the prompt).
    """

    max_tokens: int
    stop: Sequence[str]
    prompt_cache: PromptCache | None
    prefill_step_size: int
    prompt_progress_callback: PromptProgressCallback | None


_LOOP_OPTIONS = ("max_tokens", "prompt_cache", "prefill_step_size", "prompt_progress_callback")


def stream_generate(
    model: Gemma4,
    processor: Processor,
    prompt: Prompt | ModelInputs,
    **options: Unpack[GenerateOptions],
) -> Generator[GenerationResponse, None, None]:
    """Yield an answer while it arrives; the last part has a `finish_reason`.

    Args:
        model: From `load`.
        processor: From `load`.
        prompt: A text, a conversation, or what `processor` made of one.
        options: See `GenerateOptions`.

    Raises:
        InputError: The prompt or a medium cannot be honoured.
        OptionError: An option has a value that is not allowed.
    """
    given: dict[str, Any] = dict(options)
    prompt_options = _take(given, PromptOptions)
    sampling = _take(given, SamplingOptions)
    stop = given.pop("stop", ())
    loop = {name: given.pop(name) for name in _LOOP_OPTIONS if name in given}
    if given:
        raise TypeError(f"unknown options: {', '.join(sorted(given))}")
    if isinstance(prompt, ModelInputs):
        if prompt_options:
            raise TypeError(f"{', '.join(prompt_options)}: the prompt is prepared already")
        inputs = prompt
    else:
        inputs = processor(prompt, **prompt_options)
    sampler, logits_processors = _choose_sampling(model.generation_config, **sampling)
    yield from stream_response(
        inputs,
        model,
        processor.tokenizer,
        eos_token_ids=model.generation_config.eos_token_ids,
        stop=stop,
        sampler=sampler,
        logits_processors=logits_processors,
        **loop,
    )


def generate(
    model: Gemma4,
    processor: Processor,
    prompt: Prompt | ModelInputs,
    **options: Unpack[GenerateOptions],
) -> str:
    """Return the text of an answer; `generate_result` returns all of it.

    Arguments and errors are those of `stream_generate`.
    """
    return generate_result(model, processor, prompt, **options).text


def generate_result(
    model: Gemma4,
    processor: Processor,
    prompt: Prompt | ModelInputs,
    **options: Unpack[GenerateOptions],
) -> GenerationResult:
    """Return an answer with its thinking, tool calls, notes, and statistics.

    Arguments and errors are those of `stream_generate`.
    """
    return GenerationResult.from_responses(stream_generate(model, processor, prompt, **options))


def _take(given: dict[str, Any], kind: type) -> dict[str, Any]:
    """Move the options that a TypedDict declares out of `given`."""
    return {name: given.pop(name) for name in kind.__annotations__ if name in given}


def _choose_sampling(
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
    """Return sampler and processors; a value of None is the checkpoint's."""
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
