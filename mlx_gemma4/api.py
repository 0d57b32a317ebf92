"""What a program calls: load a checkpoint, ask it, get an answer."""

import errno
import functools
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import mlx.core as mx

from mlx_gemma4.cache import PromptCache
from mlx_gemma4.config import Config, GenerationConfig
from mlx_gemma4.errors import CheckpointError, OptionError
from mlx_gemma4.generation.generate import PromptProgressCallback
from mlx_gemma4.generation.sampling import (
    LogitsProcessor,
    Sampler,
    make_logits_processors,
    make_sampler,
)
from mlx_gemma4.generation.stream import GenerationResponse, GenerationResult, stream_response
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import DEFAULT_CONTEXT, check_memory, format_bytes, machine_limit
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.model.intervals import ImageAttention
from mlx_gemma4.processing.processor import Processor, Prompt, PromptOptions
from mlx_gemma4.weights import (
    QUANTIZE_BITS,
    Checkpoint,
    check_quantize,
    load_weights,
    open_checkpoint,
)

DEMO = "demo"

_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
_IMAGE_ATTENTION = ("sliding", "all")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# The files of a checkpoint that are read; a repository often has others as large again.
_FILES = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "model-*.safetensors",
]


def load(
    name: str | Path,
    *,
    dtype: str | mx.Dtype | None = None,
    quantize: int | None = None,
    image_attention: ImageAttention = "sliding",
    context_tokens: int = DEFAULT_CONTEXT,
    check_limits: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Gemma4, Processor]:
    """Return the model and the processor of a checkpoint.

    A mistake is found before it is expensive: a wrong model before its weights are downloaded, a
    damaged file before a tensor is read, too little memory before anything is loaded.  Parameters
    stay lazy: they are read from the files when they are first used.

    Args:
        name: A folder; a name on the Hugging Face Hub such as "google/gemma-4-12B-it", which is
            downloaded unless it is in the cache; or "demo", the small checkpoint in this package.
        dtype: Of activations and unquantized parameters: "bfloat16", "float16", or "float32".
            None is the checkpoint's on a GPU and float32 on a CPU, which is slow at the others.
        quantize: 4 or 8 bits for the decoder's matrices, made while loading.
        image_attention: Layers on which a picture's tokens see each other in both directions.
        context_tokens: Positions of prompt and answer to have memory for.
        check_limits: Refuse what this machine's memory cannot hold.
        progress: Called with (matrices done, matrices in all) while quantizing.

    Returns:
        The model, with `generation_config` and `notes` (what was left out of the checkpoint, one
        line each), and the processor.

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
    folder = find_checkpoint(name)
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    chosen_dtype = _choose_dtype(dtype, checkpoint.config)
    if quantize is not None:
        check_quantize(checkpoint, quantize)
    if check_limits:
        _check_limits(checkpoint, chosen_dtype.size, quantize, context_tokens)
    # Before the weights, which take longest: a broken tokenizer is then known at once.
    processor = Processor.from_folder(folder, checkpoint.config)
    generation_config = GenerationConfig.from_folder(folder, checkpoint.config)
    weights, quantization = load_weights(
        checkpoint, dtype=chosen_dtype, quantize=quantize, progress=progress
    )
    model = Gemma4.from_weights(checkpoint.config, weights, quantization, image_attention)
    model.generation_config = generation_config
    model.notes = checkpoint.notes
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


def _choose_dtype(dtype: str | mx.Dtype | None, config: Config) -> mx.Dtype:
    """Return the dtype of activations."""
    if dtype is None:
        is_cpu = mx.default_device() == mx.Device(mx.cpu)
        return mx.float32 if is_cpu else _DTYPES[config.dtype]
    for known, value in _DTYPES.items():
        if dtype in (known, value):
            return value
    raise OptionError(f"dtype is {dtype}; allowed are {', '.join(_DTYPES)}")


def _check_limits(
    checkpoint: Checkpoint, item_bytes: int, quantize: int | None, context_tokens: int
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
    check_memory(
        checkpoint.config.text_config,
        checkpoint.memory_bytes(item_bytes, quantize),
        context_tokens,
        item_bytes=item_bytes,
        limit=machine_limit(),
        smaller=smaller,
    )


def find_checkpoint(name: str | Path) -> Path:
    """Return the folder of a checkpoint, downloading it if `name` is one of the Hub's.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be downloaded.
    """
    text = str(name)
    if text == DEMO:
        return Path(__file__).with_name(DEMO)
    folder = Path(text).expanduser()
    try:
        # The empty name would be the current folder.
        is_folder, exists = bool(text) and folder.is_dir(), bool(text) and folder.exists()
    except (OSError, ValueError):  # a name that no file can have
        is_folder = exists = False
    if is_folder:
        return folder
    if exists:
        raise CheckpointError(
            f"{text} is a file; a checkpoint is a folder with config.json, *.safetensors, and "
            "tokenizer.json; pass the folder"
        )
    if isinstance(name, str) and _HUB_NAME.fullmatch(text):
        return _download(text)
    shown = text if len(text) <= 200 else text[:197] + "..."
    raise CheckpointError(
        f"no such folder: {shown!r}; pass a folder with a checkpoint, a name on the Hugging Face "
        f'Hub such as google/gemma-4-12B-it, or "{DEMO}"'
    )


def _download(name: str) -> Path:
    """Return the Hub cache's folder of a checkpoint, complete; an interrupted download resumes."""
    import huggingface_hub  # takes a third of a second, which folders need not wait for

    try:
        planned = _plan_download(name)
        if planned is None:  # no connection: then everything comes from the cache, or nothing
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
        commit, missing_bytes, folder = planned
        if not missing_bytes:
            return folder
        if missing_bytes > _free_bytes(_cache_folder()):
            raise CheckpointError(_disk_full(name, f"needs {format_bytes(missing_bytes)}"))
        # The config first: a model of another kind is refused before 24 GB have come.
        huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=["config.json"])
        Config.from_folder(folder)
        huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=_FILES)
    except CheckpointError:
        raise
    # Besides its own, the library lets those of its HTTP client and of its transfer through.
    except Exception as error:
        raise CheckpointError(_explain(name, error)) from error
    return folder


