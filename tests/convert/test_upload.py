"""upload(): against a stand-in of the Hub's API on this machine, with the Hub's own library."""

import hashlib
import json
import logging
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_stand_in import Answer, HubStandIn, Repo, Request, connect
from random_checkpoint import Size, write_checkpoint
from recorded_checkpoint import SHARDS, write_recorded
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4 import __version__
from mlx_gemma4.convert import verify
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.convert.upload import upload
from mlx_gemma4.errors import CheckpointError, OptionError

# The library's own, where it sends a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "me/gemma-4-12b-it-q4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that verifies."""

    def verified(_: Path, **__: Any) -> Any:
        return SimpleNamespace(conversion={"recipe": "q4"})

    monkeypatch.setattr(verify, "verify_checkpoint", verified)
    return write_recorded(tmp_path / "gemma 4 für q4")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Return a stand-in to which the Hub's library talks, logged in."""
    with HubStandIn() as hub:
        connect(hub, monkeypatch)
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_arrives_is_equal_byte_for_byte(folder: Path, hub: HubStandIn) -> None:
    done = upload(folder, REPO)
    assert hub.repos[REPO].files == contents(folder)
    assert not hub.repos[REPO].is_private
    assert hub.repos[REPO].commits == [f"q4, converted by mlx-gemma4 {__version__}"]
    assert done.url == f"{hub.url}/{REPO}"
    assert done.nbytes == sum(map(len, contents(folder).values()))
    assert [file.name for file in done.files] == sorted(contents(folder))
    assert done.notes == ()


def test_the_token_goes_to_the_hub_alone(folder: Path, hub: HubStandIn) -> None:
    upload(folder, REPO)
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert len(puts) == 2
    assert all(request.authorization is None for request in puts)


def test_strays_are_left_out_and_named(folder: Path, hub: HubStandIn) -> None:
    expected = contents(folder)
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / "notes.txt").write_text("mine")
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"old")
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").mkdir()
    done = upload(folder, REPO)
    assert hub.repos[REPO].files == expected
    strays = (
        ".env",
        "model-00003-of-00003.safetensors",
        "notes.txt",
        "sub/",
        "tokenizer_config.json/",
    )
    assert done.left_out == strays
    assert f"left out, being no part of the checkpoint: {', '.join(strays)}" in done.notes


def test_private(folder: Path, hub: HubStandIn) -> None:
    upload(folder, REPO, private=True)
    assert hub.repos[REPO].is_private
    done = upload(folder, REPO)
    assert f"{REPO} is private" in done.notes


def test_private_is_not_ignored_where_the_repository_is_public(
    folder: Path, hub: HubStandIn
) -> None:
    hub.repos[REPO] = Repo()
    with pytest.raises(CheckpointError, match="already and public"):
        upload(folder, REPO, private=True)
    assert hub.repos[REPO].files == {}
    assert hub.objects == {}


def test_weights_of_an_earlier_upload_go_and_other_files_stay(
    folder: Path, hub: HubStandIn
) -> None:
    there = {"model.safetensors": b"old", "picture.png": b"png", "drafter/model.safetensors": b"d"}
    hub.repos[REPO] = Repo(files=dict(there))
    done = upload(folder, REPO)
    del there["model.safetensors"]
    assert hub.repos[REPO].files == contents(folder) | there
    assert "removed, being of an earlier upload: model.safetensors" in done.notes
    assert len(hub.repos[REPO].commits) == 1


def test_a_second_upload_sends_nothing(folder: Path, hub: HubStandIn) -> None:
    upload(folder, REPO)
    upload(folder, REPO)
    assert hub.count("PUT", "/storage/") == 2
    assert len(hub.repos[REPO].commits) == 1


def break_off(part: str) -> Any:
    """Cut the connection of every request with this in its path."""
    return lambda request: Answer(None) if part in request.path else None


def test_an_upload_whose_connection_broke_goes_on(folder: Path, hub: HubStandIn) -> None:
    second = hashlib.sha256((folder / SHARDS[1]).read_bytes()).hexdigest()
    hub.on_request = break_off(second)
    with pytest.raises(CheckpointError, match="connection broke; repeat the same command"):
        upload(folder, REPO)
    assert hub.repos[REPO].files == {}
    assert len(hub.objects) == 1
    hub.on_request = lambda _: None
    hub.requests.clear()
    upload(folder, REPO)
    assert hub.repos[REPO].files == contents(folder)
    assert [r.path for r in hub.requests if r.method == "PUT"] == [
        f"/storage/{second}?X-Amz-Signature=SecretSignature"
    ]


