"""convert(): right bytes, whole or not at all, resumed, and refused where it must be."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.api import load
from mlx_gemma4.config import Config
from mlx_gemma4.convert import conversion, encode
from mlx_gemma4.convert.conversion import Conversion, convert
from mlx_gemma4.convert.plan import plan_conversion
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.convert.target import partial_folder_of
from mlx_gemma4.convert.verify import verify_checkpoint
from mlx_gemma4.errors import CheckpointError, OptionError
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.weights import canonical_name

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)
AFFINE = {"q4": 4, "q8": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small bfloat16 checkpoint in two shards; not to be changed."""
    folder = tmp_path_factory.mktemp("convert") / "source"
    write_checkpoint(folder, SMALL, dtype="bfloat16", num_shards=2, has_tokenizer=False)
    return write_tiny_checkpoint(folder)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every matrix into several blocks, as the real ones are."""
    monkeypatch.setattr(encode, "BLOCK_BYTES", 4096)


def run(source: Path, recipe: str | Path, target: Path, **options: Any) -> Conversion:
    return convert(open_source(source), read_recipe(recipe), target, **options)


def arrays(folder: Path) -> dict[str, mx.array]:
    """Return all tensors by the names in the files, read by MLX itself."""
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= cast(dict[str, mx.array], mx.load(str(file)))
    return found


def by_canonical_name(folder: Path) -> dict[str, mx.array]:
    return {canonical_name(name): array for name, array in arrays(folder).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("recipe", ["q4", "q8"])
@pytest.mark.usefixtures("small_blocks")
def test_affine_codes_are_those_of_mlx_on_the_whole_matrix(
    recipe: str, source: Path, tmp_path: Path
) -> None:
    run(source, recipe, tmp_path / "out")
    plain, converted = by_canonical_name(source), by_canonical_name(tmp_path / "out")
    for name, matrix in plain.items():
        is_quantized = name.startswith("language_model.") and matrix.ndim == 2
        if not is_quantized:
            assert mx.array_equal(converted[name], matrix), name
            continue
        expected = mx.quantize(matrix, group_size=64, bits=AFFINE[recipe])
        path = name.removesuffix(".weight")
        for part, array in zip(("weight", "scales", "biases"), expected, strict=True):
            found = converted[f"{path}.{part}"]
            assert found.dtype == array.dtype
            assert mx.array_equal(found, array), (path, part)


@pytest.mark.parametrize("recipe", ["q4", "q8", "mixed-4-8", "mxfp4", "mxfp8", "nvfp4"])
def test_the_result_loads_and_computes_what_its_dequantized_weights_do(
    recipe: str, source: Path, tmp_path: Path
) -> None:
    run(source, recipe, tmp_path / "out")
    run(tmp_path / "out", "bf16", tmp_path / "plain")
    inputs = ModelInputs(np.arange(3, 60, dtype=np.int32))
    quantized = load(tmp_path / "out")[0](inputs)
    plain = load(tmp_path / "plain")[0](inputs)
    # bfloat16 rounds each dequantized weight by 2^-9 of itself, which a few layers add up.
    difference = mx.sqrt(mx.mean((quantized - plain) ** 2) / mx.mean(plain**2)).item()
    assert cast(float, difference) < 0.02
    original = load(source)[0](inputs)
    assert not mx.allclose(quantized, original, atol=1e-4)  # it was quantized at all


def test_names_and_config_are_those_of_mlx_community(source: Path, tmp_path: Path) -> None:
    run(source, "mixed-4-8", tmp_path / "out")
    names = set(arrays(tmp_path / "out"))
    assert "language_model.model.layers.0.mlp.up_proj.scales" in names
    assert "vision_embedder.patch_dense.weight" in names
    assert "vision_embedder.patch_dense.scales" not in names
    assert not any(name.startswith("model.") for name in names)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    eight = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["language_model.model.layers.5.self_attn.k_proj"] == eight
    assert "language_model.model.layers.0.mlp.up_proj" not in config["quantization"]
    original = json.loads((source / "config.json").read_text())
    assert {k: v for k, v in config.items() if not k.startswith("quantization")} == original
    assert Config.from_folder(tmp_path / "out").quantization is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_back_to_bfloat16_has_googles_names_and_mlx_values(source: Path, tmp_path: Path) -> None:
    run(source, "q4", tmp_path / "q4")
    run(tmp_path / "q4", "bf16", tmp_path / "back")
    assert set(arrays(tmp_path / "back")) == set(arrays(source))
    quantized = by_canonical_name(tmp_path / "q4")
    for name, matrix in by_canonical_name(tmp_path / "back").items():
        assert matrix.dtype == mx.bfloat16, name
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in quantized:
            assert mx.array_equal(matrix, quantized[name]), name
            continue
        parts = [quantized[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
        exact = mx.dequantize(
            parts[0], *(part.astype(mx.float32) for part in parts[1:]), group_size=64, bits=4
        )
        assert mx.array_equal(matrix, exact.astype(mx.bfloat16)), name
    assert "quantization" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_shards_are_bounded_and_named_by_their_number(source: Path) -> None:
    plan = plan_conversion(open_source(source), read_recipe("bf16"), shard_bytes=100_000)
    total = len(plan.shards)
    assert total > 3
    for number, shard in enumerate(plan.shards, start=1):
        assert shard.file == f"model-{number:05}-of-{total:05}.safetensors"
        assert shard.nbytes <= 100_000 or len(shard.parameters) == 1
    assert sum(len(shard.parameters) for shard in plan.shards) == len(arrays(source))


def test_sizes_in_the_plan_are_those_on_the_disk(source: Path, tmp_path: Path) -> None:
    done = run(source, "q4", tmp_path / "out")
    tensors = arrays(tmp_path / "out")
    assert done.plan.nbytes == sum(array.nbytes for array in tensors.values())
    weights = sum(array.size for array in arrays(source).values())
    assert done.plan.num_weights == weights
    assert done.plan.bits_per_weight == pytest.approx(8 * done.plan.nbytes / weights)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.plan.nbytes
    assert set(index["weight_map"]) == set(tensors) == set(index["metadata"]["sha256"])


def test_float32_is_rounded_to_bfloat16_and_said(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "f32", SMALL, has_tokenizer=False)
    write_tiny_checkpoint(tmp_path / "f32")
    done = run(tmp_path / "f32", "q4", tmp_path / "out")
    assert any("rounded to bfloat16" in note for note in done.notes)
    assert {array.dtype for array in arrays(tmp_path / "out").values()} == {
        mx.bfloat16,
        mx.uint32,
    }


# Never half-written.


class InterruptionError(Exception):
    """What a test interrupts a conversion with."""


def interrupt_after(num_shards: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a conversion write some files, and fail in the next; returns what mends it."""
    written, real = [0], conversion.write_shard

    def write(shard: Any, file: Path, **options: Any) -> dict[str, str]:
        if written[0] == num_shards:
            file.write_bytes(b"half of a file")
            raise InterruptionError
        written[0] += 1
        return real(shard, file, **options)

    monkeypatch.setattr(conversion, "write_shard", write)
    return lambda: monkeypatch.setattr(conversion, "write_shard", real)


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan small output files."""

    def plan(*arguments: Any, **options: Any) -> Any:
        return plan_conversion(*arguments, shard_bytes=60_000, **options)

    monkeypatch.setattr(conversion, "plan_conversion", plan)


@pytest.mark.usefixtures("many_shards")
def test_an_interrupted_run_goes_on_and_ends_byte_identical(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(source, "q4", tmp_path / "whole")
    assert whole.kept_shards == 0
    mend = interrupt_after(2, monkeypatch)
    target = tmp_path / "target"
    with pytest.raises(InterruptionError):
        run(source, "q4", target)
    assert not target.exists()
    assert partial_folder_of(target).is_dir()
    mend()
    done = run(source, "q4", target)
    assert done.kept_shards == 2
    assert contents(target) == contents(tmp_path / "whole")
    assert not partial_folder_of(target).exists()


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("change", ["recipe", "source", "file", "no resume"])
def test_work_of_another_run_is_never_mixed_in(
    change: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    mend = interrupt_after(2, monkeypatch)
    with pytest.raises(InterruptionError):
        run(copy, "q4", tmp_path / "out")
    mend()
    partial = partial_folder_of(tmp_path / "out")
    if change == "source":
        file = copy / "model-00001-of-00002.safetensors"
        os.utime(file, ns=(1, 1))
    elif change == "file":
        first = sorted(partial.glob("*.safetensors"))[0]
        first.write_bytes(first.read_bytes()[:-1])
    recipe = "q8" if change == "recipe" else "q4"
    done = run(copy, recipe, tmp_path / "out", resume=change != "no resume")
    assert done.kept_shards == (1 if change == "file" else 0)
    assert any("begun anew" in note for note in done.notes) == (change in ("recipe", "source"))
    run(copy, recipe, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_process_leaves_no_target_and_is_resumed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", dtype="bfloat16")
    command = [sys.executable, "-m", "mlx_gemma4", "convert", str(tmp_path / "source")]
    command += ["--recipe", "q4", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = partial_folder_of(tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list(partial.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert not (tmp_path / "out").exists()
    subprocess.run(command, check=True, capture_output=True)
    run(tmp_path / "source", "q4", tmp_path / "whole")
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "whole").keys()
    for name, content in contents(tmp_path / "whole").items():
        if name.endswith(".safetensors"):
            assert contents(tmp_path / "out")[name] == content
    verify_checkpoint(tmp_path / "out")


def test_two_runs_into_one_target_exclude_each_other(source: Path, tmp_path: Path) -> None:
    def nested(phase: str, done: int, total: int) -> None:
        with pytest.raises(OptionError, match="another run is converting into"):
            run(source, "q4", tmp_path / "out")

    run(source, "q4", tmp_path / "out", progress=nested)


def test_a_target_is_replaced_only_when_forced(source: Path, tmp_path: Path) -> None:
    run(source, "q4", tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(OptionError, match=r"is there already; .* --force"):
        run(source, "q8", tmp_path / "out")
    assert contents(tmp_path / "out") == before
    run(source, "q8", tmp_path / "out", force=True)
    run(source, "q8", tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def test_a_good_target_survives_a_failed_replacement(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, "q4", tmp_path / "out")
    before = contents(tmp_path / "out")
    interrupt_after(0, monkeypatch)
    with pytest.raises(InterruptionError):
        run(source, "q8", tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == before


def test_force_never_removes_what_is_no_checkpoint(source: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(OptionError, match="is no checkpoint"):
        run(source, "q4", tmp_path / "photos", force=True)
    with pytest.raises(OptionError, match="is the source itself"):
        run(source, "q4", source, force=True)
    (tmp_path / "file").write_text("text")
    with pytest.raises(OptionError, match="is there and no folder"):
        run(source, "q4", tmp_path / "file", force=True)


def test_an_empty_target_folder_is_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(source, "q4", tmp_path / "out")
    verify_checkpoint(tmp_path / "out")


def test_too_little_room_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"writes .* MB, and the disk of .* has .* free"):
        run(source, "q4", tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_disk_that_fills_up_leaves_work_that_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        run(source, "q4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(os, "pwrite", real)
    run(source, "q4", tmp_path / "out")
    verify_checkpoint(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OptionError, match=r"cannot write beside .*locked"):
        run(source, "q4", tmp_path / "locked" / "out")


def test_a_parent_that_is_a_file_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OptionError, match=r"cannot write beside .*file/out: .*--output"):
        run(source, "q4", tmp_path / "file" / "out")


# Sources that are refused, or only look odd.


def test_a_value_that_is_not_finite_is_named_and_refused(source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    file = sorted(broken.glob("*.safetensors"))[0]
    name = next(n for n in arrays(broken) if n.endswith("layers.0.mlp.up_proj.weight"))
    for file in sorted(broken.glob("*.safetensors")):
        tensors = dict(cast(dict[str, mx.array], mx.load(str(file))))
        if name in tensors:
            tensors[name][3, 5] = mx.nan
            mx.save_safetensors(str(file), tensors, {"format": "pt"})
    for recipe in ("q4", "mxfp8", "bf16"):
        with pytest.raises(CheckpointError, match=r"up_proj.weight has values.*--allow-nan"):
            run(broken, recipe, tmp_path / recipe)
        assert not (tmp_path / recipe).exists()
    run(broken, "bf16", tmp_path / "bf16", allow_nan=True)
    assert mx.isnan(arrays(tmp_path / "bf16")[name]).sum().item() == 1


def test_a_quantized_source_is_not_rounded_again(source: Path, tmp_path: Path) -> None:
    run(source, "q8", tmp_path / "q8")
    with pytest.raises(OptionError, match=r"already quantized .*8-bit.*wants 4-bit"):
        run(tmp_path / "q8", "q4", tmp_path / "out")
    with pytest.raises(OptionError, match="already what q8 makes of it"):
        run(tmp_path / "q8", "q8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_is_an_error(source: Path, tmp_path: Path) -> None:
    rest = '[[modules]]\nmatch = "*"\nkeep = true\n'
    cases = {
        "language_model.layers.*.mlp.down_prj": "matches no matrix; there are embed_audio",
        "language_model.layers.99.*": "matches no matrix",
    }
    recipe = tmp_path / "mine.toml"
    for pattern, message in cases.items():
        recipe.write_text(f'[[modules]]\nmatch = "{pattern}"\nbits = 4\n{rest}')
        with pytest.raises(OptionError) as error:
            run(source, recipe, tmp_path / "out")
        assert pattern in str(error.value)
        assert message in str(error.value)
    recipe.write_text(rest + '[[modules]]\nmatch = "language_model.*"\nbits = 4\n')
    with pytest.raises(OptionError, match="only what earlier patterns have taken"):
        run(source, recipe, tmp_path / "out")


def test_a_group_that_does_not_divide_the_rows_is_an_error(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[modules]]\nmatch = "*"\nbits = 4\ngroup_size = 128\n')
    with pytest.raises(OptionError, match=r"rows of 64, which groups of 128 do not divide"):
        run(source, recipe, tmp_path / "out")


def test_a_text_checkpoint_converts_without_front_ends(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "text only"))
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: array
            for name, array in cast(dict[str, mx.array], mx.load(str(file))).items()
            if "language_model" in name
        }
        mx.save_safetensors(str(file), tensors, {"format": "pt"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    done = run(folder, "q4", tmp_path / "größer q4")
    assert any("no pictures" in note for note in done.notes)
    assert verify_checkpoint(tmp_path / "größer q4").num_tensors > 0


def test_links_as_in_the_hub_cache_are_followed(source: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(source, blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "blobs", path.name))
    run(snapshot, "q4", tmp_path / "out")
    run(source, "q4", tmp_path / "plain")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    for name, content in contents(tmp_path / "plain").items():
        if name.endswith((".safetensors", "tokenizer.json")):
            assert contents(tmp_path / "out")[name] == content


# The q4_0 grid.


def put_on_grid(matrix: np.ndarray, rng: np.random.Generator, scale_dtype: str) -> np.ndarray:
    """Return bfloat16 values, as float32, of random codes and scales in blocks of 32."""
    blocks = matrix.size // 32
    scales = rng.uniform(0.001, 0.01, (blocks, 1)).astype(np.float32)
    dtype = {"BF16": mx.bfloat16, "F16": mx.float16}[scale_dtype]
    scales = np.array(mx.array(scales).astype(dtype).astype(mx.float32))
    codes = rng.integers(0, 16, (blocks, 32))
    values = mx.array((scales * (codes - 8)).astype(np.float32)).astype(mx.bfloat16)
    return np.array(values.astype(mx.float32)).reshape(matrix.shape)


def write_on_grid(source: Path, folder: Path, scale_dtype: str) -> Path:
    """Copy a checkpoint with the decoder's matrices on the grid, the embedding as it is."""
    shutil.copytree(source, folder)
    rng = np.random.default_rng(3)
    for file in sorted(folder.glob("*.safetensors")):
        tensors = dict(cast(dict[str, mx.array], mx.load(str(file))))
        for name, array in tensors.items():
            if ".layers." in name and array.ndim == 2:
                values = put_on_grid(np.array(array.astype(mx.float32)), rng, scale_dtype)
                tensors[name] = mx.array(values).astype(mx.bfloat16)
        mx.save_safetensors(str(file), tensors, {"format": "pt"})
    return folder


