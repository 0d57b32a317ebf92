"""`mlx-gemma4 convert`: what goes to stdout, what to stderr, and the exit code."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from drafter_checkpoint import write_drafter
from hub_stand_in import HubStandIn, Repo, connect
from huggingface_hub import constants
from random_checkpoint import Size, write_checkpoint

from mlx_gemma4.cli import convert as command
from mlx_gemma4.cli import main
from mlx_gemma4.convert import conversion, target, writer
from mlx_gemma4.convert.verify import verify_checkpoint
from mlx_gemma4.evaluation import prompts as bundled
from mlx_gemma4.memory import MemoryLimit

SMALL = Size(64, 128, 6, 2, 1, 64, 512, 32, 1280)
NAME = "google/gemma-4-12B-it"
DRAFTER = "google/gemma-4-12B-it-assistant"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small bfloat16 checkpoint in two shards; not to be changed."""
    folder = tmp_path_factory.mktemp("cli") / "Source"
    return write_checkpoint(folder, SMALL, dtype="bfloat16", num_shards=2)


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "copy"))


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a report be of two prompts."""
    few = bundled.bundled_prompts("report")[:2]
    monkeypatch.setattr(bundled, "bundled_prompts", lambda _: few)


def refusal(arguments: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that is to be refused, and return the one line that says why."""
    assert main(["convert", *arguments]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") == 1, shown.err
    return shown.err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What is shown.


def test_a_dry_run_shows_a_table_and_writes_nothing(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(source), "--recipe", "mixed-4-8", "--dry-run"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    heading, *rows = shown.out.splitlines()
    assert heading.split() == ["modules", "stored", "as", "number", "weights", "size"]
    (embedding,) = (row for row in rows if row.startswith("language_model.embed_tokens"))
    assert "8-bit in groups of 64" in embedding
    assert f"{1280 * 64:,}" in embedding
    assert f"{source} as mixed-4-8: " in shown.out
    assert " in 1 file (now " in shown.out
    assert " bits per weight\ntakes about " in shown.out
    assert shown.out.endswith(" s here; nothing was written\n")
    assert "learn" not in shown.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), "--recipe", "q8", "--dry-run", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["source"], document["recipe"]) == (str(source), "q8")
    assert document["bytes"] == sum(row["nbytes"] for row in document["modules"])
    weights = sum(row["weights"] for row in document["modules"])
    assert document["bits_per_weight"] == pytest.approx(8 * document["bytes"] / weights, abs=1e-4)
    assert document["source_bytes"] == 2 * weights
    assert document["files"] == ["model.safetensors"]
    assert document["download_bytes"] == 0
    assert document["peak_memory_bytes"] > 100e6
    assert document["seconds"] >= document["learning_seconds"] == 0


def test_a_dry_run_counts_what_learning_takes(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for recipe in ("q4", "q4-awq"):
        assert main(["convert", str(source), "--recipe", recipe, "--dry-run", "--json"]) == 0
        found[recipe] = json.loads(capfd.readouterr().out)
    assert found["q4-awq"]["seconds"] >= found["q4-awq"]["learning_seconds"] > 0
    assert found["q4-awq"]["peak_memory_bytes"] > found["q4"]["peak_memory_bytes"]
    assert main(["convert", str(source), "--recipe", "q4-awq", "--dry-run"]) == 0
    assert " to learn scales, here; nothing was written\n" in capfd.readouterr().out


def test_a_conversion_is_one_line(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(source)]) == 0
    shown = capfd.readouterr()
    # Named after the checkpoint and the recipe, here.
    assert shown.out.startswith("source-q4: ")
    assert shown.out.count("\n") == 1
    assert " bits per weight (was " in shown.out
    assert shown.err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["source-q4"]
    verify_checkpoint(tmp_path / "source-q4")


