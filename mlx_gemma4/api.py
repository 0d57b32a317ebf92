"""What a program calls: load a checkpoint, ask it, get an answer."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import mlx.core as mx

from mlx_gemma4.cache import PromptCache
from mlx_gemma4.config import Config, GenerationConfig
from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.generate import PromptProgressCallback
from mlx_gemma4.generation.sampling import (
    LogitsProcessor,
    Sampler,
    choose_sampling,
)
from mlx_gemma4.generation.speculation import Speculate
from mlx_gemma4.generation.stream import GenerationResponse, GenerationResult, stream_response
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Sizes
from mlx_gemma4.memory import (
    DEFAULT_CONTEXT,
    WORKSPACE_BYTES,
    MemoryLimit,
    Reading,
    check_memory,
    choose_reading,
    computes_on_cpu,
    keep_resident,
    limit_buffers,
    machine_limit,
)
from mlx_gemma4.model.fuse import fuse_projections
from mlx_gemma4.model.gemma4 import KV_BITS, Gemma4, KVRows, check_kv
from mlx_gemma4.model.intervals import ImageAttention
from mlx_gemma4.processing.processor import Processor, Prompt, PromptOptions
from mlx_gemma4.processing.tokenizer import SPECIAL_TOKENS
from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint
from mlx_gemma4.prompt_cache.store import MAX_BYTES, PromptCacheStore
from mlx_gemma4.weights import (
    QUANTIZE_BITS,
    Checkpoint,
    check_quantize,
    load_weights,
    open_checkpoint,
)

_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
_IMAGE_ATTENTION = ("sliding", "all")


def load(
    name: str | Path,
    *,
    dtype: str | mx.Dtype | None = None,
    quantize: int | None = None,
    image_attention: ImageAttention = "sliding",
    kv_bits: int | None = None,
    kv_rows: KVRows = "shared",
    context_tokens: int = DEFAULT_CONTEXT,
    check_limits: bool = True,
    tune: bool = True,
    progress: Callable[[int, int], None] | None = None,
    tune_progress: Callable[[int, int], None] | None = None,
) -> tuple[Gemma4, Processor]:
    """Return the model and the processor of a checkpoint.

    A mistake is found before it is expensive: a wrong model before its weights are downloaded, a
    damaged file before a tensor is read, too little memory before anything is loaded.  Parameters
    stay lazy: they are read from the files when they are first used.  Of freed arrays, MLX keeps
    512 MiB from then on, and no more (`mx.set_cache_limit`).

    Args:
        name: A folder; a name on the Hugging Face Hub such as "google/gemma-4-12B-it", which is
            downloaded unless it is in the cache; or "demo", the small checkpoint in this package.
        dtype: Of activations and unquantized parameters: "bfloat16", "float16", or "float32".
            None is the checkpoint's on a GPU and float32 on a CPU, which is slow at the others.
        quantize: 4 or 8 bits for the decoder's matrices, made while loading.
        image_attention: Layers on which a picture's tokens see each other in both directions.
        kv_bits: Of global layers' rows in the cache: 16 is `dtype`, 8 is int8, half the memory of a
            long context.  None is 16 for each conversation whose prompt and `max_tokens` fit so,
            else 8, if they fit so, with a note; what has begun keeps its bits.
        kv_rows: "value" keeps values alone and makes keys anew when they are read: a fifth less,
            and exact.
        context_tokens: Positions of prompt and answer to have memory for.
        check_limits: Refuse what this machine's memory cannot hold: the model now, and each prompt
            before it is read.
        tune: On the first start with a GPU, also time the kernels, for at most 20 s.  Otherwise
            those that pass their check run, faster or not.
        progress: Called with (matrices done, matrices in all) while quantizing.
        tune_progress: Called with (steps done, steps in all) while kernels are checked and timed.

    Returns:
        The model, with `generation_config` and `notes` (what was left out of the checkpoint, and
        which kernels failed here, one line each), and the processor.

    Raises:
        CheckpointError: It cannot be found, downloaded, read, or trusted; ConfigError if the fault
            is in a config.
        MemoryLimitError: It does not fit; the message has the sum, and what would fit.
        OptionError: An option has a value that is not allowed.
    """
    if image_attention not in _IMAGE_ATTENTION:
        raise OptionError(
            f'image_attention is "{image_attention}"; allowed are {" and ".join(_IMAGE_ATTENTION)}'
        )
    check_kv(kv_bits, kv_rows)
    folder = find_checkpoint(name)
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    chosen_dtype = _choose_dtype(dtype, checkpoint.config)
    if quantize is not None:
        check_quantize(checkpoint, quantize)
    limit = machine_limit() if check_limits else None
    if limit is not None:
        reading = Reading(is_cpu=computes_on_cpu(), kv_bits=kv_bits or KV_BITS[0], kv_rows=kv_rows)
        _check_limit(
            limit,
            checkpoint,
            chosen_dtype.size,
            quantize,
            context_tokens,
            reading,
            may_compact=kv_bits is None,
        )
    # Before the weights, which take longest: a broken tokenizer is then known at once.
    processor = Processor.from_folder(folder, checkpoint.config)
    generation_config = GenerationConfig.from_folder(folder, checkpoint.config)
    weights, quantization = load_weights(
        checkpoint, dtype=chosen_dtype, quantize=quantize, progress=progress
    )
    model = Gemma4.from_weights(checkpoint.config, weights, quantization, image_attention)
    fuse_projections(model.language_model)
    model.generation_config = generation_config
    model.kv_bits, model.kv_rows = kv_bits, kv_rows
    model.memory_limit = limit
    keep_resident()
    limit_buffers(WORKSPACE_BYTES)
    sizes = Sizes.from_config(checkpoint.config.text_config, chosen_dtype)
    kernel_notes = registry.prepare(sizes, tune=tune, progress=tune_progress)
    model.notes = (*checkpoint.notes, *kernel_notes)
    return model, processor


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
        max_tokens: -1, the default, goes on to the end of the answer, of the context, or of the
            memory for it.
        stop: Texts that end the answer.
        prompt_cache: From `model.make_cache`: what was read before the prompt; updated.  Its bits
            are settled before its first prompt is read.
        prompt_store: From `open_prompt_store`: knows what was read before, whatever it was, and
            learns this prompt and its answer.  `prompt` is then the whole prompt.
        prefill_step_size: Positions of the prompt that are read at a time; None, the default, takes
            as many as 512 MiB of temporary memory allow, and what the machine has.
        prompt_progress_callback: Called with (positions read, positions of the prompt).
        speculate: "lookup" drafts tokens from n-grams of the prompt and the answer (not of what is
            in `prompt_cache`), which the model verifies several at a time: quicker where an answer
            repeats its prompt.  Each token has the distribution that it has with "off", the
            default: greedily, or with a seed, it is the same one, unless two are equal to within
            the rounding of sums that are added up in another order.  It needs a sampler of ours, or
            another that has `rewind`, and processors that depend on their arguments alone.
        num_draft_tokens: Tokens that are verified at a time at most, 2 to 15, the default.
    """

    max_tokens: int
    stop: Sequence[str]
    prompt_cache: PromptCache | None
    prompt_store: PromptCacheStore | None
    prefill_step_size: int | None
    prompt_progress_callback: PromptProgressCallback | None
    speculate: Speculate
    num_draft_tokens: int