def test_an_interrupted_upload_goes_on(folder: Path, hub: HubStandIn) -> None:
    is_over = threading.Event()

    def interrupt(request: Request) -> Answer | None:
        if "/commit/" not in request.path:
            return None
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        is_over.wait(10)
        return Answer(None)

    hub.on_request = interrupt
    with pytest.raises(KeyboardInterrupt):
        upload(folder, REPO)
    is_over.set()
    assert hub.repos[REPO].files == {}
    hub.on_request = lambda _: None
    hub.requests.clear()
    upload(folder, REPO)
    assert hub.repos[REPO].files == contents(folder)
    assert hub.count("PUT", "/storage/") == 0


def refuse(status: int, part: str, text: str = "no", **headers: str) -> Any:
    """Answer every request with this in its path with an error that holds the text."""
    body = json.dumps({"error": text}).encode()
    answer = Answer(status, body, tuple(headers.items()))
    return lambda request: answer if part in request.path else None


# Each request of an upload in turn, and what each refusal means.
PLACES = {
    "create": "/api/repos/create",
    "describe": f"/api/models/{REPO}",
    "validate": "/api/validate-yaml",
    "preupload": "/preupload/",
    "batch": "/objects/batch",
    "storage": "/storage/",
    "commit": "/commit/",
}
MEANINGS = {
    401: "does not accept the token (401); log in again with: hf auth login",
    403: f"no permission to write {REPO} (403); choose a --repo of your own",
    404: f"the Hub refused {REPO} (",
    429: "too many requests (429); wait some minutes, and repeat the same command",
    500: "has a fault of its own (500); wait a little, and repeat the same command",
}