def test_a_conversion_as_json(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(source), "-r", "mxfp4", "-o", str(out), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["folder"] == str(out)
    assert document["kept_shards"] == 0
    assert document["notes"] == []
    assert document["quality"] is None
    assert document["bytes"] == sum(
        array.nbytes for array in cast(dict, mx.load(str(out / "model.safetensors"))).values()
    )
    (row,) = (r for r in document["modules"] if r["modules"].endswith("embed_tokens"))
    assert row["settings"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}


@pytest.mark.usefixtures("few_prompts")
def test_a_report_is_kept_and_shown(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(source), "-o", str(out), "--report", "--json"]) == 0
    quality = json.loads(capfd.readouterr().out)["quality"]
    assert quality["kinds"]["all"]["mean_kl"] > 0
    assert json.loads((out / "quality.json").read_text()) == quality
    figure = f"{quality['kinds']['all']['mean_kl']:.5f}"
    assert figure in (out / "README.md").read_text()
    verify_checkpoint(out)


@pytest.mark.parametrize("recipe", ["q4", "qat-q4_0", "q4-awq"])
def test_each_phase_has_a_bar_with_its_name(
    recipe: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tuple[str, int, int]] = []

    class Bar:
        def __init__(self, label: str, *, in_bytes: bool = False) -> None:
            self.label = label

        def update(self, done: int, total: int) -> None:
            bars.append((self.label, done, total))

        def close(self) -> None:
            """There is nothing to remove."""

    def search(_: Any, progress: Any) -> dict[str, Any]:
        progress(1, 1)
        return {"scale_dtypes": {}, "notes": []}

    def learn(_: Any, folder: Path, *, progress: Any) -> dict[str, Any]:
        progress(1, 1)
        return {}

    monkeypatch.setattr(command, "ProgressBar", Bar)
    monkeypatch.setattr(conversion, "find_scale_dtypes", search)
    monkeypatch.setattr(conversion.awq, "learn", learn)
    out = str(tmp_path / "out")
    # This checkpoint lies on no grid, which is found when it is written.
    assert main(["convert", str(source), "-r", recipe, "-o", out]) == 2 * (recipe == "qat-q4_0")
    first = {"qat-q4_0": ["finding the q4_0 grid"], "q4-awq": ["learning scales"]}.get(recipe, [])
    assert list(dict.fromkeys(label for label, *_ in bars)) == [*first, f"converting to {recipe}"]
    if recipe != "qat-q4_0":
        _, done, total = bars[-1]
        assert done == total > 1


# What is there already.


def test_a_target_that_is_there_is_replaced_only_when_forced(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(source), "-o", str(tmp_path / "out")]
    assert main(["convert", *arguments, "-r", "q8"]) == 0
    capfd.readouterr()
    before = contents(tmp_path / "out")
    assert "is there already; choose another --output, or replace it with --force" in refusal(
        arguments, capfd
    )
    assert contents(tmp_path / "out") == before
    assert main(["convert", *arguments, "--force"]) == 0
    assert contents(tmp_path / "out") != before
    assert verify_checkpoint(tmp_path / "out").conversion["recipe"] == "q4"


def test_force_replaces_nothing_but_checkpoints(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, says in (
        ("letters", "is no checkpoint"),
        ("file", "no folder"),
        ("link", "no folder"),
    ):
        assert says in refusal([str(source), "-o", str(tmp_path / name), "--force"], capfd)
    assert "is the source itself" in refusal([str(source), "-o", str(source), "--force"], capfd)
    assert (tmp_path / "letters" / "mine.txt").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "letters", "link"]


