"""What `bench` does: everything that was asked for is measured, and becomes one document."""

import datetime
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma4.cli.terminal import ProgressBar, Waiting, say
from mlx_gemma4.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from mlx_gemma4.bench.facts import KernelFinding, Quality
    from mlx_gemma4.bench.machine import Machine
    from mlx_gemma4.bench.measure import Progress, Workload
    from mlx_gemma4.bench.power import EnergyMeter
    from mlx_gemma4.bench.report import Document, Row
    from mlx_gemma4.config import Config
    from mlx_gemma4.convert.plan import ConversionPlan

_SPARE_BYTES = 256 << 20  # beside a conversion's tensors; the disk is also others'


def measure(
    name: str,
    workload: "Workload",
    load_options: dict[str, Any],
    *,
    with_kernels: bool = False,
    with_power: bool = False,
    conversion: str | None = None,
) -> tuple["Document", bool]:
    """Return what was measured, and whether all of it was.

    Args:
        name: Of the checkpoint.
        workload: What to measure.
        load_options: Those of `load` and of `generate`, under the names of the former.
        with_kernels: Check and time every kernel first.
        with_power: Measure what settings are worth in energy, which then has to be readable.
        conversion: The recipe of a conversion to measure.

    Raises:
        Gemma4Error: What was asked for cannot be measured.
    """
    from mlx_gemma4.bench.facts import describe_model
    from mlx_gemma4.bench.knobs import measure_knobs
    from mlx_gemma4.bench.machine import describe_machine
    from mlx_gemma4.bench.measure import Bench
    from mlx_gemma4.bench.power import open_meter
    from mlx_gemma4.bench.report import Document
    from mlx_gemma4.bench.starts import load_model, measure_starts
    from mlx_gemma4.config import Config
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.weights import check_quantize, open_checkpoint

    folder = find_checkpoint(name)
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    _check_media(checkpoint.config, workload)
    if load_options["quantize"] is not None:
        check_quantize(checkpoint, load_options["quantize"])
    recipe, quality = _read_conversion(folder, load_options["quantize"])
    plan = None if conversion is None else _plan_conversion(folder, conversion)
    rows: list[Row] = []
    notes: list[str] = []
    rounds = workload.rounds
    waiting = Waiting("")

    def progress(text: str) -> None:
        nonlocal waiting
        waiting.hide()
        waiting = Waiting(f"{text} ...")
        waiting.show()

    progress("the machine at rest")
    meter = open_meter(is_asked=with_power)
    try:
        progress("the machine")
        machine = describe_machine()
        waiting.hide()
        kernels = _check_kernels(checkpoint.config, load_options["dtype"]) if with_kernels else ()
        if plan is not None:
            rows.append(_measure_conversion(plan, rounds, progress, meter))
        rows += measure_starts(name, load_options, rounds, progress, meter)
        model, processor, row = load_model(name, load_options, rounds, progress, meter)
        rows.append(row)
        facts = describe_model(checkpoint, model, load_options["quantize"], recipe)
        measuring = Bench(model, processor, facts, workload, machine.ceiling, progress, meter)
        knobs: Iterator[Row] = iter(())
        if with_power and meter is not None:
            knobs = measure_knobs(measuring, model, workload, meter, progress)
        is_whole = True
        try:
            for row in chain(measuring.rows(), knobs):
                rows.append(row)  # one by one: those before an interruption are kept
        except KeyboardInterrupt:
            is_whole = False
            notes.append("interrupted: what comes after these rows was not measured")
        notes += [*(model.notes or ()), *measuring.notes]
    finally:
        waiting.hide()
        if meter is not None:
            meter.close()
    notes += [*_warnings(machine), *_tell_energy(meter, is_whole=is_whole)]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    power = meter and meter.facts
    document = Document(now, machine, facts, tuple(rows), quality, kernels, tuple(notes), power)
    return document, is_whole


def _plan_conversion(folder: Path, recipe: str) -> "ConversionPlan":
    """Return a conversion to measure, if it can be made.

    Raises:
        OptionError: The recipe is not known or does not fit, or the disk has too little room.
    """
    from mlx_gemma4.convert.plan import plan_conversion
    from mlx_gemma4.convert.recipe import read_recipe
    from mlx_gemma4.convert.source import check_tokenizer, open_source
    from mlx_gemma4.hub import free_bytes
    from mlx_gemma4.memory import format_bytes

    source = open_source(folder)
    check_tokenizer(source)
    plan = plan_conversion(source, read_recipe(recipe))
    temporary = Path(tempfile.gettempdir())
    free, needed = free_bytes(temporary), plan.nbytes + _SPARE_BYTES
    if needed > free:
        raise OptionError(
            f"--conversion {recipe} writes {format_bytes(needed)} into {temporary}, where "
            f"{format_bytes(free)} are free; make room, set TMPDIR to a folder on another disk, or "
            "leave it out"
        )
    return plan