@pytest.mark.parametrize("status", MEANINGS)
@pytest.mark.parametrize("place", PLACES)
def test_a_refusal_is_explained_and_tells_no_token(
    place: str,
    status: int,
    folder: Path,
    hub: HubStandIn,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A server that sends back what it was sent, in every field that the library shows.
    told = f"not {hub.token} but Bearer OfOthers, hf_AnotherToken123"
    hub.on_request = refuse(status, PLACES[place], told, **{"X-Error-Message": told})
    library = logging.getLogger("huggingface_hub")
    before = [list(handler.filters) for handler in library.handlers]
    with pytest.raises(CheckpointError) as caught:
        upload(folder, REPO)
    message = str(caught.value)
    meaning = MEANINGS[status]
    if place == "storage" and status < 429:
        meaning = f"the Hub's storage broke off ({status}); repeat the same command"
    assert meaning in message
    assert "\n" not in message
    shown = "".join(traceback.format_exception(caught.value)) + capfd.readouterr().err
    for secret in (hub.token, "OfOthers", "hf_AnotherToken123", "SecretSignature"):
        assert secret not in shown
        assert secret not in message
    assert [list(handler.filters) for handler in library.handlers] == before
    assert hub.repos.get(REPO, Repo()).files == {}


def test_what_the_library_logs_has_no_token(
    folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, lines = logging.getLogger("huggingface_hub"), []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    library.addHandler(handler)
    try:

        def log(request: Request) -> Answer | None:
            if request.method == "PUT":
                library.warning("sent %s to %s%s", hub.token, hub.url, request.path)
                return Answer(503)
            return None

        hub.on_request = log
        with pytest.raises(CheckpointError):
            upload(folder, REPO)
    finally:
        library.removeHandler(handler)
    assert any(line.startswith(f"sent *** to {hub.url}/storage/") for line in lines)
    assert any("503" in line for line in lines)
    assert not [line for line in lines if hub.token in line or "SecretSignature" in line]


def test_a_card_that_the_hub_refuses_is_said_to_be_the_fault(folder: Path, hub: HubStandIn) -> None:
    body = json.dumps({"errors": [{"message": '"license" must be known'}]}).encode()
    hub.on_request = lambda r: Answer(400, body) if "validate-yaml" in r.path else None
    with pytest.raises(CheckpointError, match='"license" must be known'):
        upload(folder, REPO)


def test_warnings_of_the_hub_are_notes(folder: Path, hub: HubStandIn) -> None:
    body = json.dumps({"warnings": [{"message": "empty\nmetadata"}]}).encode()
    hub.on_request = lambda r: Answer(200, body) if "validate-yaml" in r.path else None
    assert any("- empty metadata" in note for note in upload(folder, REPO).notes)


def test_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubStandIn()
    connect(hub, monkeypatch)
    hub.close()  # the port answers nothing from here on
    with pytest.raises(CheckpointError, match="the Hub cannot be reached") as caught:
        upload(folder, REPO)
    assert hub.token not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", ["offline", "no token", "bad token store"])
def test_what_can_be_known_before_is_said_before(
    kind: str, folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def not_called(*_: Any, **__: Any) -> None:
        raise AssertionError("verified, though it could not be uploaded")

    monkeypatch.setattr(verify, "verify_checkpoint", not_called)
    says = {
        "offline": "HF_HUB_OFFLINE is set; unset it",
        "no token": "nobody is logged in .* hf auth login",
        "bad token store": r"cannot read the token .*\(PermissionError\)",
    }
    if kind == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif kind == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no such file"))
    else:

        def fail() -> str:
            raise PermissionError(13, hub.token)

        monkeypatch.setattr("huggingface_hub.get_token", fail)
    with pytest.raises(CheckpointError, match=says[kind]) as caught:
        upload(folder, REPO)
    assert hub.token not in "".join(traceback.format_exception(caught.value))
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    ["", "q4", "me/", "/q4", "me/q4/x", "me/ü", "me/a b", "me/a--b", "me/" + "a" * 100, ".."],
)
def test_a_name_that_no_repository_can_have(name: str, folder: Path, hub: HubStandIn) -> None:
    with pytest.raises(OptionError, match="allowed is USER/NAME"):
        upload(folder, name)
    assert hub.requests == []


def test_a_folder_that_does_not_verify_is_refused(tmp_path: Path, hub: HubStandIn) -> None:
    folder = write_recorded(tmp_path / "q4")
    for is_dry in (False, True):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            upload(folder, REPO, dry_run=is_dry)
    with pytest.raises(CheckpointError, match="is no folder"):
        upload(tmp_path / "nowhere", REPO)
    assert hub.requests == []


def test_a_conversion_arrives_whole_and_a_damaged_one_not_at_all(
    tmp_path: Path, hub: HubStandIn
) -> None:
    size = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)
    write_checkpoint(tmp_path / "source", size, dtype="bfloat16", has_tokenizer=False)
    source = open_source(write_tiny_checkpoint(tmp_path / "source"))
    convert(source, read_recipe("q4"), tmp_path / "q4")
    done = upload(tmp_path / "q4", REPO)
    assert done.left_out == ()
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.repos[REPO].files.items():
        (arrived / name).write_bytes(content)
    assert verify.verify_checkpoint(arrived).conversion["recipe"] == "q4"
    file = tmp_path / "q4" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    hub.requests.clear()
    with pytest.raises(CheckpointError, match="not as they were written"):
        upload(tmp_path / "q4", REPO)
    assert hub.requests == []


def test_a_missing_card_is_refused(folder: Path, hub: HubStandIn) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(CheckpointError, match="no model card that can be read"):
        upload(folder, REPO)
    assert hub.requests == []


def test_a_file_that_cannot_be_read_is_named(
    folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(request: Request) -> None:
        if "/preupload/" in request.path:
            (folder / SHARDS[0]).unlink(missing_ok=True)

    hub.on_request = vanish
    with pytest.raises(CheckpointError, match=f"cannot read .*{SHARDS[0]} .No such file"):
        upload(folder, REPO)


def test_a_dry_run_asks_nobody(
    folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (folder / "notes.txt").write_text("mine")
    done = upload(folder, REPO, dry_run=True)
    assert done.url is None
    assert done.card == (folder / "README.md").read_text(encoding="utf-8")
    assert {file.name: file.nbytes for file in done.files} == {
        name: len(content) for name, content in contents(folder).items() if name != "notes.txt"
    }
    assert done.left_out == ("notes.txt",)
    assert hub.requests == []


def test_verification_is_what_progress_shows(
    folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verified(path: Path, *, progress: Any) -> Any:
        assert path == folder
        progress(3, 10)
        return SimpleNamespace(conversion={})

    monkeypatch.setattr(verify, "verify_checkpoint", verified)
    seen: list[tuple[int, int]] = []
    upload(folder, REPO, progress=lambda *pair: seen.append(pair))
    assert seen == [(3, 10)]


def test_a_switched_off_display_is_switched_on_again(
    folder: Path, hub: HubStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    upload(folder, REPO)
    assert capfd.readouterr().err == ""
    assert not are_progress_bars_disabled()
    hub.objects.clear()
    hub.repos.clear()
    upload(folder, REPO, show_transfer=True)
    assert SHARDS[0] in capfd.readouterr().err
