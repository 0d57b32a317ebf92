"""AWQ: the model computes the same, what counts is rounded better, and nothing gets worse."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from quantized_checkpoint import write_quantized
from random_checkpoint import Size, write_checkpoint
from safetensors.numpy import load_file, save_file
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.api import load
from mlx_gemma4.config import Config
from mlx_gemma4.convert import awq
from mlx_gemma4.convert.awq import FACTORS_FILE, calibration_inputs, learn
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.encode import Factors
from mlx_gemma4.convert.plan import ConversionPlan, plan_conversion
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import ASSISTANT, Source, open_source
from mlx_gemma4.convert.target import partial_folder_of
from mlx_gemma4.errors import OptionError
from mlx_gemma4.evaluation.layers import LayerwiseRun
from mlx_gemma4.evaluation.prompts import bundled_prompts, score_prompts
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels.qkv_norm_rope import pack_offsets
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.weights import canonical_name, open_checkpoint

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)
LAYER = "language_model.layers.{}"
# Hidden channels that are on ten times as strongly as the others.
LOUD = [3, 17, 40, 41]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small bfloat16 checkpoint whose norms let a few channels through more than others.

    Not to be changed.
    """
    folder = tmp_path_factory.mktemp("awq") / "source"
    write_checkpoint(folder, SMALL, dtype="bfloat16", has_tokenizer=False)
    file = folder / "model.safetensors"
    arrays = cast(dict[str, mx.array], mx.load(str(file)))
    for name, array in arrays.items():
        if name.endswith(("input_layernorm.weight", "pre_feedforward_layernorm.weight")):
            array[mx.array(LOUD)] *= 10
        # Channels of the feed-forward that are on more strongly, for down_proj.
        if name.endswith("up_proj.weight"):
            array[:8] *= 20
        mx.eval(array)
    mx.save_safetensors(str(file), arrays, {"format": "mlx"})
    return write_tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def inputs() -> list[ModelInputs]:
    rng = np.random.default_rng(1)
    return [ModelInputs(rng.integers(100, 900, count).astype(np.int32)) for count in (50, 30, 20)]


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """Try five scales in place of twenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(awq, "NUM_STEPS", 5)
        yield


@dataclass(frozen=True)
class Learned:
    """What is learned for 3 bits, the folder of its file, and a checkpoint made with it."""

    plan: ConversionPlan
    found: dict[str, Factors]
    folder: Path
    converted: Path
    progress: list[tuple[int, int]]


@pytest.fixture(scope="module")
def learned(
    source: Path,
    inputs: list[ModelInputs],
    few_steps: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Learned:
    """Return what is learned once for all; not to be changed."""
    folder = tmp_path_factory.mktemp("learned")
    recipe = recipe_file(folder)
    plan = planned(source, recipe)
    calls: list[tuple[int, int]] = []
    found = learn(
        plan, folder, inputs=inputs, progress=lambda done, total: calls.append((done, total))
    )
    run(open_source(source), recipe, folder / "out", found)
    return Learned(plan, found, folder, folder / "out", calls)


def recipe_file(folder: Path, bits: int = 3, *, learned: bool = True, first: str = "") -> Path:
    file = folder / f"mine-{bits}-{learned}.toml"
    rules = f'[[modules]]\nmatch = "language_model.*"\nbits = {bits}\ngroup_size = 64\n'
    keep = '[[modules]]\nmatch = "*"\nkeep = true\n'
    top = 'learned = "awq"\n' if learned else ""
    file.write_text(top + first + rules + keep)
    return file


def run(
    source: Source, recipe: Path, target: Path, found: Mapping[str, Factors] | None = None
) -> None:
    """Convert with factors that were found."""
    chosen = read_recipe(recipe)
    convert(source, chosen, target, learn=lambda _, __: found or {})


def planned(source: Path, recipe: Path) -> ConversionPlan:
    return plan_conversion(open_source(source), read_recipe(recipe))


def stored(folder: Path) -> dict[str, mx.array]:
    """Return every parameter as the files have it, dequantized by MLX, float32."""
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= cast(dict[str, mx.array], mx.load(str(file)))
    arrays = {canonical_name(name): array for name, array in found.items()}
    for path, settings in checkpoint.quantization.items():
        scales, biases = (
            arrays.pop(f"{path}.{part}").astype(mx.float32) for part in ("scales", "biases")
        )
        arrays[f"{path}.weight"] = mx.dequantize(
            arrays[f"{path}.weight"], scales, biases, **vars(settings)
        )
    return {name: array.astype(mx.float32) for name, array in arrays.items()}


def multiplied(array: mx.array, factors: Factors) -> np.ndarray:
    """Return a parameter with its factors, by NumPy in float64."""
    values = np.array(array.astype(mx.float32)).astype(np.float64)
    if factors.rows is not None:
        values = values * np.array(factors.rows).reshape(-1, *([1] * (values.ndim - 1)))
    return values if factors.columns is None else values * np.array(factors.columns)


def layer_errors(
    source: Path, converted: Path, inputs: list[ModelInputs]
) -> dict[str, tuple[float, ...]]:
    """Return, by layer, the errors of queries, keys and values together and of the feed-forward.

    Both are of the converted layer on the states of the source's, as a whole checkpoint runs.
    """
    runs = [
        LayerwiseRun(open_checkpoint(folder, Config.from_folder(folder)), inputs)
        for folder in (source, converted)
    ]
    errors: dict[str, tuple[float, ...]] = {}
    for plain, rounded in zip(runs[0].layers(), runs[1].layers(), strict=True):
        attention: Any = 0.0
        feed_forward: Any = 0.0
        for number, x in enumerate(plain.inputs):
            mask = runs[0].mask(number, plain.layer_type)
            ours, theirs = plain.layer, rounded.layer
            for name in ("q_proj", "k_proj", "v_proj"):
                if name in ours.self_attn:
                    heads = [
                        mx.fast.rms_norm(
                            layer.self_attn[name](layer.input_layernorm(x)).reshape(
                                -1, layer.self_attn.head_dim
                            ),
                            None,
                            1e-6,
                        )
                        for layer in (ours, theirs)
                    ]
                    attention += mx.mean((heads[0] - heads[1]) ** 2).item() / len(inputs)
            between = x + ours.post_attention_layernorm(
                ours.self_attn(ours.input_layernorm(x), mask, pack_offsets([0]), None)
            )
            wanted, found = (
                layer.mlp(layer.pre_feedforward_layernorm(between)) for layer in (ours, theirs)
            )
            feed_forward += mx.sum((wanted - found) ** 2).item()
        errors[plain.path] = attention, feed_forward
    return errors


def test_with_factors_and_no_rounding_the_model_computes_the_same(
    source: Path, tmp_path: Path, inputs: list[ModelInputs], learned: Learned
) -> None:
    found = learned.found
    # Of both layer types, all three groups.
    for index in (0, 5):
        names = {name.removeprefix(f"{LAYER.format(index)}.") for name in found}
        assert {
            "input_layernorm.weight",
            "self_attn.q_proj.weight",
            "pre_feedforward_layernorm.weight",
            "mlp.gate_proj.weight",
            "mlp.up_proj.weight",
            "mlp.down_proj.weight",
        } <= names
    copy = Path(shutil.copytree(source, tmp_path / "float32"))
    arrays = cast(dict[str, mx.array], mx.load(str(source / "model.safetensors")))
    changed: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        values = np.array(array.astype(mx.float32))
        factors = found.get(canonical_name(name))
        changed[name] = values if factors is None else multiplied(array, factors)
    save_file(
        {name: a.astype(np.float32) for name, a in changed.items()}, copy / "model.safetensors"
    )
    # Layer by layer: a random model's attention is so sharp that rounding errors of float32 grow
    # from one layer to the next.
    runs = [
        LayerwiseRun(open_checkpoint(folder, Config.from_folder(folder)), inputs)
        for folder in (source, copy)
    ]
    for plain, scaled in zip(runs[0].layers(), runs[1].layers(), strict=True):
        for number, x in enumerate(plain.inputs):
            wanted, output = np.array(plain.forward(number)), np.array(scaled.forward(number, x))
            assert np.abs(output - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert any(
        not np.array_equal(changed[name], np.array(a.astype(mx.float32)))
        for name, a in arrays.items()
    )


def test_what_the_norm_lacks_by_rounding_the_columns_take(source: Path, learned: Learned) -> None:
    found = learned.found
    plain = stored(source)
    for layer in range(6):
        norm, matrix = (
            f"{LAYER.format(layer)}.{name}.weight"
            for name in ("pre_feedforward_layernorm", "mlp.gate_proj")
        )
        weight = np.array(plain[norm])
        rounded = np.array(
            (plain[norm] * cast(mx.array, found[norm].rows)).astype(mx.bfloat16).astype(mx.float32)
        )
        columns = np.array(cast(mx.array, found[matrix].columns))
        assert columns.max() > 1.2 * columns.min()
        assert np.allclose(rounded.astype(np.float64) * columns, weight, rtol=3e-7, atol=0)


def test_no_layer_is_worse_on_calibration_and_with_loud_channels_most_are_much_better(
    source: Path, tmp_path: Path, inputs: list[ModelInputs], learned: Learned
) -> None:
    run(open_source(source), recipe_file(tmp_path, learned=False), tmp_path / "plain")
    before = layer_errors(source, tmp_path / "plain", inputs)
    after = layer_errors(source, learned.converted, inputs)
    # All positions together are fewer than MAX_ROWS, so these are the errors of the search.
    for path in before:
        for k in range(2):
            assert after[path][k] <= before[path][k] * 1.001, (path, k)
    ratios = np.array(list(after.values())) / np.array(list(before.values()))
    assert np.median(ratios, axis=0).max() < 0.6
    assert ratios.max() < 0.95


def test_what_is_judged_is_what_is_stored(source: Path, learned: Learned) -> None:
    plan, found = learned.plan, learned.found
    plain, converted = stored(source), stored(learned.converted)
    for parameter in plan.parameters():
        if parameter.settings and parameter.name.startswith("language_model.layers."):
            judged = awq.stored_matrix(parameter, plain[parameter.name], found.get(parameter.name))
            assert mx.array_equal(judged, converted[parameter.name]), parameter.name


def test_plain_matrices_and_other_modes_are_left_alone(
    source: Path, tmp_path: Path, inputs: list[ModelInputs]
) -> None:
    first = (
        '[[modules]]\nmatch = "*.v_proj"\nkeep = true\n'
        '[[modules]]\nmatch = "*.layers.1.mlp.gate_proj"\nmode = "mxfp4"\n'
        '[[modules]]\nmatch = "*.layers.2.mlp.down_proj"\nkeep = true\n'
        '[[modules]]\nmatch = "*.layers.3.mlp.up_proj"\nbits = 8\n'
    )
    found = learn(planned(source, recipe_file(tmp_path, first=first)), tmp_path, inputs=inputs)
    assert not any(".v_proj" in name or ".o_proj" in name for name in found)
    # Sliding layers have a v_proj, global ones do not.
    assert f"{LAYER.format(0)}.self_attn.q_proj.weight" not in found
    assert f"{LAYER.format(5)}.self_attn.q_proj.weight" in found
    of_layer = {
        index: {name.split(".")[4] for name in found if f".layers.{index}.mlp." in name}
        for index in range(4)
    }
    assert of_layer[0] == {"gate_proj", "up_proj", "down_proj"}
    assert of_layer[1] == {"up_proj", "down_proj"}
    assert found[f"{LAYER.format(1)}.mlp.up_proj.weight"].columns is None
    assert of_layer[2] == {"gate_proj", "up_proj"}
    assert found[f"{LAYER.format(2)}.mlp.up_proj.weight"].rows is None
    assert of_layer[3] == {"gate_proj", "up_proj", "down_proj"}


def test_a_silent_model_has_no_factors() -> None:
    def error(scale: mx.array | None) -> float:
        return 0.0 if scale is None else pytest.fail("there is nothing to scale by")

    assert awq._search(mx.zeros(64), error) is None


def test_a_scale_must_be_better_and_not_as_good() -> None:
    mean = mx.array(np.random.default_rng(2).uniform(0.1, 3, 64).astype(np.float32))
    assert awq._search(mean, lambda _: 1.0) is None
    tried: list[np.ndarray] = []

    def error(scale: mx.array | None) -> float:
        tried.append(np.ones(64) if scale is None else np.array(scale))
        return 3.0 if len(tried) == 4 else 5.0

    best = awq._search(mean, error)
    assert best is not None
    assert len(tried) == awq.NUM_STEPS + 1
    expected = np.array(mean) ** (3 / 5)
    expected /= np.sqrt(expected.max() * expected.min())
    assert np.allclose(np.array(best), expected, rtol=1e-5)


class InterruptionError(Exception):
    """What a test interrupts learning with."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_interrupted_run_goes_on_and_ends_byte_identical(
    source: Path, tmp_path: Path, inputs: list[ModelInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file(tmp_path)
    opened = open_source(source)
    monkeypatch.setattr(awq, "calibration_inputs", lambda _: inputs)
    learned: list[int] = []
    real = awq._learn_layer

    def interrupted(planned: Any, run: Any, step: Any) -> Any:
        if step.index == 3 and 3 not in learned:
            learned.append(3)
            raise InterruptionError
        learned.append(step.index)
        return real(planned, run, step)

    monkeypatch.setattr(awq, "_learn_layer", interrupted)
    with pytest.raises(InterruptionError):
        convert(opened, read_recipe(recipe), tmp_path / "out")
    assert (partial_folder_of(tmp_path / "out") / FACTORS_FILE).is_file()
    done = convert(opened, read_recipe(recipe), tmp_path / "out")
    assert learned == [0, 1, 2, 3, 3, 4, 5]
    assert not any("begun anew" in note for note in done.notes)
    convert(opened, read_recipe(recipe), tmp_path / "whole")
    assert learned[7:] == [0, 1, 2, 3, 4, 5]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert FACTORS_FILE not in contents(tmp_path / "out")
    assert not any(name.startswith("part-") for name in contents(tmp_path / "out"))


def test_factors_of_another_recipe_are_not_taken_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: Learned
) -> None:
    opened = open_source(source)
    name = f"{LAYER.format(0)}.input_layernorm.weight"

    def wrong(plan: ConversionPlan, folder: Path) -> Mapping[str, Factors]:
        awq._write_found(folder / FACTORS_FILE, {name: Factors(rows=mx.zeros(64))}, 6)
        raise InterruptionError

    with pytest.raises(InterruptionError):
        convert(opened, read_recipe(recipe_file(tmp_path, 4)), tmp_path / "out", learn=wrong)
    monkeypatch.setattr(awq, "_learn_layer", lambda *_: {})
    monkeypatch.setattr(awq, "calibration_inputs", lambda _: [ModelInputs.from_ids([5, 6])])
    recipe = read_recipe(recipe_file(tmp_path, 3))
    done = convert(opened, recipe, tmp_path / "out")
    assert any("begun anew" in note for note in done.notes)
    assert mx.array_equal(stored(tmp_path / "out")[name], stored(source)[name])


