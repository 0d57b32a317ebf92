"""A checkpoint converted: whole or not at all, and gone on with after an interruption."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gemma4 import __version__
from mlx_gemma4.convert import awq
from mlx_gemma4.convert.card import write_card
from mlx_gemma4.convert.encode import Factors
from mlx_gemma4.convert.grid import find_scale_dtypes
from mlx_gemma4.convert.plan import ConversionPlan, index_of, plan_conversion
from mlx_gemma4.convert.recipe import Recipe
from mlx_gemma4.convert.source import COPIED_FILES, Source
from mlx_gemma4.convert.target import (
    PROGRESS_FILE,
    check_room,
    check_target,
    empty_partial,
    name_partial,
    open_partial,
    sync,
)
from mlx_gemma4.convert.writer import write_shard
from mlx_gemma4.weights import INDEX_FILE

CARD_FILE, QUALITY_FILE = "README.md", "quality.json"
LEARNING, SEARCHING = "learning scales", "finding the q4_0 grid"

# Called with what is going on, and how much of it is done and in all, in bytes of the source.
Progress = Callable[[str, int, int], None]
Learn = Callable[[ConversionPlan, Path], Mapping[str, Factors]]


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        folder: Where it lies.
        plan: What was done.
        kept_shards: Files that an interrupted run had finished.
        notes: One line each: what was rounded, left out, or begun anew.
        quality: The report, if one was asked for.
    """

    folder: Path
    plan: ConversionPlan
    kept_shards: int
    notes: tuple[str, ...]
    quality: Mapping[str, Any] | None = None


