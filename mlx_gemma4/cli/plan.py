"""`mlx-gemma4 plan`: what a model needs for a conversation, what fits, and what would help."""

import dataclasses
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.plan_demand import Demand, count_media, make_demand
from mlx_gemma4.cli.sizes import parse_memory, parse_seconds, parse_tokens
from mlx_gemma4.cli.terminal import is_styled, say
from mlx_gemma4.errors import OptionError

if TYPE_CHECKING:
    from mlx_gemma4.config import Config
    from mlx_gemma4.memory import MemoryLimit, MemoryPlan, Reading

_BAR_COLUMNS = 60


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
    kv_bits: options.KVBits = "auto",
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
        COMPACT_KV_BITS,
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
    media = count_media(settings, image, image_tokens, asked["audio_s"], video, num_frames)
    demand = make_demand(folder, recipe, draft_model, dtype, asked["context"], media, is_cpu=is_cpu)
    _check_media(demand.config, image + video, asked["audio_s"])
    limit = machine_limit() if asked["memory"] is None else mac_limit(asked["memory"])
    bits = options.parse_kv_bits(kv_bits)
    reading = choose_reading(
        demand.config.text_config,
        demand.weights_bytes,
        demand.context_tokens,
        demand.item_bytes,
        limit_bytes=limit.limit_bytes,
        reading=Reading(
            prefill_step_size or Reading().prefill_step_size,
            longest_picture=media["longest_picture"],
            pixel_tokens=media["pixel_tokens"],
            is_cpu=is_cpu,
            kv_bits=bits or Reading().kv_bits,
            kv_rows=kv_rows,
        ),
        drafter_bytes=demand.drafter_bytes,
        may_shorten=prefill_step_size is None,
        may_compact=bits is None,
    )
    longest = demand.longest_context(reading, limit.limit_bytes)
    compact = replace(reading, kv_bits=COMPACT_KV_BITS)
    longest_int8 = demand.longest_context(compact, limit.limit_bytes)
    ways = _ways(demand, reading, limit, longest)
    if as_json:
        document = _document(name, demand, reading, limit, ways, longest, longest_int8)
        print(json.dumps(document, indent=2))
        return 0
    _print_plan(name, demand, reading, limit)
    if not ways and demand.plan(reading).total_bytes <= limit.limit_bytes:
        print(_verdict(demand, reading, longest, longest_int8, is_chosen=bits is None))
    else:
        _print_ways(ways)
    for note in demand.notes:
        say(f"note: {note}")
    return 0


def _check_media(config: "Config", num_pictures: int, audio_s: float) -> None:
    """Refuse media for which the checkpoint has no front end."""
    for option, is_asked, front_end in (
        ("--image and --video", num_pictures > 0, config.vision_config),
        ("--audio", audio_s > 0, config.audio_config),
    ):
        if is_asked and front_end is None:
            raise OptionError(f"{option}: this checkpoint has no front end for them; leave it out")


def _ways(
    demand: Demand, reading: "Reading", limit: "MemoryLimit", longest: int
) -> list[dict[str, Any]]:
    """Return what would take less, with what it gives most first; none if everything fits."""
    from mlx_gemma4.memory import COMPACT_KV_BITS, PREFILL_STEPS

    now = demand.plan(reading)
    if now.total_bytes <= limit.limit_bytes:
        return []
    others = {option: demand.plan(reading, size) for option, size in demand.smaller.items()}
    steps = [
        demand.plan(replace(reading, prefill_step_size=step))
        for step in PREFILL_STEPS
        if step < reading.prefill_step_size
    ]
    if steps:  # the largest that fits, or the one that saves most
        fitting = [plan for plan in steps if plan.total_bytes <= limit.limit_bytes]
        best = fitting[0] if fitting else min(steps, key=lambda plan: plan.total_bytes)
        others[f"--prefill-step-size {best.prefill_step_size}"] = best
    if reading.kv_bits != COMPACT_KV_BITS:
        compact = replace(reading, kv_bits=COMPACT_KV_BITS)
        others[f"--kv-bits {COMPACT_KV_BITS}"] = demand.plan(compact)
    if demand.drafter_bytes:
        others["no --draft-model"] = replace(demand, drafter_bytes=0).plan(reading)
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
    demand: Demand,
    reading: "Reading",
    limit: "MemoryLimit",
    ways: list[dict[str, Any]],
    longest: int,
    longest_int8: int,
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
        "longest_context": longest,
        "longest_context_int8": longest_int8,
        "max_position_embeddings": demand.config.text_config.max_position_embeddings,
        "suggestions": ways,
        "notes": list(demand.notes),
    }


def _parts(demand: Demand, needed: "MemoryPlan") -> list[tuple[str, int, str]]:
    """Return name, bytes, and a remark of each part."""
    media = f", {demand.media_tokens:,} of media" if demand.media_tokens else ""
    parts = [
        ("weights", needed.weights_bytes, demand.stored_as),
        ("drafter", needed.drafter_bytes, ""),
        (
            "cache",
            needed.cache_bytes,
            f"{needed.context_tokens:,} tokens{media}, --kv-bits {needed.kv_bits}",
        ),
        ("prefill", needed.workspace_bytes, f"{needed.prefill_step_size:,} tokens at a time"),
    ]
    return [part for part in parts if part[1]]


def _print_plan(name: str, demand: Demand, reading: "Reading", limit: "MemoryLimit") -> None:
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


def _verdict(
    demand: Demand, reading: "Reading", longest: int, longest_int8: int, *, is_chosen: bool
) -> str:
    """Say that it fits, how, and what would fit too."""
    from mlx_gemma4.memory import COMPACT_KV_BITS

    is_int8 = is_chosen and reading.kv_bits == COMPACT_KV_BITS
    how = " with --kv-bits 8, which is chosen, and not with 16" if is_int8 else ""
    further = f", of up to {longest_int8:,} with --kv-bits 8" if longest_int8 > longest else ""
    is_whole = max(longest, longest_int8) == demand.config.text_config.max_position_embeddings
    whole = ", all that the model has" if is_whole else ""
    return f"fits{how}; a context of up to {longest:,} tokens does{further}{whole}"


def _print_ways(ways: list[dict[str, Any]]) -> None:
    """Say what to change."""
    from mlx_gemma4.memory import format_bytes

    print("does not fit" + ("; what would help:" if ways else ": not even without a prompt"))
    for way in ways:
        verdict = "fits" if way["fits"] else "still too much"
        saved, total = format_bytes(way["saved_bytes"]), format_bytes(way["total_bytes"])
        print(f"  {way['option']:<26} saves {saved:>8}: {total} in all, {verdict}")
