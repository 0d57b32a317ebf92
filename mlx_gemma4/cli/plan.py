"""`mlx-gemma4 plan`: what a model needs for a conversation, what fits, and what would help."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.sizes import parse_memory, parse_seconds, parse_tokens
from mlx_gemma4.cli.terminal import is_styled, say
from mlx_gemma4.errors import ConfigError, OptionError

if TYPE_CHECKING:
    from mlx_gemma4.config import Config, QuantizationSettings
    from mlx_gemma4.memory import MemoryLimit, MemoryPlan, Reading
    from mlx_gemma4.processing.settings import ProcessorSettings

_BAR_COLUMNS = 60
# Of a conversation that has no other length: beyond its media, prompt and answer.
_TEXT_TOKENS = 1024
_ALTERNATIVE_RECIPES = ("q8", "mixed-4-8", "q4")
_MARKERS = 2  # tokens around the soft tokens of a picture or a sound


@dataclass(frozen=True)
class _Demand:
    """What is planned: sizes that do not depend on the machine.

    Attributes:
        config: Of the model.
        stored_as: How the weights are stored, for the table.
        weights_bytes: In memory.
        drafter_bytes: In memory.
        context_tokens: Positions of prompt and answer.
        media_tokens: Of which so many are media.
        item_bytes: Of one activation.
        smaller: Other ways to store the weights, and their bytes.
        notes: What was assumed, one line each.
    """

    config: "Config"
    stored_as: str
    weights_bytes: int
    drafter_bytes: int
    context_tokens: int
    media_tokens: int
    item_bytes: int
    smaller: Mapping[str, int]
    notes: tuple[str, ...]

    def plan(self, reading: "Reading", weights_bytes: int | None = None) -> "MemoryPlan":
        """Return the plan, or that with other weights."""
        from mlx_gemma4.memory import plan_memory

        weights_bytes = self.weights_bytes if weights_bytes is None else weights_bytes
        return plan_memory(
            self.config.text_config,
            weights_bytes,
            self.context_tokens,
            self.item_bytes,
            reading,
            self.drafter_bytes,
        )

    def longest_context(self, reading: "Reading", limit_bytes: int) -> int:
        """Return the positions that fit."""
        from mlx_gemma4.memory import longest_context

        return longest_context(
            self.config.text_config,
            self.weights_bytes,
            limit_bytes,
            self.item_bytes,
            reading,
            self.drafter_bytes,
        )


def plan(
    model: options.Model = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME",
            help="As if converted so: q4, q8, mixed-4-8, mxfp4, ..., or a .toml file.",
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="TOKENS", help="Of prompt and answer: 8000, 128k. Default: 4096."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help="Plan for a Mac with so much: 16GB. Default: here."
        ),
    ] = None,
    image: Annotated[
        int, typer.Option("--image", metavar="N", min=0, help="Pictures in the prompt.")
    ] = 0,
    image_tokens: options.ImageTokens = None,
    audio: Annotated[
        str | None, typer.Option("--audio", metavar="TIME", help="Sound in the prompt: 120s, 2m.")
    ] = None,
    video: Annotated[
        int, typer.Option("--video", metavar="N", min=0, help="Clips in the prompt.")
    ] = 0,
    num_frames: options.NumFrames = None,
    draft_model: Annotated[
        str | None,
        typer.Option("--draft-model", metavar="NAME", help="A drafter beside the model."),
    ] = None,
    prefill_step_size: options.PrefillStepSize = None,
    kv_bits: options.KVBits = "16",
    kv_rows: options.KVRows = "shared",
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what a conversation needs in memory, what fits, and what would help.

    A folder with config.json is enough; no weights are read or downloaded.
    """
    name = options.require_model(model)
    asked = {
        "context": None if context is None else parse_tokens("--context", context),
        "memory": None if memory is None else parse_memory("--memory", memory),
        "audio_s": 0.0 if audio is None else parse_seconds("--audio", audio),
    }
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.memory import (
        Reading,
        choose_reading,
        computes_on_cpu,
        mac_limit,
        machine_limit,
    )
    from mlx_gemma4.processing.settings import ProcessorSettings

    folder = find_checkpoint(name, with_weights=False)
    is_cpu = asked["memory"] is None and computes_on_cpu()
    settings = ProcessorSettings.from_folder(folder)
    media = _media(settings, image, image_tokens, asked["audio_s"], video, num_frames)
    demand = _demand(folder, recipe, draft_model, dtype, asked["context"], media, is_cpu=is_cpu)
    _check_media(demand.config, image + video, asked["audio_s"])
    limit = machine_limit() if asked["memory"] is None else mac_limit(asked["memory"])
    reading = Reading(
        prefill_step_size or Reading().prefill_step_size,
        longest_picture=media["longest_picture"],
        pixel_tokens=media["pixel_tokens"],
        is_cpu=is_cpu,
        kv_bits=int(kv_bits),
        kv_rows=kv_rows,
    )
    if prefill_step_size is None:
        reading = choose_reading(
            demand.config.text_config,
            demand.weights_bytes,
            demand.context_tokens,
            demand.item_bytes,
            limit_bytes=limit.limit_bytes,
            reading=reading,
            drafter_bytes=demand.drafter_bytes,
        )
    ways = _ways(demand, reading, limit)
    if as_json:
        print(json.dumps(_document(name, demand, reading, limit, ways), indent=2))
        return 0
    _print_plan(name, demand, reading, limit)
    _print_ways(demand, reading, limit, ways)
    for note in demand.notes:
        say(f"note: {note}")
    return 0


