"""`mlx-gemma4 upload`: what goes to stdout, what to stderr, and the exit code."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_stand_in import Answer, HubStandIn, connect
from recorded_checkpoint import write_recorded

from mlx_gemma4.cli import main
from mlx_gemma4.convert import verify
from mlx_gemma4.memory import format_bytes

# The Hub library's own, where it sends a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "me/gemma-4-12b-it-q4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that verifies, with a stray in it."""

    def verified(_: Path, **__: Any) -> Any:
        return SimpleNamespace(conversion={"recipe": "q4"})

    monkeypatch.setattr(verify, "verify_checkpoint", verified)
    folder = write_recorded(tmp_path / "q4")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Return a stand-in to which the Hub's library talks, logged in."""
    with HubStandIn() as hub:
        connect(hub, monkeypatch)
        yield hub


def size_of(folder: Path) -> str:
    """Return the size of all files but the stray, in words."""
    return format_bytes(sum(p.stat().st_size for p in folder.iterdir() if p.name != "notes.txt"))


def test_the_address_goes_to_stdout(
    folder: Path, hub: HubStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", str(folder), "--repo", REPO, "--private"]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{REPO}: 6 files, {size_of(folder)}, at {hub.url}/{REPO}\n"
    assert shown.err == "note: left out, being no part of the checkpoint: notes.txt\n"
    assert hub.repos[REPO].is_private
    assert "config.json" in hub.repos[REPO].files


def test_a_dry_run_shows_files_and_card(
    folder: Path, hub: HubStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", str(folder), "--repo", REPO, "--dry-run"]) == 0
    shown = capfd.readouterr()
    assert "model-00001-of-00002.safetensors      300.0 kB\n" in shown.out
    assert f"\n{REPO}: 6 files, {size_of(folder)}; nothing was uploaded\n" in shown.out
    assert shown.out.endswith((folder / "README.md").read_text())
    assert "notes.txt" not in shown.out
    assert "notes.txt" in shown.err
    assert hub.requests == []


@pytest.mark.parametrize("is_dry", [True, False])
def test_json(
    is_dry: bool, folder: Path, hub: HubStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["upload", str(folder), "--repo", REPO, "--json"]
    assert main(arguments + ["--dry-run"] * is_dry) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["repo"] == REPO
    assert document["dry_run"] is is_dry
    assert document["url"] == (None if is_dry else f"{hub.url}/{REPO}")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    del sizes["notes.txt"]
    assert {file["name"]: file["bytes"] for file in document["files"]} == sizes
    assert document["bytes"] == sum(sizes.values())
    assert document["left_out"] == ["notes.txt"]
    assert document["card"] == (folder / "README.md").read_text()


def test_a_refusal_is_one_line_and_exit_code_2(
    folder: Path, hub: HubStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    told = json.dumps({"error": f"bad token {hub.token}"}).encode()
    hub.on_request = lambda _: Answer(401, told, (("X-Error-Message", hub.token),))
    assert main(["upload", str(folder), "--repo", REPO, "--verbose"]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {REPO}: the Hub does not accept the token (401); ")
    assert "Traceback" in shown.err  # which --verbose asks for
    assert hub.token not in shown.err


def test_an_interruption_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_gemma4.convert.upload.upload", interrupt)
    assert main(["upload", str(folder), "--repo", REPO]) == 130
    assert f"goes on with what has not arrived at {REPO} yet" in capfd.readouterr().err


def test_a_repository_must_be_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["upload", str(folder)]) == 2
    assert "--repo" in capfd.readouterr().err
    assert main(["upload", str(folder), "--repo", "q4"]) == 2
    assert "allowed is USER/NAME" in capfd.readouterr().err