_LOOP_OPTIONS = (
    "max_tokens",
    "prompt_cache",
    "prefill_step_size",
    "prompt_progress_callback",
    "speculate",
    "num_draft_tokens",
)


def open_prompt_store(
    model: Gemma4,
    processor: Processor,
    path: str | Path | None = None,
    *,
    model_name: str = "",
    max_bytes: int = MAX_BYTES,
    **cache_options: Any,
) -> PromptCacheStore:
    """Return a store of prompts that have been read, to be kept between answers.

    Args:
        model: From `load`.
        processor: From `load`.
        path: Of a file or a folder on disk, where `save` writes and where prompts are found again;
            None keeps them in memory alone.
        model_name: What `mlx-gemma4 cache list` shows.
        max_bytes: In memory, for snapshots and for all prompts but the newest.
        cache_options: Those of `model.make_cache`.  `kv_bits` holds for all prompts of the store:
            None is 16 there if it is the model's too, also where 8 alone would fit.

    Raises:
        PromptCacheError: The file at `path` is damaged, or of another model, dtype, version, cache
            layout, or chat template.
    """
    make_cache = partial(model.make_cache, **cache_options)
    archive = None
    if path is not None:
        template = processor.chat_template.source if processor.chat_template else None
        fingerprint = Fingerprint.of(model, make_cache, template)
        archive = open_archive(path, fingerprint, make_cache, model_name=model_name)
    return PromptCacheStore(
        make_cache,
        max_bytes=max_bytes,
        turn_token_id=processor.tokenizer.token_to_id(SPECIAL_TOKENS["sot_token"]),
        paragraph_token_id=processor.tokenizer.token_to_id("\n\n"),
        archive=archive,
    )


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
        MemoryLimitError: The prompt does not fit into memory; the message has the sum.
        OptionError: An option has a value that is not allowed.
    """
    given: dict[str, Any] = dict(options)
    prompt_options = _take(given, PromptOptions)
    sampling = _take(given, SamplingOptions)
    stop = given.pop("stop", ())
    prompt_store = given.pop("prompt_store", None)
    loop = {name: given.pop(name) for name in _LOOP_OPTIONS if name in given}
    if given:
        raise TypeError(f"unknown options: {', '.join(sorted(given))}")
    if isinstance(prompt, ModelInputs):
        if prompt_options:
            raise TypeError(f"{', '.join(prompt_options)}: the prompt is prepared already")
        inputs = prompt
    else:
        inputs = processor(prompt, **prompt_options)
    sampler, logits_processors = choose_sampling(model.generation_config, **sampling)
    if prompt_store is not None and loop.get("prompt_cache") is not None:
        raise TypeError("prompt_cache and prompt_store exclude each other")
    with nullcontext() if prompt_store is None else prompt_store.open(inputs) as reading:
        responses = stream_response(
            inputs,
            model,
            processor.tokenizer,
            eos_token_ids=model.generation_config.eos_token_ids,
            stop=stop,
            sampler=sampler,
            logits_processors=logits_processors,
            reading=reading,
            **loop,
        )
        with closing(responses):  # before the store takes the cache back
            yield from responses


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


def _choose_dtype(dtype: str | mx.Dtype | None, config: Config) -> mx.Dtype:
    """Return the dtype of activations."""
    if dtype is None:
        is_cpu = mx.default_device() == mx.Device(mx.cpu)
        return mx.float32 if is_cpu else _DTYPES[config.dtype]
    for known, value in _DTYPES.items():
        if dtype in (known, value):
            return value
    raise OptionError(f"dtype is {dtype}; allowed are {', '.join(_DTYPES)}")


def _check_limit(
    limit: MemoryLimit,
    checkpoint: Checkpoint,
    item_bytes: int,
    quantize: int | None,
    context_tokens: int,
    reading: Reading,
    *,
    may_compact: bool,
) -> None:
    """Refuse a checkpoint that does not fit into this machine's memory."""
    smaller: dict[str, int] = {}
    if not checkpoint.quantization and quantize is None:
        smaller |= {
            f"--quantize {bits}": checkpoint.memory_bytes(item_bytes, bits)
            for bits in QUANTIZE_BITS
        }
    if item_bytes == 4:
        smaller["--dtype bfloat16"] = checkpoint.memory_bytes(2, quantize)
    text, weights_bytes = (
        checkpoint.config.text_config,
        checkpoint.memory_bytes(item_bytes, quantize),
    )
    reading = choose_reading(
        text,
        weights_bytes,
        context_tokens,
        item_bytes,
        limit_bytes=limit.limit_bytes,
        reading=reading,
        may_compact=may_compact,
    )
    check_memory(
        text,
        weights_bytes,
        context_tokens,
        item_bytes=item_bytes,
        limit=limit,
        smaller=smaller,
        reading=reading,
        may_shorten=True,
    )