def test_a_damaged_file_of_factors_is_begun_anew(
    tmp_path: Path, inputs: list[ModelInputs], learned: Learned
) -> None:
    whole = (learned.folder / FACTORS_FILE).read_bytes()
    (tmp_path / FACTORS_FILE).write_bytes(whole[:100])
    again = learn(learned.plan, tmp_path, inputs=inputs)  # the same every time
    assert again.keys() == learned.found.keys()
    assert (tmp_path / FACTORS_FILE).read_bytes() == whole
    # The format is safetensors, as others read it.
    arrays = load_file(tmp_path / FACTORS_FILE)
    name = f"{LAYER.format(0)}.mlp.down_proj.weight"
    columns = cast(mx.array, learned.found[name].columns)
    assert np.array_equal(arrays[f"{name}/columns"], np.array(columns))


def test_progress_ends_at_the_whole(learned: Learned) -> None:
    calls = learned.progress
    assert len(calls) == 6
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]


def test_calibration_sees_pictures_and_sounds_and_nothing_of_the_report(tmp_path: Path) -> None:
    demo = planned(find_checkpoint("demo"), recipe_file(tmp_path))
    inputs = calibration_inputs(demo)
    assert {span.modality for of_one in inputs for span in of_one.spans} == {"image", "audio"}
    config = Config.from_folder(demo.source.folder)
    processor = Processor.from_folder(demo.source.folder, config)
    report = score_prompts(bundled_prompts("report"), processor, 8192)
    seen = {of_one.input_ids.tobytes() for of_one in inputs if not of_one.spans}
    assert seen
    assert not seen & {prompt.inputs.input_ids.tobytes() for prompt in report}