def _plan_download(name: str) -> tuple[str, int, Path] | None:
    """Return commit, bytes to download, and folder of a Hub checkpoint; None without the Hub."""
    import huggingface_hub
    from huggingface_hub.errors import DryRunError
    from huggingface_hub.utils import tqdm

    try:
        files = huggingface_hub.snapshot_download(
            name,
            allow_patterns=_FILES,
            dry_run=True,
            tqdm_class=cast(Any, functools.partial(tqdm, disable=True)),
        )
    except DryRunError:
        return None
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{name} has no model.safetensors; pickled weights (.bin), which can run any code, and "
            "GGUF are not read; take a checkpoint with safetensors"
        )
    missing_bytes = sum(file.file_size or 0 for file in files if file.will_download)
    return files[0].commit_hash, missing_bytes, Path(files[0].local_path).parent


def _cache_folder() -> Path:
    """Return where the Hub's library keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _disk_full(name: str, need: str) -> str:
    cache = _cache_folder()
    return (
        f"{name} {need}, and the disk with the Hub cache ({cache}) has "
        f"{format_bytes(_free_bytes(cache))} free; make room, or set HF_HOME to a folder on "
        "another disk, and repeat: the download goes on where it stopped"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(name: str, error: Exception) -> str:
    """Say in one line why a download failed, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    for cause in _causes(error):
        if getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause):
            return _disk_full(name, "does not fit")
        if isinstance(cause, PermissionError):
            return (
                f"{name}: no permission to write {cause.filename or _cache_folder()}; set HF_HOME "
                "to a folder of yours"
            )
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated; accept its conditions at https://huggingface.co/{name}, then log "
            "in with: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is neither a folder here nor a model on the Hugging Face Hub; check the "
            "spelling; a private one needs: hf auth login"
        )
    if isinstance(error, HfHubHTTPError):
        reason = str(error).strip().splitlines()[0]
        return f"the Hugging Face Hub refused {name} ({reason}); try again later"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{name} is neither a folder here nor complete in the Hub cache ({_cache_folder()}), "
            "and HF_HUB_OFFLINE is set; unset it to download, or pass a folder"
        )
    if any(isinstance(cause, OSError) for cause in _causes(error)):
        return (
            f"{name} is neither a folder here nor complete in the Hub cache ({_cache_folder()}), "
            "and the Hub cannot be reached; check the network and repeat, or pass a folder"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot download {name} ({reason}); repeat, and it goes on where it stopped"
