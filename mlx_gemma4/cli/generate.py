"""`mlx-gemma4 generate`: answer one prompt, with pictures, sounds, and clips."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.answer import Answer
from mlx_gemma4.cli.commands import media_in_order
from mlx_gemma4.cli.media import describe_media
from mlx_gemma4.cli.prompt import PromptRequest
from mlx_gemma4.cli.terminal import ProgressBar, say
from mlx_gemma4.errors import InputError

if TYPE_CHECKING:
    from mlx_gemma4.model.gemma4 import Gemma4
    from mlx_gemma4.processing.processor import PreparedPrompt, Processor

INTERRUPTED = 130
LEAST_PROMPT = 512  # tokens; a shorter prompt is read before a bar could be


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    model: options.Model = None,
    image: options.Images = None,
    audio: options.Audio = None,
    video: options.Videos = None,
    image_tokens: options.ImageTokens = None,
    num_frames: options.NumFrames = None,
    video_sound: options.VideoSound = False,
    system: options.System = None,
    messages: options.Messages = None,
    tools: options.Tools = None,
    thinking: options.Thinking = False,
    show_thinking: Annotated[
        bool, typer.Option("--show-thinking", help="Think, and show the thoughts on stderr.")
    ] = False,
    raw: options.Raw = False,
    max_tokens: options.MaxTokens = None,
    temp: options.Temp = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    speculate: options.Speculate = "off",
    num_draft_tokens: options.NumDraftTokens = 15,
    prompt_cache: options.PromptCache = None,
    quantize: options.Quantize = None,
    dtype: options.Dtype = None,
    image_attention: options.ImageAttention = "sliding",
    kv_bits: options.KVBits = "auto",
    kv_rows: options.KVRows = "shared",
    prefill_step_size: options.PrefillStepSize = None,
    no_tune: options.NoTune = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Answer a prompt.

    The answer goes to stdout; notes, thoughts, and statistics go to stderr.
    """
    name = options.require_model(model)
    request = PromptRequest.read(
        prompt,
        media_in_order(context, image, audio, video),
        system=system,
        messages=messages,
        tools=tools,
        settings={
            "thinking": thinking or show_thinking,
            "image_tokens": options.parse_image_tokens(image_tokens),
            "num_frames": num_frames,
            "video_sound": video_sound,
            "ignore_chat_template": raw,
        },
    )
    sampling: dict[str, Any] = {"temp": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    penalty = repetition_penalty
    _check_options(sampling, penalty, stop or (), num_draft_tokens)
    loaded, processor, prepared = _load(
        name,
        request,
        max_tokens or 0,
        dtype=dtype,
        quantize=None if quantize is None else int(quantize),
        image_attention=image_attention,
        # A store settles them: what does not fit so is refused before any weight is read.
        kv_bits=options.parse_kv_bits("16" if prompt_cache and kv_bits == "auto" else kv_bits),
        kv_rows=kv_rows,
        tune=not no_tune,
    )
    if not quiet:
        for note in (*(loaded.notes or ()), *prepared.inputs.notes):
            say(f"note: {note}")
    if verbose:
        say(f"the model reads {prepared.text!r}")
    from mlx_gemma4.api import open_prompt_store, stream_generate

    store = None
    if prompt_cache is not None:
        store = open_prompt_store(loaded, processor, prompt_cache, model_name=name)
    answer = Answer(is_shown=not as_json, is_thinking_shown=show_thinking)
    with ProgressBar(
        "reading the prompt", least_total=prefill_step_size or LEAST_PROMPT
    ) as progress:
        answer.follow(
            stream_generate(
                loaded,
                processor,
                prepared.inputs,
                max_tokens=-1 if max_tokens is None else max_tokens,
                **sampling,
                repetition_penalty=penalty,
                seed=seed,
                stop=stop or (),
                speculate=speculate,
                num_draft_tokens=num_draft_tokens,
                prefill_step_size=prefill_step_size,
                prompt_progress_callback=progress.update,
                prompt_store=store,
            )
        )
    notes = store.save() if store else ()
    if as_json:
        document = {"model": name, **answer.as_document(), "media": describe_media(prepared.media)}
        print(json.dumps(document, ensure_ascii=False, indent=2))
    if not quiet:
        for note in (*answer.result.notes[len(prepared.inputs.notes) :], *notes):
            say(f"note: {note}")
        say(answer.account)
    return INTERRUPTED if answer.is_interrupted else 0


def _check_options(
    sampling: dict[str, Any], penalty: float | None, stop: Sequence[str], num_draft_tokens: int
) -> None:
    """Raise the errors of wrong options now, before a model is looked for and loaded."""
    from mlx_gemma4.generation.lookup import check_num_draft_tokens
    from mlx_gemma4.generation.sampling import make_logits_processors, make_sampler
    from mlx_gemma4.generation.stop import StopStrings

    make_sampler(**{name: value for name, value in sampling.items() if value is not None})
    make_logits_processors(repetition_penalty=penalty)
    StopStrings(stop)
    check_num_draft_tokens(num_draft_tokens)


def _load(
    name: str, request: PromptRequest, max_tokens: int, **load_options: Any
) -> "tuple[Gemma4, Processor, PreparedPrompt]":
    """Return model, processor, and prompt.

    The small files alone tell whether the prompt is good: the Hub's weights are downloaded, and any
    weights read, only when it is.
    """
    from mlx_gemma4.api import load
    from mlx_gemma4.config import Config
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.memory import DEFAULT_CONTEXT
    from mlx_gemma4.processing.processor import Processor

    folder = find_checkpoint(name, with_weights=False)
    config = Config.from_folder(folder)
    processor = Processor.from_folder(folder, config)
    prepared = request.prepare(processor)
    num_tokens, context = len(prepared.inputs), config.text_config.max_position_embeddings
    if num_tokens > context:
        raise InputError(
            f"the prompt has {num_tokens:,} tokens, the model's context {context:,}; shorten the "
            "prompt, or give media fewer soft tokens with --image-tokens or --num-frames"
        )
    with ProgressBar("quantizing") as progress, ProgressBar("trying kernels") as tuning:
        # The processor stays the one that has read its tokenizer, which takes Google's a second.
        model, _ = load(
            name,
            context_tokens=min(max(DEFAULT_CONTEXT, num_tokens + max_tokens), context),
            progress=progress.update,
            tune_progress=tuning.update,
            **load_options,
        )
    return model, processor, prepared