def _media(
    settings: "ProcessorSettings",
    num_images: int,
    image_tokens: str | None,
    audio_s: float,
    num_videos: int,
    num_frames: int | None,
) -> dict[str, int]:
    """Return tokens of all media, soft tokens from pixels, and those of the longest picture."""
    from mlx_gemma4.processing.audio import FRAME_SIZE, SAMPLE_RATE

    budget = settings.image_tokens
    if image_tokens is not None:  # what a picture's size decides is planned as the most there is
        budget = 1120 if image_tokens == "auto" else int(image_tokens)
    frames = num_videos * (num_frames or settings.num_frames)
    pixels = num_images * budget + frames * settings.video_tokens
    sound = math.ceil(audio_s * SAMPLE_RATE / FRAME_SIZE)
    markers = _MARKERS * (num_images + frames + bool(sound))
    longest = max(budget if num_images else 0, settings.video_tokens if frames else 0)
    return {
        "tokens": pixels + sound + markers,
        "pixel_tokens": pixels,
        "longest_picture": longest,
    }


def _demand(
    folder: Path,
    recipe: str | None,
    draft_model: str | None,
    dtype: str | None,
    context_tokens: int | None,
    media: Mapping[str, int],
    *,
    is_cpu: bool,
) -> _Demand:
    from mlx_gemma4.config import Config
    from mlx_gemma4.memory import DEFAULT_CONTEXT

    config = Config.from_folder(folder)
    dtype = dtype or ("float32" if is_cpu else config.dtype)
    item_bytes = 4 if dtype == "float32" else 2
    stored_as, weights_bytes, smaller, notes = _weights(folder, config, recipe, item_bytes)
    most = config.text_config.max_position_embeddings
    least = media["tokens"]
    if context_tokens is None:
        context_tokens = min(most, max(DEFAULT_CONTEXT, least + _TEXT_TOKENS))
    if not max(1, least) <= context_tokens <= most:
        media_part = f"the {least:,} tokens of the media" if least else "1"
        raise OptionError(
            f"--context is {context_tokens:,} tokens; allowed is from {media_part} to the model's "
            f"{most:,}"
        )
    return _Demand(
        config,
        f"{stored_as}, {dtype} activations",
        weights_bytes,
        _drafter_bytes(draft_model, item_bytes) if draft_model else 0,
        context_tokens,
        least,
        item_bytes,
        smaller,
        notes,
    )


def _weights(
    folder: Path, config: "Config", recipe: str | None, item_bytes: int
) -> tuple[str, int, dict[str, int], tuple[str, ...]]:
    """Return how weights are stored, their bytes, those of smaller ways, and notes."""
    from mlx_gemma4.convert.recipe import read_recipe
    from mlx_gemma4.weights import open_checkpoint

    if config.quantization is not None and recipe is not None:
        raise OptionError(
            f"{folder} is quantized already; leave --recipe out, or name the bfloat16 checkpoint"
        )
    notes: tuple[str, ...] = ()
    if recipe is not None:
        chosen = read_recipe(recipe)
        stored_as, nbytes = chosen.name, _recipe_bytes(config, chosen.name, item_bytes)
        if chosen.name != recipe:  # a file of the user's
            nbytes = _recipe_bytes(config, recipe, item_bytes)
    elif any(folder.glob("*.safetensors")):
        checkpoint = open_checkpoint(folder, config)
        kinds = {f"{settings.bits}-bit" for settings in checkpoint.quantization.values()}
        stored_as = " and ".join(sorted(kinds)) or "not quantized"
        nbytes, notes = checkpoint.memory_bytes(item_bytes), checkpoint.notes
    else:
        nbytes = _config_bytes(config, item_bytes)
        kind = config.quantization
        stored_as = f"{kind.bits}-bit" if kind else "not quantized"
        notes = (f"{folder} has no weights: their size follows from config.json",)
    smaller: dict[str, int] = {}
    if config.quantization is None:
        for name in _ALTERNATIVE_RECIPES:
            if (alternative := _recipe_bytes(config, name, item_bytes)) < nbytes:
                smaller[f"--recipe {name}"] = alternative
    return stored_as, nbytes, smaller, notes