def test_quantized_sources_and_recipes_that_round_nothing_are_refused(
    source: Path, tmp_path: Path
) -> None:
    quantized = write_quantized(source, tmp_path / "quantized", bits=4)
    shutil.copy(source / "tokenizer.json", quantized)
    with pytest.raises(OptionError, match="quantized already; convert the bfloat16 checkpoint"):
        convert(open_source(quantized), read_recipe(recipe_file(tmp_path, 4)), tmp_path / "out")
    recipe = tmp_path / "mx.toml"
    recipe.write_text(
        'learned = "awq"\n[[modules]]\nmatch = "language_model.*"\nmode = "mxfp4"\n'
        '[[modules]]\nmatch = "*"\nkeep = true\n'
    )
    with pytest.raises(OptionError, match="remove learned, or give them a mode that is affine"):
        convert(open_source(source), read_recipe(recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plan = planned(source, recipe_file(tmp_path))
    drafter = replace(plan.source, config={"model_type": ASSISTANT})
    with pytest.raises(OptionError, match="is a drafter"):
        awq.check_learnable(replace(plan, source=drafter))


def test_the_result_loads_and_is_closer_than_without(
    source: Path, tmp_path: Path, inputs: list[ModelInputs], learned: Learned
) -> None:
    run(open_source(source), recipe_file(tmp_path, learned=False), tmp_path / "plain")
    wanted = np.array(load(source, dtype="float32")[0](inputs[0]))
    errors: list[float] = []
    for folder in (tmp_path / "plain", learned.converted):
        model, _ = load(folder)
        assert isinstance(model.language_model.layers[0].mlp.up_proj, nn.QuantizedLinear)
        errors.append(float(np.mean((np.array(model(inputs[0])) - wanted) ** 2)))
    assert errors[1] < errors[0]