def _measure_conversion(
    plan: "ConversionPlan", rounds: int, progress: "Progress", meter: "EnergyMeter | None"
) -> "Row":
    """Return how fast a checkpoint is converted; what comes of it is removed, whatever happens."""
    from mlx_gemma4.bench.measure import measured, take_spans
    from mlx_gemma4.bench.report import Row
    from mlx_gemma4.convert.conversion import convert
    from mlx_gemma4.convert.recipe import recipe_names

    # Somebody's own recipe has a name that is theirs.
    name = plan.recipe.name if plan.recipe.name in recipe_names() else "custom"
    turns = iter(range(rounds + 1))

    def convert_once() -> None:
        progress(f"conversion, {name}, round {next(turns)} of {rounds}")
        with tempfile.TemporaryDirectory(prefix="mlx-gemma4-") as folder:
            convert(plan.source, plan.recipe, Path(folder) / "converted")

    found = measured(take_spans(convert_once, rounds), meter)
    return Row("conversion", name, 0, 0, plan.source_bytes / 1e9, "GB", **found)


def _check_media(config: "Config", workload: "Workload") -> None:
    """Refuse media for which the checkpoint has no front end, before anything takes long."""
    for option, is_asked, front_end in (
        ("--image", workload.has_picture, config.vision_config),
        ("--audio", workload.has_sound, config.audio_config),
    ):
        if is_asked and front_end is None:
            raise OptionError(f"{option}: this checkpoint has no front end for it; leave it out")


def _check_kernels(config: "Config", dtype: str | None) -> tuple["KernelFinding", ...]:
    """Return what was found of every kernel on the shapes of a model."""
    import mlx.core as mx

    from mlx_gemma4.bench.facts import check_kernels
    from mlx_gemma4.kernels.kernel import Sizes

    sizes = Sizes.from_config(config.text_config, getattr(mx, dtype or config.dtype))
    with ProgressBar("checking kernels") as bar:
        return check_kernels(sizes, bar.update)


def _read_conversion(folder: Path, quantize: int | None) -> tuple[str | None, "Quality | None"]:
    """Return recipe and quality of a checkpoint that `convert` has made, as far as they are known.

    Somebody's own recipe is "custom": its name is theirs.
    """
    from mlx_gemma4.bench.facts import Quality
    from mlx_gemma4.config.section import read_json
    from mlx_gemma4.convert.card import read_record
    from mlx_gemma4.convert.conversion import QUALITY_FILE
    from mlx_gemma4.convert.recipe import recipe_names

    try:
        recipe = read_record(folder).recipe
    except CheckpointError:
        return None, None
    recipe = recipe if recipe in recipe_names() else "custom"
    file = folder / QUALITY_FILE
    if quantize is not None or not file.is_file():
        return recipe, None
    report = read_json(file)
    try:
        figures = report["kinds"]["all"]
        numbers = {
            key: None if figures.get(key) is None else float(figures[key])
            for key in ("perplexity", "reference_perplexity")
        }
        quality = Quality(
            int(report["prompts"]),
            float(figures["mean_kl"]),
            float(figures["top1_agreement"]),
            **numbers,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); remove it, or convert again"
        ) from None
    return recipe, quality


def _warnings(machine: "Machine") -> list[str]:
    """Return what makes these figures worth less."""
    state, notes = machine.state, []
    if state.load_average > machine.cpu_cores / 2:
        notes.append(
            f"the machine was busy (load average {state.load_average:.1f} on {machine.cpu_cores} "
            "cores): these figures are too low; measure again when nothing else runs"
        )
    if state.power == "battery" or state.is_low_power:
        notes.append("on battery, or saving energy: measure again on mains power")
    if machine.apple_chip is None:
        notes.append("ceilings are what this machine was measured to do, not its maker's figures")
    return notes


def _tell_energy(meter: "EnergyMeter | None", *, is_whole: bool) -> list[str]:
    """Return why rows have no energy, of those that could have had one.

    What a source said at its end goes to stderr alone: there may be names in it.
    """
    if meter is None:
        return []
    notes: list[str] = []
    if meter.is_too_short:
        notes.append(
            f"no energy where a sample takes less than {meter.shortest_s:g} s, in which too few "
            "readings are; give longer --prompt and --tokens"
        )
    if meter.problem is not None and is_whole:
        say(f"note: {meter.problem}")
        notes.append(f"energy is missing in some rows: {meter.facts.source} stopped telling it")
    return notes
