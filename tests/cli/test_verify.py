"""`mlx-gemma4 verify`: what goes to stdout, what to stderr, and the exit code."""

import json
import shutil
from pathlib import Path

import pytest
from random_checkpoint import Size, write_checkpoint

from mlx_gemma4.cli import main
from mlx_gemma4.memory import format_bytes
from mlx_gemma4.weights import read_header

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1280)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small q4 checkpoint in a folder with a blank and an umlaut; not to be changed."""
    folder = tmp_path_factory.mktemp("verify")
    write_checkpoint(folder / "source", SMALL, dtype="bfloat16")
    out = folder / "für mich" / "q4"
    assert main(["convert", str(folder / "source"), "-o", str(out)]) == 0
    return out


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "q4"))


def refusal(folder: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """Verify a folder that is damaged, and return the one line that says how."""
    assert main(["verify", str(folder), *options]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_good_folder_is_one_line(converted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = read_header(converted / "model.safetensors").values()
    size = format_bytes(sum(tensor.nbytes for tensor in tensors))
    assert main(["verify", str(converted)]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{converted}: all {len(tensors)} tensors, {size}, are intact\n"
    assert shown.err == ""


def test_json(converted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(converted), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    tensors = read_header(converted / "model.safetensors").values()
    assert document == {
        "folder": str(converted),
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "recipe": "q4",
        "source": "source",  # its folder's last part: a path is nobody's business
    }


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_flipped_byte_is_named(
    options: list[str], copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "language_model.model.layers.4.mlp.down_proj.scales"
    file = copy / "model.safetensors"
    tensor = read_header(file)[name]
    content = bytearray(file.read_bytes())
    content[tensor.offset + 7] ^= 0xFF
    file.write_bytes(content)
    says = refusal(copy, capfd, *options)
    assert f"tensors are not as they were written: {name} in model.safetensors; convert" in says
    assert ": 1 of " in says


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("model.safetensors", "missing"),
        ("tokenizer.json", "lacks tokenizer.json"),
        ("config.json", "has no config.json"),
        ("model.safetensors.index.json", "has no checksums in model.safetensors.index.json"),
    ],
)
def test_a_missing_file_is_named(
    file: str, says: str, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (copy / file).unlink()
    assert says in refusal(copy, capfd)


def test_a_folder_that_was_not_converted_here(
    converted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    says = refusal(converted.parent.parent / "source", capfd)
    assert "has no checksums" in says
    assert "was not made by mlx-gemma4 convert" in says
    assert "is no folder" in refusal(tmp_path / "nowhere", capfd)


def test_a_conversion_that_is_not_finished_does_not_pass(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])
    assert "is truncated" in refusal(copy, capfd)


def test_a_folder_must_be_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    assert "FOLDER" in capfd.readouterr().err


def test_a_defect_is_said_to_be_ours(
    converted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("mlx_gemma4.convert.verify.verify_checkpoint", fail)
    assert main(["verify", str(converted)]) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("error: RuntimeError: ours\nthis is a defect of mlx-gemma4, not yours;")
    assert "Traceback" not in shown