@pytest.mark.parametrize("scale_dtype", ["BF16", "F16"])
@pytest.mark.usefixtures("small_blocks")
def test_the_grid_is_taken_over_bit_for_bit(scale_dtype: str, source: Path, tmp_path: Path) -> None:
    grid = write_on_grid(source, tmp_path / "grid", scale_dtype)
    done = run(grid, "qat-q4_0", tmp_path / "out")
    run(tmp_path / "out", "bf16", tmp_path / "back")
    plain, back = by_canonical_name(grid), by_canonical_name(tmp_path / "back")
    converted = by_canonical_name(tmp_path / "out")
    matrices = [name for name in plain if ".layers." in name and plain[name].ndim == 2]
    assert len(matrices) > 30
    for name in matrices:
        assert converted[name].dtype == mx.uint32
        # -0 becomes +0; every other weight has its bits.
        assert mx.array_equal(back[name], plain[name]), name
        expected = mx.bfloat16 if scale_dtype == "BF16" else mx.float16
        assert converted[name.removesuffix("weight") + "scales"].dtype == expected
    said = any("have float16 scales" in note for note in done.notes)
    assert said == (scale_dtype == "F16")
    verify_checkpoint(tmp_path / "out")


def test_a_checkpoint_on_no_grid_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"proj.weight: .*lies on no q4_0 grid"):
        run(source, "qat-q4_0", tmp_path / "out")
    assert not (tmp_path / "out").exists()