def _recipe_bytes(config: "Config", recipe: str, item_bytes: int) -> int:
    """Return the bytes of all parameters once a recipe has been applied and the result loaded."""
    from mlx_gemma4.convert.recipe import read_recipe

    chosen = read_recipe(recipe)

    def settings_of(path: str) -> "QuantizationSettings | None":
        rule = chosen.rule_of(path)
        return rule.settings if rule else None

    return _bytes_of(config, settings_of, item_bytes)


def _config_bytes(config: "Config", item_bytes: int) -> int:
    """Return the bytes of all parameters as config.json describes them.

    It does not say which modules are quantized: those of the decoder are, as converters have them.
    """
    from mlx_gemma4.weights.names import canonical_name

    quantization = config.quantization
    overrides = quantization.overrides if quantization else {}
    by_path = {canonical_name(path): settings for path, settings in overrides.items()}

    def settings_of(path: str) -> "QuantizationSettings | None":
        if quantization is None:
            return None
        default = quantization.default if path.startswith("language_model.") else None
        return by_path.get(path, default)

    return _bytes_of(config, settings_of, item_bytes)


def _bytes_of(config: "Config", settings_of: Any, item_bytes: int) -> int:
    from mlx_gemma4.memory import parameter_bytes
    from mlx_gemma4.weights import expected_tensors

    total = 0
    for name, shape in expected_tensors(config).items():
        is_matrix = name.endswith(".weight") and len(shape) == 2
        settings = settings_of(name.removesuffix(".weight")) if is_matrix else None
        total += parameter_bytes(shape, settings, item_bytes)
    return total


def _drafter_bytes(name: str, item_bytes: int) -> int:
    """Return the bytes of a drafter: of its tensors if they are here, else by its config."""
    from mlx_gemma4.config.section import read_json
    from mlx_gemma4.convert.source import ASSISTANT, check_config, expected_assistant, open_source
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.memory import parameter_bytes

    folder = find_checkpoint(name, with_weights=False, check=check_config)
    document = dict(read_json(folder / "config.json"))
    if document.get("model_type") != ASSISTANT:
        raise ConfigError(
            f"{name} is no drafter; name one that is made for the model, such as "
            "google/gemma-4-12B-it-assistant"
        )
    if not any(folder.glob("*.safetensors")):
        shapes = expected_assistant(folder, document)
        return sum(parameter_bytes(shape, None, item_bytes) for shape in shapes.values())
    return sum(
        item_bytes * math.prod(tensor.shape) if tensor.is_float else tensor.nbytes
        for tensor in open_source(folder, name).tensors.values()
    )


def _check_media(config: "Config", num_pictures: int, audio_s: float) -> None:
    """Refuse media for which the checkpoint has no front end."""
    for option, is_asked, front_end in (
        ("--image and --video", num_pictures > 0, config.vision_config),
        ("--audio", audio_s > 0, config.audio_config),
    ):
        if is_asked and front_end is None:
            raise OptionError(f"{option}: this checkpoint has no front end for them; leave it out")


def _ways(demand: _Demand, reading: "Reading", limit: "MemoryLimit") -> list[dict[str, Any]]:
    """Return what would take less, with what it gives most first; none if everything fits."""
    from mlx_gemma4.memory import COMPACT_KV_BITS, PREFILL_STEPS

    now = demand.plan(reading)
    if now.total_bytes <= limit.limit_bytes:
        return []
    others = {option: demand.plan(reading, size) for option, size in demand.smaller.items()}
    for step in PREFILL_STEPS:
        if step < reading.prefill_step_size:
            shorter = replace(reading, prefill_step_size=step)
            others[f"--prefill-step-size {step}"] = demand.plan(shorter)
    if reading.kv_bits != COMPACT_KV_BITS:
        compact = replace(reading, kv_bits=COMPACT_KV_BITS)
        others[f"--kv-bits {COMPACT_KV_BITS}"] = demand.plan(compact)
    if demand.drafter_bytes:
        others["no --draft-model"] = replace(demand, drafter_bytes=0).plan(reading)
    longest = demand.longest_context(reading, limit.limit_bytes)
    if longest >= max(demand.media_tokens, 1):
        shorter = replace(demand, context_tokens=longest)
        others[f"--context {longest}"] = shorter.plan(reading)
    ways = [
        {
            "option": option,
            "saved_bytes": now.total_bytes - other.total_bytes,
            "total_bytes": other.total_bytes,
            "fits": other.total_bytes <= limit.limit_bytes,
        }
        for option, other in others.items()
        if other.total_bytes < now.total_bytes
    ]
    return sorted(ways, key=lambda way: -way["saved_bytes"])


