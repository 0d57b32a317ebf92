"""load(): folders, Hub names, and the demo; every way to fail says what to do."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from demo_memory import between, needed_bytes, weights_bytes
from fake_hub import NAME, FakeHub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4 import api
from mlx_gemma4.api import load
from mlx_gemma4.config import GenerationConfig
from mlx_gemma4.errors import CheckpointError, Gemma4Error, MemoryLimitError, OptionError
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import MemoryLimit

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)


def write_small(folder: Path, **options: Any) -> Path:
    """Write a random checkpoint with a tokenizer of a few letters."""
    write_checkpoint(folder, SMALL, has_tokenizer=False, **options)
    return write_tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small checkpoint in one file; not to be changed."""
    return write_small(tmp_path_factory.mktemp("load") / "small")


@pytest.fixture
def broken(small: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "broken"))


def as_mlx_names(name: str) -> str:
    return name.removeprefix("model.").replace("language_model.", "language_model.model.")


def as_transformers_names(name: str) -> str:
    name = name.replace("vision_embedder.", "embed_vision.")
    return name.replace(
        "embed_vision.embedding_projection", "embed_vision.multimodal_embedder.embedding_projection"
    )


def logits_of(folder: Path, **options: Any) -> np.ndarray:
    model, _ = load(folder, **options)
    return np.array(model(ModelInputs.from_ids(range(100, 140))))


