"""`mlx-gemma4 inspect`: what a model will see and need, without reading its weights."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.commands import media_in_order
from mlx_gemma4.cli.media import describe_media, describe_medium
from mlx_gemma4.cli.prompt import PromptRequest
from mlx_gemma4.cli.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlx_gemma4.config import Config
    from mlx_gemma4.processing.media import Medium
    from mlx_gemma4.processing.processor import PreparedPrompt

_IDS_SHOWN = 12  # at either end of a long prompt


def inspect(
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
    raw: options.Raw = False,
    quantize: options.Quantize = None,
    dtype: options.Dtype = None,
    image_attention: options.ImageAttention = "sliding",
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the 48-pixel patches of pictures and the 40 ms frames of sounds: a .png, "
            ".svg, or .pdf. Needs the extra bench.",
        ),
    ] = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what the model will see and need.

    Soft tokens of each medium, token ids, memory, and the mask rule; no weights are read.

    Without a prompt and media, only the model itself is shown.
    """
    name = options.require_model(model)
    request = None
    media = media_in_order(context, image, audio, video)
    if prompt is not None or media or messages is not None:
        request = PromptRequest.read(
            prompt,
            media,
            system=system,
            messages=messages,
            tools=tools,
            settings={
                "thinking": thinking,
                "image_tokens": options.parse_image_tokens(image_tokens),
                "num_frames": num_frames,
                "video_sound": video_sound,
                "ignore_chat_template": raw,
            },
        )
    if plot is not None:
        _check_plot(Path(plot))
    from mlx_gemma4.config import Config
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.processing.processor import Processor

    folder = find_checkpoint(name, with_weights=False)
    config = Config.from_folder(folder)
    prepared = request.prepare(Processor.from_folder(folder, config)) if request else None
    num_tokens = len(prepared.inputs) if prepared else 0
    memory, notes = _plan(
        folder, config, num_tokens, dtype, None if quantize is None else int(quantize)
    )
    notes += list(prepared.inputs.notes) if prepared else []
    if plot is not None:
        notes += _plot(prepared.media if prepared else (), Path(plot))
    mask = _mask_rule(config, image_attention)
    if as_json:
        document: dict[str, Any] = {
            "model": name,
            "config": dataclasses.asdict(config),
            "prompt": _document(prepared) if prepared else None,
            "memory": memory,
            "image_attention": image_attention,
            "mask": mask,
            "notes": notes,
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return 0
    _print_line("model", _describe_model(name, config))
    if prepared:
        _print_prompt(prepared, is_whole=verbose)
    _print_memory(memory)
    _print_line("mask", mask)
    for note in notes:
        say(f"note: {note}")
    return 0


def _check_plot(path: Path) -> None:
    """Refuse what cannot be drawn or written, before anything is read."""
    from mlx_gemma4.bench.plots import check_plot
    from mlx_gemma4.bench.report import check_writable

    check_writable("--plot", path)
    check_plot("--plot", path)


def _plot(media: "Sequence[Medium]", path: Path) -> list[str]:
    """Draw media as the model sees and hears them; return notes about it."""
    from mlx_gemma4.bench.plots import PicturePanel, SoundPanel, plot_media
    from mlx_gemma4.cli.drawing import join_patches

    panels: list[PicturePanel | SoundPanel] = []
    for medium in media:
        if medium.frames is not None:
            panels.append(SoundPanel(medium.name, medium.frames))
        if medium.patches is not None and medium.grid is not None:
            pictures = join_patches(medium.patches, medium.grid)
            times = [f", {seconds:.2f} s" for seconds in medium.timestamps_s] or [""]
            panels += [
                PicturePanel(medium.name + when, pixels)
                for when, pixels in zip(times, pictures, strict=True)
            ]
    left_out = plot_media(panels, path)
    notes = [f"drawn: {path}"]
    return notes + [f"{left_out} more frames are not in the drawing"] * bool(left_out)


def _plan(
    folder: Path, config: "Config", num_tokens: int, dtype: str | None, quantize: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Return bytes of weights and caches, and the limit of this machine; and notes about them."""
    from mlx_gemma4.memory import (
        COMPACT_KV_BITS,
        PREFILL_STEPS,
        Reading,
        cache_bytes,
        computes_on_cpu,
        longest_context,
        machine_limit,
    )
    from mlx_gemma4.weights import check_quantize, expected_tensors, open_checkpoint

    dtype = dtype or _default_dtype(config)
    item_bytes = 4 if dtype == "float32" else 2
    notes: list[str] = []
    if any(folder.glob("*.safetensors")):
        checkpoint = open_checkpoint(folder, config)
        if quantize is not None:
            check_quantize(checkpoint, quantize)
        weights_bytes = checkpoint.memory_bytes(item_bytes, quantize)
        notes += checkpoint.notes
    else:
        notes.append(
            f"{folder} has no weights: their size follows from config.json, as if unquantized"
        )
        weights_bytes = item_bytes * sum(map(math.prod, expected_tensors(config).values()))
    text, limit = config.text_config, machine_limit()
    context = text.max_position_embeddings

    def longest_with(kv_bits: int) -> int:
        reading = Reading(PREFILL_STEPS[-1], is_cpu=computes_on_cpu(), kv_bits=kv_bits)
        return longest_context(text, weights_bytes, limit.limit_bytes, item_bytes, reading)

    return {
        "dtype": dtype,
        "weights_bytes": weights_bytes,
        "cache_bytes": cache_bytes(text, num_tokens, item_bytes),
        "num_tokens": num_tokens,
        "full_cache_bytes": cache_bytes(text, context, item_bytes),
        "max_position_embeddings": context,
        "limit_bytes": limit.limit_bytes,
        "limit_source": limit.source,
        "longest_context": longest_with(16),
        "longest_context_int8": longest_with(COMPACT_KV_BITS),
    }, notes


def _default_dtype(config: "Config") -> str:
    """Return the dtype that loading chooses on this machine."""
    from mlx_gemma4.memory import computes_on_cpu

    return "float32" if computes_on_cpu() else config.dtype


def _mask_rule(config: "Config", image_attention: str) -> str:
    """Say in one line which positions see which."""
    window = config.text_config.sliding_window
    causal = f"global layers see all before them, sliding layers the last {window:,} positions"
    if config.vision_config is None:
        return causal
    layers = "sliding layers" if image_attention == "sliding" else "all layers"
    return f"{causal}; in a picture or frame, tokens see each other both ways on {layers}"


def _document(prepared: "PreparedPrompt") -> dict[str, Any]:
    inputs = prepared.inputs
    return {
        "num_tokens": len(inputs),
        "text": prepared.text,
        "media": describe_media(prepared.media),
        "spans": [dataclasses.asdict(span) for span in inputs.spans],
        "token_ids": inputs.input_ids.tolist(),
    }


def _describe_model(name: str, config: "Config") -> str:
    text = config.text_config
    num_sliding = sum(map(text.is_sliding, range(text.num_hidden_layers)))
    takes = ["text"]
    takes += ["pictures", "clips"] if config.vision_config else []
    takes += ["sounds"] if config.audio_config else []
    return (
        f"{name}: {text.num_hidden_layers} layers ({num_sliding} sliding, "
        f"{text.num_hidden_layers - num_sliding} global), hidden size {text.hidden_size:,}, "
        f"context {text.max_position_embeddings:,}; takes {', '.join(takes)}"
    )


def _print_prompt(prepared: "PreparedPrompt", *, is_whole: bool) -> None:
    inputs = prepared.inputs
    num_soft = sum(span.length for span in inputs.spans)
    for medium in prepared.media:
        _print_line(str(medium.modality), describe_medium(medium))
    _print_line("prompt", repr(prepared.text))
    _print_line("tokens", f"{len(inputs):,}: {num_soft:,} soft, {len(inputs) - num_soft:,} of text")
    ids = [str(token_id) for token_id in inputs.input_ids.tolist()]
    if len(ids) > 2 * _IDS_SHOWN and not is_whole:
        ids[_IDS_SHOWN:-_IDS_SHOWN] = [f"... {len(ids) - 2 * _IDS_SHOWN:,} more ..."]
    _print_line("ids", " ".join(ids))


def _print_memory(memory: dict[str, Any]) -> None:
    from mlx_gemma4.memory import format_bytes

    parts = [f"weights {format_bytes(memory['weights_bytes'])} as {memory['dtype']}"]
    if memory["num_tokens"]:
        parts.append(f"cache {format_bytes(memory['cache_bytes'])} for this prompt")
    parts.append(
        f"cache {format_bytes(memory['full_cache_bytes'])} for the whole context of "
        f"{memory['max_position_embeddings']:,} tokens"
    )
    _print_line("memory", ", ".join(parts))
    longest, longest_int8 = memory["longest_context"], memory["longest_context_int8"]
    more = f", of {longest_int8:,} with --kv-bits 8" if longest_int8 > longest else ""
    _print_line(
        "machine",
        f"{memory['limit_source']} {format_bytes(memory['limit_bytes'])}: a context of "
        f"{longest:,} tokens fits{more}",
    )


def _print_line(label: str, text: str) -> None:
    print(f"{label:<8}{text}")