def _document(
    name: str,
    demand: _Demand,
    reading: "Reading",
    limit: "MemoryLimit",
    ways: list[dict[str, Any]],
) -> dict[str, Any]:
    needed = demand.plan(reading)
    return {
        "model": name,
        "stored_as": demand.stored_as,
        **dataclasses.asdict(needed),
        "media_tokens": demand.media_tokens,
        "total_bytes": needed.total_bytes,
        "limit_bytes": limit.limit_bytes,
        "limit_source": limit.source,
        "fits": needed.total_bytes <= limit.limit_bytes,
        "longest_context": demand.longest_context(reading, limit.limit_bytes),
        "max_position_embeddings": demand.config.text_config.max_position_embeddings,
        "suggestions": ways,
        "notes": list(demand.notes),
    }


def _parts(demand: _Demand, needed: "MemoryPlan") -> list[tuple[str, int, str]]:
    """Return name, bytes, and a remark of each part."""
    media = f", {demand.media_tokens:,} of media" if demand.media_tokens else ""
    parts = [
        ("weights", needed.weights_bytes, demand.stored_as),
        ("drafter", needed.drafter_bytes, ""),
        ("cache", needed.cache_bytes, f"{needed.context_tokens:,} tokens{media}"),
        ("prefill", needed.workspace_bytes, f"{needed.prefill_step_size:,} tokens at a time"),
    ]
    return [part for part in parts if part[1]]


def _print_plan(name: str, demand: _Demand, reading: "Reading", limit: "MemoryLimit") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mlx_gemma4.memory import format_bytes

    needed = demand.plan(reading)
    parts = _parts(demand, needed)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for label, count, remark in parts:
        table.add_row(label, format_bytes(count), Text(remark))
    left = limit.limit_bytes - needed.total_bytes
    table.add_row("in all", format_bytes(needed.total_bytes), Text(name))
    table.add_row("limit", format_bytes(limit.limit_bytes), Text(limit.source))
    table.add_row("left" if left >= 0 else "missing", format_bytes(abs(left)))
    # A file or a pipe has no width by which columns would have to be folded.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    sizes = [(label, count) for label, count, _ in parts]
    console.print(draw_bar(sizes, limit.limit_bytes, has_colours=is_styled(sys.stdout)))


def draw_bar(parts: list[tuple[str, int]], limit_bytes: int, *, has_colours: bool) -> Any:
    """Return a bar of the parts, and of what is left; a stroke marks the limit where they pass it.

    Args:
        parts: Name and bytes of each.
        limit_bytes: What the machine can hold.
        has_colours: Whether the terminal shows colours; else each part has a letter of its own.
    """
    from rich.text import Text

    colours = {"weights": "blue", "drafter": "magenta", "cache": "green", "prefill": "yellow"}
    total = sum(count for _, count in parts)
    whole = max(total, limit_bytes, 1)
    bar, done = Text("["), 0
    ends: list[int] = []
    for _, count in parts:
        done += count
        ends.append(round(_BAR_COLUMNS * done / whole))
    stroke = round(_BAR_COLUMNS * limit_bytes / whole) if total > limit_bytes else None
    for column in range(_BAR_COLUMNS):
        if column == stroke:
            bar.append("|", "bold red" if has_colours else "")
            continue
        label = next((part[0] for part, end in zip(parts, ends, strict=True) if column < end), "")
        if has_colours:
            bar.append("█" if label else "░", colours.get(label, "dim"))
        else:
            bar.append(label[:1] or ".")
    bar.append("]  ")
    for label, _ in parts:
        mark = "█ " if has_colours else f"{label[0]} "
        bar.append(mark, colours[label] if has_colours else "")
        bar.append(f"{label}  ")
    return bar


def _print_ways(
    demand: _Demand, reading: "Reading", limit: "MemoryLimit", ways: list[dict[str, Any]]
) -> None:
    """Say what fits, or what to change."""
    from mlx_gemma4.memory import format_bytes

    longest = demand.longest_context(reading, limit.limit_bytes)
    most = demand.config.text_config.max_position_embeddings
    if not ways and demand.plan(reading).total_bytes <= limit.limit_bytes:
        whole = ", all that the model has" if longest == most else ""
        print(f"fits; a context of up to {longest:,} tokens does{whole}")
        return
    print("does not fit" + ("; what would help:" if ways else ": not even without a prompt"))
    for way in ways:
        verdict = "fits" if way["fits"] else "still too much"
        saved, total = format_bytes(way["saved_bytes"]), format_bytes(way["total_bytes"])
        print(f"  {way['option']:<26} saves {saved:>8}: {total} in all, {verdict}")