def test_what_an_interrupted_run_has_done_is_said(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = conversion.write_shard, []

    def interrupt(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    plan = conversion.plan_conversion
    monkeypatch.setattr(
        conversion, "plan_conversion", lambda *a, **o: plan(*a, **o, shard_bytes=400_000)
    )
    monkeypatch.setattr(conversion, "write_shard", interrupt)
    arguments = ["convert", str(source), "-o", str(tmp_path / "out")]
    assert main(arguments) == 130
    shown = capfd.readouterr()
    partial = target.partial_folder_of(tmp_path / "out")
    assert f"out was not made; what is done stands in {partial}" in shown.err
    assert "and the same command goes on from there\n" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    assert main(arguments) == 0
    assert capfd.readouterr().err == "note: 1 file of an interrupted run was kept\n"
    verify_checkpoint(tmp_path / "out")


# What is refused.


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("q4_awq", "there is no recipe 'q4_awq'; did you mean q4-awq? shipped are bf16, "),
        ("Q8", "did you mean q8?"),
        ("mixed48", "did you mean mixed-4-8?"),
        ("mine.toml", "there is no recipe 'mine.toml'; shipped are bf16, mixed-4-8, "),
    ],
)
def test_an_unknown_recipe(recipe: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert says in refusal(["./nowhere", "-r", recipe], capfd)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[modules]]\nmatch = "*"\nbit = 4\n', "has unknown keys: bit; known are bits, "),
        ('[[modules]\nmatch = "*"\n', "is not TOML"),
        ('[[modules]]\nmatch = "*"\nbits = 7\n', "bits is 7; allowed are 2, 3, 4, 5, 6, 8"),
        (
            '[[modules]]\nmatch = "language_model.layers.*.mlp.down_prj"\nbits = 4\n',
            "'language_model.layers.*.mlp.down_prj' matches no matrix; there are embed_audio",
        ),
    ],
)
def test_a_recipe_with_a_typo(
    text: str, says: str, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text)
    assert says in refusal([str(source), "-r", str(recipe), "-o", str(tmp_path / "out")], capfd)
    # Not even the hidden folder is left.
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_source_that_is_quantized_already(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(source), "-r", "q8", "-o", str(tmp_path / "q8")]) == 0
    capfd.readouterr()
    for dry in ([], ["--dry-run"]):
        says = refusal([str(tmp_path / "q8"), "-o", str(tmp_path / "out"), *dry], capfd)
        assert "is already quantized (language_model." in says
        assert "8-bit in groups of 64), and q4 wants 4-bit in groups of 64" in says
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("gemma3", '"gemma3"; only "gemma4_unified" is supported; use mlx-lm or mlx-vlm'),
        ("gemma4", "Gemma 4 E2B, E4B, 26B, and 31B have encoders or experts"),
        (None, "model_type is missing"),
    ],
)
def test_a_source_of_another_kind(
    model_type: str | None, says: str, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    assert says in refusal([str(copy), "-o", str(copy / "out")], capfd)


def test_a_source_without_its_tokenizer(
    copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (copy / "tokenizer.json").unlink()
    target = tmp_path / "out"
    shown = refusal([str(copy), "--recipe", "q4", "--output", str(target)], capfd)
    assert "has no tokenizer.json" in shown
    assert "fetch the checkpoint again" in shown
    assert not target.exists()


def test_a_value_that_is_not_finite_is_named(
    copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "model.language_model.layers.2.mlp.gate_proj.weight"
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    damaged = copy / index["weight_map"][name]
    tensors = dict(cast(dict[str, mx.array], mx.load(str(damaged))))
    mx.eval(tensors)
    tensors[name][100, 3] = mx.nan
    mx.save_safetensors(str(damaged), tensors, {"format": "pt"})
    arguments = [str(copy), "-o", str(tmp_path / "out")]
    says = refusal(arguments, capfd)
    assert f"{damaged}: tensor {name} has values that are not finite" in says
    assert "or take them over with --allow-nan" in says
    assert not (tmp_path / "out").exists()
    assert main(["convert", *arguments, "--allow-nan"]) == 0


def test_a_parent_that_is_a_file(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    says = refusal([str(source), "-o", str(tmp_path / "file" / "out")], capfd)
    assert "cannot write beside" in says
    assert "choose a folder of yours with --output" in says


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_parent_that_is_read_only(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    says = refusal([str(source), "-o", str(tmp_path / "theirs" / "out")], capfd)
    assert "Permission denied; choose a folder of yours with --output" in says


def test_a_defect_is_said_to_be_ours(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(conversion, "write_shard", fail)
    assert main(["convert", str(source), "-o", str(tmp_path / "out")]) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("error: RuntimeError: ours\nthis is a defect of mlx-gemma4, not yours;")
    assert "Traceback" not in shown


# Disks and paths.


def test_a_disk_with_too_little_room_is_known_before(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    says = refusal([str(source), "-o", str(tmp_path / "out")], capfd)
    assert "has 1.0 MB free; make room, or choose another --output" in says
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a file system with 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount")):
        pytest.skip("only root on Linux can mount a tmpfs")
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_is_refused(
    source: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    says = refusal([str(source), "-o", str(small_disk / "out")], capfd)
    assert f"the disk of {small_disk} has 1.0 MB free; make room" in says
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_target_and_what_was_done(
    source: Path,
    small_disk: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another program takes the room after it was looked for.
    usage = shutil.disk_usage(small_disk)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    says = refusal([str(source), "-o", str(small_disk / "out")], capfd)
    assert "the disk is full" in says
    assert [path.name for path in small_disk.iterdir()] == [".out.partial"]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert main(["convert", str(source), "-o", str(small_disk / "out")]) == 0
    verify_checkpoint(small_disk / "out")


def test_a_disk_that_fills_up_is_no_defect(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "pwrite", fail)
    says = refusal([str(source), "-o", str(tmp_path / "out")], capfd)
    assert "the disk is full ([Errno 28] No space left on device); make room" in says


def test_a_path_with_blanks_and_umlauts(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "Größe 12 B" / "Modell „it“"))
    out = tmp_path / "für mich" / "4 Bit"
    assert main(["convert", str(folder), "-o", str(out)]) == 0
    assert capfd.readouterr().out.startswith(f"{out}: ")
    assert main(["verify", str(out)]) == 0
    assert "Modell „it“" in (out / "README.md").read_text(encoding="utf-8")


def test_a_cache_of_links(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--google--gemma"
    snapshot = cache / "snapshots" / "707f0a3b"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, cache / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
    (tmp_path / "link").symlink_to(snapshot)
    assert main(["convert", str(tmp_path / "link"), "-o", str(tmp_path / "out")]) == 0
    assert main(["convert", str(source), "-o", str(tmp_path / "plain")]) == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


# The Hub.


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Return a Hub that has the small checkpoint and a drafter, and an empty cache."""
    with HubStandIn() as hub:
        connect(hub, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        for name, folder in ((NAME, source), (DRAFTER, write_drafter(tmp_path / "assistant"))):
            hub.repos[name] = Repo(files=contents(folder))
        shutil.rmtree(tmp_path / "assistant")
        yield hub


def sent_weights(hub: HubStandIn) -> int:
    """Return the bytes of weights that were sent."""
    return sum(n for file, n in hub.sent_bytes.items() if file.endswith(".safetensors"))


def weights_bytes(hub: HubStandIn, name: str = NAME) -> int:
    files = hub.repos[name].files
    return sum(len(content) for file, content in files.items() if file.endswith(".safetensors"))


def test_a_dry_run_downloads_no_weights(
    hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], source: Path
) -> None:
    assert main(["convert", NAME, "--dry-run", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert weights_bytes(hub) < document["download_bytes"] < weights_bytes(hub) + 1_000_000
    assert document["source"] == NAME
    assert sent_weights(hub) < weights_bytes(hub) / 4
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert main(["convert", str(source), "--dry-run", "--json"]) == 0
    of_folder = json.loads(capfd.readouterr().out)
    assert document["modules"] == of_folder["modules"]
    assert document["bytes"] == of_folder["bytes"]
    assert main(["convert", NAME, "--dry-run"]) == 0
    assert " here, after a download of " in capfd.readouterr().out


def test_a_name_is_downloaded_and_converted(
    hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], source: Path
) -> None:
    assert main(["convert", NAME]) == 0
    assert capfd.readouterr().out.startswith("gemma-4-12b-it-q4: ")
    found = verify_checkpoint(tmp_path / "gemma-4-12b-it-q4")
    assert found.conversion["source"] == NAME
    assert main(["convert", str(source), "-o", "plain"]) == 0
    name = "model.safetensors"
    converted = (tmp_path / "gemma-4-12b-it-q4" / name).read_bytes()
    assert converted == (tmp_path / "plain" / name).read_bytes()
    hub.sent_bytes.clear()
    assert main(["convert", NAME, "-r", "q8"]) == 0
    assert sent_weights(hub) == 0  # they are in the cache now


@pytest.mark.parametrize("recipe", ["q4", "bf16"])
def test_a_drafter_by_name(recipe: str, hub: HubStandIn, tmp_path: Path) -> None:
    assert main(["convert", DRAFTER, "-r", recipe, "--dry-run"]) == 0
    assert sent_weights(hub) < weights_bytes(hub, DRAFTER)
    assert main(["convert", DRAFTER, "-r", recipe]) == 0
    out = tmp_path / f"gemma-4-12b-it-assistant-{recipe}"
    assert verify_checkpoint(out).conversion["source"] == DRAFTER
    assert json.loads((out / "config.json").read_text())["model_type"].endswith("assistant")


def last_line(arguments: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that is to be refused, and return its line behind the Hub library's own."""
    assert main(["convert", *arguments]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err.splitlines()[-1]


def test_a_report_of_a_drafter_is_refused_before_the_download(
    hub: HubStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    says = last_line([DRAFTER, "--report"], capfd)
    assert "is a drafter, which answers nothing by itself, and --report compares answers" in says
    assert sent_weights(hub) < weights_bytes(hub, DRAFTER)


def test_what_would_fail_later_is_refused_before_the_download(
    hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], source: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[modules]]\nmatch = "nothing"\nbits = 4\n')
    assert main(["convert", str(source), "-o", "there"]) == 0
    capfd.readouterr()
    for arguments, says in (
        (["-o", "there"], "there is there already; choose another --output"),
        (["-o", "file/out"], "cannot write beside file/out: Not a directory"),
        (["-r", str(recipe)], "the pattern 'nothing' matches no matrix"),
    ):
        assert says in last_line([NAME, *arguments], capfd)
    assert sent_weights(hub) < weights_bytes(hub) / 2


def test_room_for_download_and_result_is_looked_for_before(
    hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    room = weights_bytes(hub) + 1_000_000  # for the download alone
    usage = shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    says = last_line([NAME], capfd)
    assert " after a download of " in says
    assert f"and the disk of {tmp_path} has " in says
    assert "--output says where the result goes, and HF_HOME where downloads do" in says
    assert sent_weights(hub) < weights_bytes(hub) / 4
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_memory_is_looked_for_before_the_download(
    hub: HubStandIn, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = MemoryLimit(150_000_000, "this machine can hold")
    monkeypatch.setattr(target, "machine_limit", lambda: limit)
    says = last_line([NAME, "-r", "q4-awq"], capfd)
    assert "error: recipe q4-awq needs about 2" in says
    assert " MB of memory; this machine can hold 150.0 MB; take a recipe that learns" in says
    assert sent_weights(hub) < weights_bytes(hub) / 4
    assert main(["convert", NAME, "-r", "q4"]) == 0


def test_a_result_on_another_disk_needs_its_own_room_there(
    hub: HubStandIn, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    says = last_line([NAME, "-o", str(small_disk / "out")], capfd)
    assert f"and the disk of {small_disk} has 1.0 MB free; make room" in says
    assert "download" not in says
    assert sent_weights(hub) < weights_bytes(hub) / 4


def test_importing_the_command_imports_nothing_slow() -> None:
    code = (
        "import sys; import mlx_gemma4.cli.convert, mlx_gemma4.cli.verify;"
        "print(sorted({'mlx', 'numpy', 'rich', 'huggingface_hub', 'jinja2'} & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")
