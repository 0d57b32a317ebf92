"""Checkpoints on the Hub: an outline without weights, a drafter, and what a server may do wrong."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drafter_checkpoint import write_drafter
from hub_stand_in import Answer, HubStandIn, Repo, connect
from huggingface_hub import constants
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4 import hub as module
from mlx_gemma4.convert.source import check_config, open_source
from mlx_gemma4.errors import CheckpointError, ConfigError
from mlx_gemma4.hub import find_checkpoint, outline_checkpoint

NAME = "google/gemma-4-12B-it"
DRAFTER = "google/gemma-4-12B-it-assistant"
SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small checkpoint in three shards; not to be changed."""
    folder = tmp_path_factory.mktemp("hub") / "source"
    write_checkpoint(folder, SMALL, dtype="bfloat16", num_shards=3, has_tokenizer=False)
    return write_tiny_checkpoint(folder)


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Return a Hub that has the small checkpoint and a drafter, and an empty cache."""
    with HubStandIn() as hub:
        connect(hub, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.repos[NAME] = Repo(files=read(checkpoint))
        hub.repos[DRAFTER] = Repo(files=read(write_drafter(tmp_path / "assistant")))
        yield hub


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_weights(file: str) -> bool:
    return file.endswith(".safetensors")


def weights_bytes(hub: HubStandIn, name: str = NAME) -> int:
    return sum(len(content) for file, content in hub.repos[name].files.items() if is_weights(file))


def sent_weights(hub: HubStandIn) -> dict[str, int]:
    return {file: count for file, count in hub.sent_bytes.items() if is_weights(file)}


def described(folder: Path) -> dict[str, object]:
    """Return what the headers of a folder tell of its tensors."""
    return {
        name: (tensor.file.name, tensor.dtype, tensor.shape, tensor.offset, tensor.nbytes)
        for name, tensor in open_source(folder).tensors.items()
    }


def test_an_outline_has_the_headers_and_no_weights(
    hub: HubStandIn, checkpoint: Path, tmp_path: Path
) -> None:
    with outline_checkpoint(NAME) as outline:
        assert described(outline.folder) == described(checkpoint)
        assert outline.missing_bytes > weights_bytes(hub)
        for file, content in hub.repos[NAME].files.items():
            assert (outline.folder / file).stat().st_size == len(content)
            assert is_weights(file) or (outline.folder / file).read_bytes() == content
    assert not outline.folder.exists()
    assert len(sent_weights(hub)) == 3
    assert all(count <= module._HEAD_BYTES for count in sent_weights(hub).values())
    assert sum(sent_weights(hub).values()) < weights_bytes(hub) / 4
    assert not [path for path in (tmp_path / "cache").rglob("*") if is_weights(path.name)]
    storage = [request for request in hub.requests if "/storage/" in request.path]
    assert len(storage) == 3
    # A token is for the Hub alone.
    assert not [request for request in storage if request.authorization]


def test_a_header_longer_than_the_first_request_is_asked_for_again(
    hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HEAD_BYTES", 64)
    with outline_checkpoint(NAME) as outline:
        assert described(outline.folder) == described(checkpoint)
    assert hub.count("GET", "/storage/") == 6


def test_a_server_without_ranges_is_left_off_after_the_header(
    hub: HubStandIn, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "large", dtype="float32")
    hub.repos[NAME] = Repo(files=read(tmp_path / "large"))
    hub.knows_ranges = False
    with outline_checkpoint(NAME) as outline:
        assert described(outline.folder) == described(tmp_path / "large")
    # What is sent besides is in the buffers of the connection.
    assert sum(sent_weights(hub).values()) < weights_bytes(hub) / 2


def test_what_is_in_the_cache_is_there_as_it_is(hub: HubStandIn, checkpoint: Path) -> None:
    folder = find_checkpoint(NAME)
    hub.sent_bytes.clear()
    with outline_checkpoint(NAME) as outline:
        assert outline.folder == folder
        assert outline.missing_bytes == 0
    assert folder.is_dir()
    assert hub.sent_bytes == {}
    assert described(folder) == described(checkpoint)


def test_what_is_partly_in_the_cache_counts_as_much(hub: HubStandIn, checkpoint: Path) -> None:
    files = hub.repos[NAME].files
    shards = sorted(filter(is_weights, files))
    folder = find_checkpoint(NAME)
    (folder / shards[1]).resolve().unlink()
    (folder / shards[1]).unlink()
    hub.sent_bytes.clear()
    with outline_checkpoint(NAME) as outline:
        assert described(outline.folder) == described(checkpoint)
        assert outline.missing_bytes == len(files[shards[1]])
        assert (outline.folder / shards[0]).read_bytes() == files[shards[0]]
    assert list(sent_weights(hub)) == [shards[1]]
    assert (folder / shards[0]).exists()  # the outline's link to it is gone, and it is not


@pytest.fixture
def disconnect(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what takes the Hub away."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    return lambda: monkeypatch.setattr(constants, "ENDPOINT", url)


def test_without_connection_the_cache_will_do(
    hub: HubStandIn, disconnect: Callable[[], None]
) -> None:
    folder = find_checkpoint(NAME)
    disconnect()
    with outline_checkpoint(NAME) as outline:
        assert (outline.folder, outline.missing_bytes) == (folder, 0)


@pytest.mark.usefixtures("hub")
def test_without_connection_and_cache_it_is_said(disconnect: Callable[[], None]) -> None:
    disconnect()
    says = f"{NAME} is neither a folder here nor complete in the Hub cache"
    with pytest.raises(CheckpointError, match=says), outline_checkpoint(NAME):
        pass


def test_a_folder_is_its_own_outline(checkpoint: Path) -> None:
    with outline_checkpoint(checkpoint) as outline:
        assert (outline.folder, outline.missing_bytes) == (checkpoint, 0)
    assert checkpoint.is_dir()


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 4096, b"\0" * 4096, b"PK\3\4zip" * 99])
def test_a_file_without_a_header_is_named(content: bytes, hub: HubStandIn) -> None:
    shard = sorted(filter(is_weights, hub.repos[NAME].files))[1]
    hub.repos[NAME].files[shard] = content
    says = f"{shard} of {NAME} is no safetensors file: it begins with"
    with pytest.raises(CheckpointError, match=says), outline_checkpoint(NAME):
        pass


def test_a_file_that_ends_in_its_header_is_named(hub: HubStandIn) -> None:
    shard = sorted(filter(is_weights, hub.repos[NAME].files))[1]
    hub.repos[NAME].files[shard] = hub.repos[NAME].files[shard][:200]
    with outline_checkpoint(NAME) as outline, pytest.raises(CheckpointError, match=shard):
        open_source(outline.folder)


def test_a_repository_without_safetensors_is_told(hub: HubStandIn) -> None:
    hub.repos[NAME].files = {
        file: content for file, content in hub.repos[NAME].files.items() if not is_weights(file)
    } | {"pytorch_model.bin": b"pickle"}
    with (
        pytest.raises(CheckpointError, match=r"has no model\.safetensors; pickled weights"),
        outline_checkpoint(NAME),
    ):
        pass


@pytest.mark.parametrize("status", [403, 500])
def test_a_refused_header_is_one_line(status: int, hub: HubStandIn) -> None:
    def refuse(request: object) -> Answer | None:
        is_storage = "/storage/" in str(request)
        return Answer(status, b'{"error": "no\\nway"}') if is_storage else None

    hub.on_request = refuse
    with pytest.raises(CheckpointError, match=NAME) as caught, outline_checkpoint(NAME):
        pass
    assert str(status) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused_before_a_header_is_asked_for(hub: HubStandIn) -> None:
    files = hub.repos[NAME].files
    config = {**json.loads(files["config.json"]), "model_type": "gemma3"}
    files["config.json"] = json.dumps(config).encode()
    with pytest.raises(ConfigError, match="use mlx-lm or mlx-vlm"), outline_checkpoint(NAME):
        pass
    assert list(hub.sent_bytes) == ["config.json"]


def test_a_drafter_is_found_by_whoever_can_use_one(hub: HubStandIn) -> None:
    with pytest.raises(ConfigError, match="this is a drafter; pass the model"):
        find_checkpoint(DRAFTER)
    assert list(hub.sent_bytes) == ["config.json"]
    with outline_checkpoint(DRAFTER, check=check_config) as outline:
        source = open_source(outline.folder, DRAFTER)
    assert source.is_assistant
    assert hub.sent_bytes["model.safetensors"] < weights_bytes(hub, DRAFTER)
    folder = find_checkpoint(DRAFTER, check=check_config)
    assert described(folder).keys() == source.tensors.keys()
