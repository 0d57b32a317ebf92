"""A checkpoint run layer by layer computes what the model computes, a layer at a time in memory."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from mlx.utils import tree_flatten
from quantized_checkpoint import write_quantized
from random_checkpoint import Size, write_checkpoint
from safetensors.numpy import load_file

from mlx_gemma4.api import load
from mlx_gemma4.config import Config
from mlx_gemma4.evaluation.layers import LayerwiseRun, embedding_rows
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.weights import Checkpoint, open_checkpoint

# Hidden sizes a multiple of 64, so that both can be quantized.
SMALL = Size(64, 128, 12, 2, 1, 32, 512, 32, 1280)


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, Config.from_folder(folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("layers") / "small", SMALL)


def media_inputs(folder: Path, rng: np.random.Generator) -> list[ModelInputs]:
    """Return a text longer than the window, a picture, a sound, and both."""
    _, processor = load(folder)
    picture = rng.integers(0, 255, (160, 200, 3), np.uint8)
    sound = rng.uniform(-0.5, 0.5, 9000).astype(np.float32)
    text = "What is the colour of the circle? " * 28
    return [
        processor(text),
        processor("How many?", images=[picture], image_tokens=70),
        processor("What do you hear?", audio=[sound]),
        processor("Do they fit?", images=[picture], audio=[sound], image_tokens=70),
    ]


def run_whole(folder: Path, inputs: list[ModelInputs], block: int = 500) -> list[np.ndarray]:
    """Return the logits [L, V] of every prompt."""
    run = LayerwiseRun(opened(folder), inputs)
    for _ in run.layers():
        pass
    final = run.finish([np.arange(len(of_one)) for of_one in inputs])
    vocab_size = run.config.text_config.vocab_size
    parts = [
        np.array(final.logits(final.rows(start, min(start + block, vocab_size))))
        for start in range(0, vocab_size, block)
    ]
    ends = np.cumsum([len(of_one) for of_one in inputs])
    return np.split(np.concatenate(parts, axis=1), ends[:-1])


@pytest.mark.parametrize("name", ["demo", "small"])
def test_logits_are_those_of_the_model(name: str, small: Path, rng: np.random.Generator) -> None:
    folder = find_checkpoint("demo") if name == "demo" else small
    model, _ = load(folder, dtype="float32")
    inputs = media_inputs(folder, rng)
    assert len(inputs[0]) > 2 * model.config.text_config.sliding_window
    for of_one, logits in zip(inputs, run_whole(folder, inputs), strict=True):
        # `load` joins q, k, and v, whose sums then have another order.  KL is at most half the
        # variance of the difference: of logits about 5 in size, (5e-6 * 5)^2 / 2.
        difference(logits, np.array(model(of_one))).assert_within(5e-6, mean_kl=5e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4},
        {"bits": 8, "group_size": 32},
        {"bits": 4, "mode": "mxfp4", "group_size": 32},
        {"bits": 8, "mode": "mxfp8", "group_size": 32},
        {"bits": 4, "mode": "nvfp4", "group_size": 16},
    ],
    ids=["q4", "q8-g32", "mxfp4", "mxfp8", "nvfp4"],
)
def test_quantized_checkpoints_too(
    settings: dict[str, Any], small: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = write_quantized(small, tmp_path / "quantized", **settings)
    model, _ = load(folder, dtype="float32")
    inputs = media_inputs(folder, rng)[1:2]
    inputs.append(ModelInputs.from_ids(range(100, 180)))
    for of_one, logits in zip(inputs, run_whole(folder, inputs), strict=True):
        difference(logits, np.array(model(of_one))).assert_within(1e-4)


def test_rows_of_the_embedding_are_those_of_the_file(small: Path, tmp_path: Path) -> None:
    stored = load_file(small / "model.safetensors")["model.language_model.embed_tokens.weight"]
    assert np.array_equal(np.array(embedding_rows(opened(small), 7, 100)), stored[7:100])
    quantized = opened(write_quantized(small, tmp_path / "q4", bits=4))
    parts = mx.quantize(mx.array(stored), group_size=64, bits=4)
    expected = np.array(mx.dequantize(*parts, group_size=64, bits=4))
    assert np.array_equal(np.array(embedding_rows(quantized, 1200, 1280)), expected[1200:1280])


def test_a_step_has_layer_path_and_inputs(small: Path) -> None:
    inputs = [ModelInputs.from_ids(range(100, 180)), ModelInputs.from_ids(range(40))]
    stored = load_file(small / "model.safetensors")
    run = LayerwiseRun(opened(small), inputs)
    expected: list[np.ndarray] = []
    indices: list[int] = []
    for step in run.layers():
        indices.append(step.index)
        assert step.path == f"language_model.layers.{step.index}"
        assert step.layer_type == run.config.text_config.layer_types[step.index]
        name = f"model.{step.path}.mlp.down_proj.weight"
        assert np.array_equal(np.array(step.layer.mlp.down_proj.weight), stored[name])
        for x, wanted in zip(step.inputs, expected, strict=False):
            assert np.array_equal(np.array(x), wanted)
        expected = [np.array(step.forward(number)) for number in range(2)]
        assert [x.shape for x in step.inputs] == [(1, 80, 64), (1, 40, 64)]
    assert indices == list(range(12))


def test_what_is_written_into_a_layer_is_what_the_states_meet(small: Path) -> None:
    inputs = [ModelInputs.from_ids(range(100, 180))]
    run = LayerwiseRun(opened(small), inputs)
    steps = run.layers()
    step = next(steps)
    layer, before = step.layer, np.array(step.inputs[0])
    # Nothing is added to the residual stream, which leaves the layer's scalar.
    layer.post_attention_layernorm.weight = mx.zeros(64)
    layer.post_feedforward_layernorm.weight = mx.zeros(64)
    scalar = np.array(layer.layer_scalar)
    assert np.array_equal(np.array(step.forward(0)), before * scalar)
    assert np.array_equal(np.array(next(steps).inputs[0]), before * scalar)


def test_other_states_may_go_through_a_layer(small: Path, rng: np.random.Generator) -> None:
    inputs = [ModelInputs.from_ids(range(100, 180))]
    step = next(LayerwiseRun(opened(small), inputs).layers())
    other = mx.array(rng.standard_normal((1, 80, 64)).astype(np.float32))
    alone = np.array(step.forward(0, other))
    assert not np.array_equal(alone, np.array(step.forward(0)))
    # Position 0 sees itself alone, whatever follows.
    changed = mx.concatenate([other[:, :1], 2 * other[:, 1:]], axis=1)
    assert np.allclose(np.array(step.forward(0, changed))[:, 0], alone[:, 0], atol=1e-5)


def test_a_loop_that_was_left_goes_on_where_it_was(small: Path) -> None:
    inputs = [ModelInputs.from_ids(range(100, 180))]
    run, whole = LayerwiseRun(opened(small), inputs), LayerwiseRun(opened(small), inputs)
    for step in run.layers():
        if step.index == 5:
            break
    with pytest.raises(ValueError, match="gone through 5 layers"):
        run.finish([np.arange(80)])
    assert [step.index for step in run.layers()] == [5, 6, 7, 8, 9, 10, 11]
    assert [step.index for step in whole.layers()] == list(range(12))
    positions = [np.array([0, 79])]
    assert np.array_equal(
        np.array(run.finish(positions).hidden), np.array(whole.finish(positions).hidden)
    )


def test_a_layer_is_dropped_when_the_states_have_gone_through_it(small: Path) -> None:
    run = LayerwiseRun(opened(small), [ModelInputs.from_ids(range(100, 180))])
    kept = []
    for step in run.layers():
        assert all(not tree_flatten(layer.parameters()) for layer in kept)
        kept.append(step.layer)
    assert not tree_flatten(kept[-1].parameters())


def test_memory_holds_a_layer_and_never_the_embedding(tmp_path: Path) -> None:
    # Layers of 0.9 MB, twelve of them, and an embedding of 8 MB.
    size = Size(128, 512, 12, 2, 1, 32, 64, 32, 16384)
    folder = write_checkpoint(tmp_path / "wide", size, has_tokenizer=False)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    inputs = [ModelInputs.from_ids(range(100, 140))]
    logits = run_whole(folder, inputs, block=1024)
    assert logits[0].shape == (40, 16384)
    assert mx.get_peak_memory() - before < 4_000_000
    assert mx.get_active_memory() - before < 1_000_000