@pytest.mark.parametrize(
    "options",
    [
        {"num_shards": 3},
        {"rename": as_transformers_names},
        {"rename": as_mlx_names, "num_shards": 2},
    ],
    ids=["shards", "transformers", "mlx"],
)
def test_every_layout_gives_the_same_logits(
    small: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert np.array_equal(logits_of(write_small(tmp_path, **options)), logits_of(small))


def test_returns_model_and_processor(small: Path) -> None:
    model, processor = load(str(small))
    assert model.dtype == (mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.bfloat16)
    assert model.image_attention == "sliding"
    assert model.generation_config == GenerationConfig.from_folder(small, model.config)
    assert model.notes == ()
    assert processor.tokenizer.path == small / "tokenizer.json"
    assert processor.has_vision
    assert processor.has_audio


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", mx.bfloat16])
def test_dtype_is_that_of_activations(small: Path, dtype: str | mx.Dtype) -> None:
    model, _ = load(small, dtype=dtype)
    assert str(model.dtype).endswith(str(dtype).rpartition(".")[-1])


def test_eight_bits_are_closer_than_four(small: Path) -> None:
    plain, eight, four = (logits_of(small, quantize=bits) for bits in (None, 8, 4))
    assert 0 < np.abs(eight - plain).mean() < np.abs(four - plain).mean() / 4


def test_a_front_end_that_is_not_there_is_a_note(small: Path, tmp_path: Path) -> None:
    folder = write_small(tmp_path)
    arrays = cast(dict[str, mx.array], mx.load(str(small / "model.safetensors")))
    kept = {name: array for name, array in arrays.items() if "embed_audio" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), kept)
    model, processor = load(folder)
    assert model.notes == ("the checkpoint has no tensors of the audio front end: no sounds",)
    assert not processor.has_audio


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype is float8; allowed are bfloat16, float16, float32"),
        ({"quantize": 5}, "quantize is 5 bits; allowed are 4 and 8"),
        ({"image_attention": "none"}, 'image_attention is "none"; allowed are sliding and all'),
    ],
)
def test_other_options_are_refused(small: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(small, **options)


def test_what_does_not_fit_is_refused_before_loading(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_called(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(api, "machine_limit", lambda: MemoryLimit(4_000_000, "it can hold"))
    monkeypatch.setattr(api, "load_weights", not_called)
    with pytest.raises(MemoryLimitError, match=r"weights 4\.6 MB .* it can hold 4\.0 MB"):
        load(small, dtype="float32", context_tokens=1)


def test_what_fits_with_8_bits_alone_is_loaded_unless_16_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_with(**options: Any) -> Any:
        return load("demo", dtype="float32", context_tokens=8000, **options)

    def allow(context_bytes: int) -> None:
        limit = MemoryLimit(weights_bytes() + context_bytes, "it can hold")
        monkeypatch.setattr(api, "machine_limit", lambda: limit)

    allow(between(8000))
    assert [load_with(kv_bits=bits)[0].kv_bits for bits in (None, 8)] == [None, 8]
    with pytest.raises(MemoryLimitError, match=r" --kv-bits 8 \("):
        load_with(kv_bits=16)
    allow(needed_bytes(8000, 8) - 1)
    with pytest.raises(MemoryLimitError, match="for 8,000 tokens in int8"):
        load_with()


def test_the_way_out_works(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "machine_limit", lambda: MemoryLimit(4_000_000, "it can hold"))
    with pytest.raises(MemoryLimitError, match=r"--quantize 4 .* --quantize 8 .* --dtype bfloat16"):
        load(small, dtype="float32", context_tokens=1)
    load(small, dtype="float32", context_tokens=1, quantize=8)
    load(small, dtype="bfloat16", context_tokens=1)
    load(small, dtype="float32", context_tokens=1, check_limits=False)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: -(2**20)])


def change_config(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return change


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (remove("config.json"), r"has no config\.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{,"), "is not JSON"),
    "other model": (change_config(model_type="gemma3"), 'only "gemma4_unified" is supported'),
    "unknown mode": (change_config(quantization={"mode": "fp2"}), "supported are affine, mxfp4"),
    "no tokenizer": (remove("tokenizer.json"), r"has no tokenizer\.json"),
    "no weights": (remove("model.safetensors"), r"has no model\.safetensors"),
    "truncated": (truncate, r"model\.safetensors is truncated"),
    "generation": (
        lambda folder: (folder / "generation_config.json").write_text('{"top_p": 7}'),
        r"generation_config\.json: top_p is 7",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_the_users_to_mend(broken: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    break_it(broken)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(broken)
    assert caught.value.exit_code == 2


def test_demo_is_the_one_in_the_package() -> None:
    assert find_checkpoint("demo") == Path(api.__file__).parent / "demo"


@pytest.mark.parametrize(
    "name",
    [
        "./nowhere",
        "/nowhere/at/all",
        "~/no-such-folder",
        "models/12b/4bit",
        "gemma-4-12B-it",
        "google/gemma\n",
        "",
        "a\0b",
        "x" * 10_000,
        Path("google/gemma-4-12B-it"),
    ],
)
def test_what_is_neither_a_folder_nor_a_name_is_said_to_be_missing(name: str | Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        find_checkpoint(name)
    assert 'google/gemma-4-12B-it, or "demo"' in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_is_no_folder(small: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; a checkpoint is a folder"):
        find_checkpoint(small / "model.safetensors")


def test_a_folder_needs_no_hub(small: Path) -> None:
    code = (
        "import sys; from mlx_gemma4.api import load; load(sys.argv[1]);"
        "print(sorted({'huggingface_hub', 'torch', 'transformers', 'mlx_lm'} & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(small)], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.fixture
def hub(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(broken, tmp_path / "cache")
    hub.connect(monkeypatch)
    return hub


def test_a_hub_name_is_downloaded_once_config_first(hub: FakeHub) -> None:
    (hub.repository / "README.md").write_text("not needed")
    (hub.repository / "consolidated.safetensors").write_text("not needed")
    load(NAME)
    assert hub.fetched[0] == "config.json"
    assert set(hub.fetched) == {
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "model.safetensors",
    }
    hub.fetched.clear()
    assert find_checkpoint(NAME) == hub.folder
    assert hub.fetched == []


def test_a_model_of_another_kind_is_refused_before_its_weights_come(hub: FakeHub) -> None:
    change_config(model_type="gemma4")(hub.repository)
    with pytest.raises(CheckpointError, match="use mlx-vlm for them"):
        load(NAME)
    assert hub.fetched == ["config.json"]


def test_without_connection_the_cache_will_do(hub: FakeHub) -> None:
    find_checkpoint(NAME)
    hub.is_reachable = False
    assert find_checkpoint(NAME) == hub.folder


def test_without_weights_only_the_small_files_come(hub: FakeHub) -> None:
    folder = find_checkpoint(NAME, with_weights=False)
    assert (folder / "config.json").is_file()
    assert (folder / "tokenizer.json").is_file()
    assert not [name for name in hub.planned + hub.fetched if "safetensors" in name]
    load(NAME)  # the rest comes when it is needed
    assert [name for name in hub.fetched if name.endswith(".safetensors")]


def test_a_disk_without_room_is_known_before_the_download(hub: FakeHub) -> None:
    hub.size = 10**18
    with pytest.raises(CheckpointError, match=r"needs 7000000000\.0 GB, .*has [\d.]+ GB free"):
        find_checkpoint(NAME)
    assert hub.fetched == []


def test_pickled_weights_are_never_downloaded(hub: FakeHub) -> None:
    (hub.repository / "model.safetensors").rename(hub.repository / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors; pickled weights"):
        find_checkpoint(NAME)
    assert hub.fetched == []


@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize("lacks", [["config.json"], ["config.json", "tokenizer.json"]])
def test_a_repository_in_another_format_is_told_from_a_checkpoint(
    hub: FakeHub, lacks: list[str], with_weights: bool
) -> None:
    for name in lacks:
        (hub.repository / name).unlink()
    (hub.repository / "model.gguf").write_bytes(b"GGUF")
    says = rf"{NAME} has no {' and no '.join(lacks)}; .* GGUF"
    with pytest.raises(CheckpointError, match=says):
        find_checkpoint(NAME, with_weights=with_weights)
    assert hub.fetched == []


def http(kind: Callable[..., HfHubHTTPError], message: str = "refused") -> HfHubHTTPError:
    return kind(message, response=SimpleNamespace(headers={}, request=None))


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


FAILURES: dict[str, tuple[Exception, str]] = {
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device"),
        r"does not fit, and the disk with the Hub cache .* free; make room, or set HF_HOME",
    ),
    "full disk in the transfer": (
        caused(RuntimeError("task failed"), RuntimeError("IO: No space left on device (os 28)")),
        r"the download goes on where it stopped",
    ),
    "no permission": (PermissionError(13, "denied", "/cache"), r"no permission to write /cache"),
    "gated": (http(GatedRepoError), rf"is gated; accept .*huggingface\.co/{NAME}.* hf auth login"),
    "unknown": (http(RepositoryNotFoundError), r"neither a folder here nor a model on the Hug"),
    "refused": (http(HfHubHTTPError, "429 slow\nmore"), r"refused \S+ \(429 slow\); try again"),
    "no network": (
        caused(LocalEntryNotFoundError("Got:\nlines"), ConnectionError("no route")),
        r"the Hub cannot be reached; check the network and repeat",
    ),
    "transfer": (RuntimeError("checksum\nof chunk"), r"cannot download \S+ \(checksum\); repeat"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_download_says_what_to_do(hub: FakeHub, failure: str) -> None:
    hub.error, message = FAILURES[failure]
    with pytest.raises(CheckpointError, match=message) as caught:
        find_checkpoint(NAME)
    assert NAME in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupted_download_is_not_an_error_of_the_checkpoint(hub: FakeHub) -> None:
    hub.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        find_checkpoint(NAME)


def test_offline_mode_is_respected_and_named() -> None:
    assert constants.HF_HUB_OFFLINE  # tests/conftest.py
    with pytest.raises(Gemma4Error, match="HF_HUB_OFFLINE is set; unset it to download"):
        load("nobody/has-this-in-the-cache")