def convert(
    source: Source,
    recipe: Recipe,
    target: Path,
    *,
    force: bool = False,
    resume: bool = True,
    allow_nan: bool = False,
    progress: Progress | None = None,
    learn: Learn | None = None,
    evaluate: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: From `open_source`.
        recipe: From `read_recipe`.
        target: The folder to make.
        force: Replace a checkpoint that is there.
        resume: Go on with what an interrupted run has finished.
        allow_nan: Take over values that are not finite.
        progress: Called with the name of a phase, and (bytes of the source done, bytes in all).
            First come, where a recipe asks for them, the grid's search and learning.
        learn: Returns learned factors; it may keep its own work in the folder that it is given,
            and removes none.  None is what the recipe asks for.
        evaluate: Returns the quality of the finished folder, before it takes its name.

    Raises:
        OptionError: The target is there, or the recipe does not fit.
        CheckpointError: The source is damaged, or the disk has too little room.
    """
    check_target(source, target, force)
    if recipe.learned == "awq":
        awq.check_source(source, recipe)
    notes = list(source.notes)
    with open_partial(target) as partial:
        plan = plan_conversion(source, recipe)
        if learn is None and recipe.learned == "awq":
            awq.check_learnable(plan)  # before what an earlier run has done is touched
            learn = functools.partial(awq.learn, progress=_in_phase(progress, LEARNING))
        state = _State(partial / PROGRESS_FILE, _key_of(source, recipe, allow_nan))
        if state.is_there and not state.is_ours:
            notes.append(
                "what an earlier run had done was of another source, recipe, or version, and was "
                "begun anew"
            )
        if not (resume and state.is_ours):
            empty_partial(partial)
            state.clear()
        if any(parameter.rule and parameter.rule.grid for parameter in plan.parameters()):
            if "grid" not in state.values:
                state.put("grid", find_scale_dtypes(plan, _in_phase(progress, SEARCHING)))
            found = state.values["grid"]
            plan = plan_conversion(source, recipe, scale_dtypes=found["scale_dtypes"])
            notes += found["notes"]
        kept = _write_shards(plan, partial, state, allow_nan, progress, learn)
        (partial / awq.FACTORS_FILE).unlink(missing_ok=True)  # they are in the shards now
        if any(
            tensor.dtype == "F32" and part.dtype == "BF16"
            for parameter in plan.parameters()
            for tensor, part in [(parameter.stored["weight"], parameter.parts["weight"])]
        ):
            notes.append("float32 parameters were rounded to bfloat16")
        record = _record(plan)
        _write_json(partial / INDEX_FILE, index_of(plan, state.checksums(), record))
        _write_json(partial / "config.json", plan.config())
        for name in COPIED_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, partial / name)
        quality = None
        if evaluate is not None:
            quality = dict(evaluate(partial))
            _write_json(partial / QUALITY_FILE, quality)
        write_card(partial, source_folder=source.folder, quality=quality)
        name_partial(partial, target, force)
    return Conversion(target, plan, kept, tuple(notes), quality)


def _write_shards(
    plan: ConversionPlan,
    partial: Path,
    state: "_State",
    allow_nan: bool,
    progress: Progress | None,
    learn: Learn | None,
) -> int:
    """Write the files that are missing; returns how many were there."""
    done, converting = 0, f"converting to {plan.recipe.name}"
    missing = [shard for shard in plan.shards if shard.file not in state.shards]
    check_room(plan, partial, sum(shard.nbytes for shard in missing))
    factors: Mapping[str, Factors] = {}
    if learn and missing:
        state.put("shards", dict(state.shards))  # says of what source and recipe its work is
        factors = learn(plan, partial)

    def on_block(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(converting, done, plan.source_bytes)

    for shard in plan.shards:
        if shard.file in state.shards:
            on_block(sum(parameter.source_bytes for parameter in shard.parameters))
            continue
        checksums = write_shard(
            shard, partial / shard.file, factors=factors, allow_nan=allow_nan, on_block=on_block
        )
        state.put_shard(shard.file, checksums)
    return len(plan.shards) - len(missing)


def _in_phase(progress: Progress | None, phase: str) -> Callable[[int, int], None] | None:
    return None if progress is None else functools.partial(progress, phase)


def _record(plan: ConversionPlan) -> dict[str, Any]:
    """Return what the index tells of the conversion; nothing in it changes from run to run."""
    return {
        "recipe": plan.recipe.name,
        "recipe_sha256": hashlib.sha256(plan.recipe.text.encode()).hexdigest(),
        "recipe_description": plan.recipe.description,
        "learned": plan.recipe.learned,
        # A path is nobody's business, and would differ from run to run.
        "source": _public_name(plan.source),
        "version": __version__,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "modules": [
            {**row, "settings": vars(row["settings"]) if row["settings"] else None}
            for row in plan.groups()
        ],
        "settings": {
            parameter.path: vars(parameter.settings) if parameter.settings else None
            for parameter in plan.parameters()
            if parameter.rule is not None
        },
    }


def _public_name(source: Source) -> str:
    """Return the Hub's name of a source, or the last part of its folder's."""
    is_folder = Path(source.name).expanduser().resolve() == source.folder.resolve()
    return source.folder.resolve().name if is_folder else source.name


class _State:
    """What an interrupted run has finished, in a file that is never half there."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        self.values: dict[str, Any] = {}
        try:
            values = json.loads(file.read_bytes())
            self.values = values if isinstance(values, dict) else {}
        except (OSError, ValueError):
            self.values = {}
        self.is_there = file.exists()
        self.is_ours = self.values.get("key") == key
        if self.is_ours:
            # A file that has vanished, or is shorter than it was, is written again.
            self.values["shards"] = {
                name: entry
                for name, entry in self.values["shards"].items()
                if (file.parent / name).is_file()
                and (file.parent / name).stat().st_size == entry["size"]
            }

    @property
    def shards(self) -> Mapping[str, Any]:
        """Finished files."""
        return self.values["shards"]

    def clear(self) -> None:
        self.values = {"key": self._key, "shards": {}}

    def put(self, name: str, value: Any) -> None:
        self.values[name] = value
        _write_json(self._file, self.values)

    def put_shard(self, name: str, checksums: Mapping[str, str]) -> None:
        size = (self._file.parent / name).stat().st_size
        self.put("shards", {**self.shards, name: {"size": size, "sha256": dict(checksums)}})

    def checksums(self) -> dict[str, str]:
        return {
            name: digest
            for entry in self.shards.values()
            for name, digest in entry["sha256"].items()
        }


def _key_of(source: Source, recipe: Recipe, allow_nan: bool) -> str:
    """Return what two runs must have in common to share their files."""
    files = [
        (file.name, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        for file in source.files
    ]
    settings = json.dumps(
        [__version__, recipe.text, dict(source.config), files, allow_nan], sort_keys=True
    )
    return hashlib.sha256(settings.encode()).hexdigest()


def _write_json(file: Path, value: Any) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(part)
    part.replace(file)
