"""AWQ: channels in which inputs are large are scaled up before rounding, layer by layer.

Rounding errs by the same step in every channel of a group, but an error counts by the input that it
meets.  So columns are multiplied by a scale s, and what makes their input is divided by it: the
model computes the same, and channels that count are rounded more finely.  s = mean|x| ** alpha, and
each alpha of a grid is tried on calibration prompts; 0 changes nothing and is one of them.

    input_layernorm            -> q_proj, k_proj, v_proj (global layers have no v_proj)
    pre_feedforward_layernorm  -> gate_proj, up_proj
    up_proj                    -> down_proj

Nothing can be divided before o_proj: between it and the projection of values stands a norm of each
head, which takes any scale out again.  The embedding is the output head too, and so has two inputs.
Clipping, the other half of some implementations, is not done.

The prompts go through the layers as they are, unrounded.  Each layer is then a problem of its own,
whose answer does not depend on those before it, and what was found is all that a resumed run needs.

mlx_lm's AWQ (`mlx_lm.quant.awq`) cannot take this architecture: it wants an mlx_lm model, of a
family in its table, whole in memory, and calibrates on text alone.

Source: Lin et al. 2023, AWQ: Activation-aware Weight Quantization, section 3.2, arXiv:2306.00978.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_gemma4.config import Config
from mlx_gemma4.convert.encode import Factors
from mlx_gemma4.convert.plan import ConversionPlan, PlannedParameter
from mlx_gemma4.convert.recipe import Recipe
from mlx_gemma4.convert.source import Source
from mlx_gemma4.errors import OptionError
from mlx_gemma4.evaluation.layers import LayerStep, LayerwiseRun
from mlx_gemma4.evaluation.prompts import bundled_prompts, score_prompts
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels.gate_up_geglu import geglu
from mlx_gemma4.kernels.qkv_norm_rope import pack_offsets
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.weights import open_checkpoint

FACTORS_FILE = "factors.safetensors"
# Of all calibration prompts together, evenly spread: what a candidate is judged on.
MAX_ROWS = 512
NUM_STEPS = 20  # alpha = 1/20, 2/20, ... 1, besides 0
# A channel that is never on has no scale of its own; this keeps scales within four decades.
_LEAST_SHARE = 1e-4
_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.up_proj", "mlp.down_proj"),
)

Progress = Callable[[int, int], None]


def check_source(source: Source, recipe: Recipe) -> None:
    """Refuse a source that AWQ cannot learn from.

    Raises:
        OptionError: It is a drafter or quantized.
    """
    if source.is_assistant:
        raise OptionError(
            f"recipe {recipe.name} learns its scales, and {source.name} is a drafter, which cannot "
            "run without the model; take a recipe without learned"
        )
    if source.quantization:
        raise OptionError(
            f"recipe {recipe.name} learns its scales from weights that are not rounded, and "
            f"{source.name} is quantized already; convert the bfloat16 checkpoint instead"
        )


def check_learnable(plan: ConversionPlan) -> None:
    """Refuse a plan with which AWQ has nothing to do, before anything is read.

    Raises:
        OptionError: No group of matrices that share an input is rounded to affine codes; or see
            `check_source`.
    """
    source, name = plan.source, plan.recipe.name
    check_source(source, plan.recipe)
    planned = {parameter.name: parameter for parameter in plan.parameters()}
    num_layers = Config.from_folder(source.folder).text_config.num_hidden_layers
    if not any(
        _group(planned, f"language_model.layers.{index}", group)
        for index in range(num_layers)
        for group in _GROUPS
    ):
        raise OptionError(
            f"recipe {name} learns its scales, and rounds no layer's gate_proj and up_proj, up_proj"
            " and down_proj, or q_proj, k_proj, and v_proj, which share a scale, to affine codes; "
            "remove learned, or give them a mode that is affine"
        )


def calibration_inputs(plan: ConversionPlan) -> list[ModelInputs]:
    """Return the bundled calibration prompts, of which the quality report uses none.

    Those with a medium that the source cannot take are left out.

    Raises:
        CheckpointError: A file of the processor is missing or damaged.
    """
    folder = plan.source.folder
    config = Config.from_folder(folder)
    prompts = [
        prompt
        for prompt in bundled_prompts("calibration")
        if (config.vision_config or not prompt.images) and (config.audio_config or not prompt.audio)
    ]
    processor = Processor.from_folder(folder, config)
    scored = score_prompts(prompts, processor, config.text_config.max_position_embeddings)
    return [prompt.inputs for prompt in scored]


def learn(
    plan: ConversionPlan,
    folder: Path,
    *,
    inputs: Sequence[ModelInputs] | None = None,
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """Return the factors that AWQ finds, by canonical parameter name.

    Memory holds one layer in float32, the hidden states of the prompts, and about two matrices.

    Args:
        plan: What becomes of each matrix.
        folder: What has been found is kept here layer by layer, in FACTORS_FILE, and taken up
            again; it must be of the same source and recipe.
        inputs: Prompts; None takes the bundled calibration set.
        progress: Called with (bytes of the layers done, bytes in all).

    Raises:
        OptionError: See `check_learnable`.
        CheckpointError: The source cannot be read.
    """
    check_learnable(plan)
    planned = {parameter.name: parameter for parameter in plan.parameters()}
    config = Config.from_folder(plan.source.folder)
    num_layers = config.text_config.num_hidden_layers
    sizes = [
        sum(
            parameter.source_bytes
            for name, parameter in planned.items()
            if name.startswith(f"language_model.layers.{index}.")
        )
        for index in range(num_layers)
    ]
    found, num_done = _read_found(folder / FACTORS_FILE)
    if num_done < num_layers:
        run = LayerwiseRun(
            open_checkpoint(plan.source.folder, config),
            calibration_inputs(plan) if inputs is None else inputs,
        )
        for step in run.layers():
            if step.index >= num_done:
                found |= _learn_layer(planned, run, step)
                _write_found(folder / FACTORS_FILE, found, step.index + 1)
            if progress:
                progress(sum(sizes[: step.index + 1]), sum(sizes))
    return found


def stored_matrix(
    parameter: PlannedParameter, weight: mx.array, factors: Factors | None
) -> mx.array:
    """Return what a matrix [R, K] is once it is stored, float32, factors included.

    Args:
        parameter: Rounded to affine codes.
        weight: As in the source, float32.
        factors: None where it takes none.
    """
    settings = parameter.settings
    if settings is None:
        raise ValueError(f"{parameter.name} is not quantized")
    floats = _DTYPES[parameter.parts["scales"].dtype]
    # As `encode_block` does it: codes are found in the dtype of the scales.
    rows = (weight if factors is None else _multiply(weight, factors)).astype(floats)
    packed, scales, biases = mx.quantize(
        rows, group_size=settings.group_size, bits=settings.bits, mode="affine"
    )
    return mx.dequantize(
        packed,
        scales.astype(floats).astype(mx.float32),
        biases.astype(floats).astype(mx.float32),
        group_size=settings.group_size,
        bits=settings.bits,
        mode="affine",
        dtype=mx.float32,
    )


def _multiply(weight: mx.array, factors: Factors) -> mx.array:
    if factors.rows is not None:
        weight = weight * factors.rows.reshape(-1, *(1 for _ in weight.shape[1:]))
    return weight if factors.columns is None else weight * factors.columns


def _group(
    planned: Mapping[str, PlannedParameter], layer: str, modules: Sequence[str]
) -> list[PlannedParameter]:
    """Return the matrices of a group that the layer has; none unless all take learned scales.

    They may have different bits and groups.
    """
    group = [planned[name] for module in modules if (name := f"{layer}.{module}.weight") in planned]
    is_learnable = all(
        parameter.settings is not None
        and parameter.settings.mode == "affine"
        and not (parameter.rule and parameter.rule.grid)  # taken over without loss as it is
        for parameter in group
    )
    return group if is_learnable else []


def _learn_layer(
    planned: Mapping[str, PlannedParameter], run: LayerwiseRun, step: LayerStep
) -> dict[str, Factors]:
    """Return the factors of one layer, which is left as it was."""
    before, between = _sample(run, step)
    found: dict[str, Factors] = {}
    if attention := _group(planned, step.path, _GROUPS[0]):
        norm = planned[f"{step.path}.input_layernorm.weight"]
        found |= _learn_attention(norm, attention, step, before)
        mx.clear_cache()
    found |= _learn_mlp(planned, step, between)
    mx.clear_cache()
    for factors in found.values():
        mx.eval([array for array in (factors.rows, factors.columns) if array is not None])
    return found


def _sample(run: LayerwiseRun, step: LayerStep) -> tuple[mx.array, mx.array]:
    """Return states before the layer and before its feed-forward, [N, D] each, at some positions.

    Positions are evenly spread over all prompts, N <= MAX_ROWS.
    """
    layer = step.layer
    ends = np.cumsum([x.shape[1] for x in step.inputs])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(MAX_ROWS, ends[-1])).round().astype(int))
    before: list[mx.array] = []
    between: list[mx.array] = []
    for number, x in enumerate(step.inputs):
        start = ends[number] - x.shape[1]
        rows = mx.array(chosen[(chosen >= start) & (chosen < ends[number])] - start)
        if not rows.size:
            continue
        mask = run.mask(number, step.layer_type)
        attended = layer.self_attn(layer.input_layernorm(x), mask, pack_offsets([0]), None)
        after = x + layer.post_attention_layernorm(attended)
        before.append(x[0][rows])
        between.append(after[0][rows])
        mx.eval(before[-1], between[-1])
    return mx.concatenate(before), mx.concatenate(between)


def _learn_attention(
    norm: PlannedParameter, group: list[PlannedParameter], step: LayerStep, x: mx.array
) -> dict[str, Factors]:
    """Scale the inputs of queries, keys, and values.

    Each head of them is normed before anything else happens to it, so errors are those of the
    normed heads; the learned weights of q_norm and k_norm are left out of account.
    """
    attention, layer_norm = step.layer.self_attn, step.layer.input_layernorm
    plain = layer_norm(x)
    normed = mx.fast.rms_norm(x, None, layer_norm.eps)
    weights = {
        parameter.name: attention[parameter.path.rpartition(".")[2]].weight for parameter in group
    }

    def heads(inputs: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(
            (inputs @ weight.T).reshape(-1, attention.head_dim), None, attention.k_norm.eps
        )

    wanted = {name: heads(plain, weight) for name, weight in weights.items()}
    mx.eval(wanted)

    def error(scale: mx.array | None) -> float:
        fold = None if scale is None else _fold(norm, layer_norm.weight, scale)
        inputs = plain if fold is None else normed * fold.stored
        columns = fold.columns if fold else None
        total = 0.0
        for parameter in group:
            stored = stored_matrix(parameter, weights[parameter.name], columns)
            total += _mean_square(heads(inputs, stored) - wanted[parameter.name])
        return total

    scale = _search(mx.abs(plain).mean(0), error)
    if scale is None:
        return {}
    fold = _fold(norm, layer_norm.weight, scale)
    return {norm.name: fold.rows, **{parameter.name: fold.columns for parameter in group}}


def _learn_mlp(
    planned: Mapping[str, PlannedParameter], step: LayerStep, x: mx.array
) -> dict[str, Factors]:
    """Scale the inputs of gate_proj and up_proj, then those of down_proj.

    Errors are those of what the feed-forward returns: first with down_proj as it is, then with all
    three matrices as they will be stored.
    """
    layer_norm = step.layer.pre_feedforward_layernorm
    norm = planned[f"{step.path}.pre_feedforward_layernorm.weight"]
    gate, up, down = (
        planned[f"{step.path}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")
    )
    of_gate, of_up, of_down = (
        step.layer.mlp[f"{name}_proj"].weight for name in ("gate", "up", "down")
    )
    plain = layer_norm(x)
    normed = mx.fast.rms_norm(x, None, layer_norm.eps)
    hidden = geglu(plain @ of_gate.T, plain @ of_up.T)
    wanted = hidden @ of_down.T
    mx.eval(hidden, wanted)
    found: dict[str, Factors] = {}
    inputs, columns = plain, None
    if is_scaled := bool(_group(planned, step.path, _GROUPS[1])):

        def first_error(scale: mx.array | None) -> float:
            fold = None if scale is None else _fold(norm, layer_norm.weight, scale)
            inputs = plain if fold is None else normed * fold.stored
            columns = fold.columns if fold else None
            by_gate = inputs @ stored_matrix(gate, of_gate, columns).T
            mx.eval(by_gate)
            by_up = inputs @ stored_matrix(up, of_up, columns).T
            return _mean_square(geglu(by_gate, by_up) @ of_down.T - wanted)

        scale = _search(mx.abs(plain).mean(0), first_error)
        if scale is not None:
            fold = _fold(norm, layer_norm.weight, scale)
            inputs, columns = normed * fold.stored, fold.columns
            found |= {norm.name: fold.rows, gate.name: columns, up.name: columns}
    if _group(planned, step.path, _GROUPS[2]):
        by_gate = inputs @ (stored_matrix(gate, of_gate, columns) if is_scaled else of_gate).T
        mx.eval(by_gate)

        def second_error(scale: mx.array | None) -> float:
            by_up = inputs @ stored_matrix(up, of_up, _divide_rows(columns, scale)).T
            mx.eval(by_up)
            factors = None if scale is None else Factors(columns=scale)
            return _mean_square(
                geglu(by_gate, by_up) @ stored_matrix(down, of_down, factors).T - wanted
            )

        scale = _search(mx.abs(hidden).mean(0), second_error)
        if scale is not None:
            found[down.name] = Factors(columns=scale)
            found[up.name] = cast(Factors, _divide_rows(columns, scale))
    return found


def _divide_rows(factors: Factors | None, scale: mx.array | None) -> Factors | None:
    """Return factors of columns with rows divided by a scale, if there is one."""
    if scale is None:
        return factors
    return Factors(rows=1 / scale, columns=factors.columns if factors else None)


def _search(mean: mx.array, error: Callable[[mx.array | None], float]) -> mx.array | None:
    """Return the scale [K] with the least error; None if none is better than leaving things alone.

    Args:
        mean: Of the inputs' magnitude, [K] float32.
        error: Of a scale, or of none.
    """
    mean = mx.maximum(mean, _LEAST_SHARE * mean.max())
    best, least = None, error(None)
    if not bool((mean > 0).all()):
        return None  # nothing ever comes in
    for number in range(1, NUM_STEPS + 1):
        scale = mean ** (number / NUM_STEPS)
        # The level is free; this keeps values about as large as they were.
        scale = scale / mx.sqrt(scale.max() * scale.min())
        mx.eval(scale)
        if (found := error(scale)) < least:
            best, least = scale, found
    return best


@dataclass(frozen=True)
class _Fold:
    """A scale folded into a norm: `rows` for its weight, `columns` for the matrices behind it.

    `stored` is the norm's weight as it will be stored, float32.
    """

    stored: mx.array
    rows: Factors
    columns: Factors


def _fold(norm: PlannedParameter, weight: mx.array, scale: mx.array) -> _Fold:
    """Divide a norm's weight [K] by a scale [K].

    The quotient is rounded as it is stored, and the columns take what the rounded one lacks, so
    that the product is the old weight again.
    """
    dtype = _DTYPES[norm.parts["weight"].dtype]
    stored = (weight / scale).astype(dtype).astype(mx.float32)
    is_left = (stored == 0) | mx.isinf(stored)  # a weight of 0, or too small or large for the dtype
    rows = mx.where(is_left, 1, stored / mx.where(is_left, 1, weight))
    columns = mx.where(is_left, 1, weight / mx.where(is_left, 1, stored))
    stored = mx.where(is_left, weight.astype(dtype).astype(mx.float32), stored)
    mx.eval(stored, rows, columns)
    return _Fold(stored, Factors(rows=rows), Factors(columns=columns))


def _mean_square(array: mx.array) -> float:
    return cast(float, mx.mean(array * array).item())


def _read_found(file: Path) -> tuple[dict[str, Factors], int]:
    """Return factors that an interrupted run has found, and of how many layers; or none."""
    try:
        arrays, metadata = cast(
            tuple[dict[str, mx.array], dict[str, str]], mx.load(str(file), return_metadata=True)
        )
        mx.eval(arrays)  # the file is written anew later
        num_done = int(metadata["num_layers"])
    except (OSError, RuntimeError, ValueError, KeyError):
        return {}, 0
    names = {key.rpartition("/")[0] for key in arrays} - {""}
    return {
        name: Factors(arrays.get(f"{name}/rows"), arrays.get(f"{name}/columns")) for name in names
    }, num_done


def _write_found(file: Path, found: Mapping[str, Factors], num_layers: int) -> None:
    """Keep factors; the file is never half there."""
    part = file.with_name(f"part-{file.name}")
    # A file needs a tensor, and a model may need no factor.
    arrays = {"num_layers": mx.array(num_layers), **dict(_arrays_of(found))}
    mx.save_safetensors(str(part), arrays, {"num_layers": str(num_layers)})
    part.replace(file)


def _arrays_of(found: Mapping[str, Factors]) -> Iterator[tuple[str, mx.array]]:
    for name, factors in found.items():
        for axis in ("rows", "columns"):
            if (array := getattr(factors, axis)) is not None:
                yield f"{name}/{axis}", array
