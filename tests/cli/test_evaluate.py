"""`mlx-gemma4 evaluate`: what goes to stdout, what to stderr, and the exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from quantized_checkpoint import write_quantized
from random_checkpoint import Size, write_checkpoint

from mlx_gemma4.cli import main
from mlx_gemma4.evaluation import prompts as bundled

SMALL = Size(64, 128, 6, 2, 1, 32, 512, 32, 1280)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("evaluate") / "small", SMALL)


@pytest.fixture(scope="module")
def q4(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(small, tmp_path_factory.mktemp("evaluate") / "q4", bits=4)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "mine.jsonl"
    lines = [{"text": "How many?", "answer": "three"}, {"text": "The sum of 47 and 38 is 85."}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def test_the_table_goes_to_stdout_alone(
    q4: Path, small: Path, prompts: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(q4), "--against", str(small), "--prompts", prompts]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    heading, text, total, *_ = shown.out.splitlines()
    assert heading.split()[:4] == ["prompts", "positions", "mean", "KL"]
    assert text.split()[0] == "text"
    assert total.split()[0] == "all"
    assert f"{q4} against {small}, 2 prompts" in shown.out


def test_one_json_document(
    q4: Path, small: Path, prompts: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(q4), "--against", str(small), "--prompts", prompts, "--json"]
    assert main(arguments) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["checkpoint"], document["against"]) == (str(q4), str(small))
    assert document["prompt_set"] == prompts
    assert document["kinds"]["all"]["mean_kl"] > 0
    assert "by_prompt" not in document
    assert main([*arguments, "--verbose"]) == 0
    assert len(json.loads(capfd.readouterr().out)["by_prompt"]) == 2


def test_verbose_shows_every_prompt(
    q4: Path, small: Path, prompts: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(q4), "--against", str(small), "--prompts", prompts]
    assert main([*arguments, "--verbose"]) == 0
    shown = capfd.readouterr().out
    assert shown.count("positions") == 2
    assert "mine.jsonl, line 1 " in shown


def test_the_bundled_set_is_the_default(
    small: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = bundled.bundled_prompts("report")[-2:]
    parts: list[str] = []

    def take(part: str) -> tuple[bundled.EvaluationPrompt, ...]:
        parts.append(part)
        return few

    monkeypatch.setattr(bundled, "bundled_prompts", take)
    assert main(["evaluate", str(small), "--against", str(small), "--json"]) == 0
    assert parts == ["report"]
    document = json.loads(capfd.readouterr().out)
    assert document["prompt_set"] == "bundled"
    assert document["kinds"]["audio"]["mean_kl"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--against", "demo", "--prompts", "no.jsonl"], "cannot read 'no.jsonl'"),
        (["./no", "--against", "demo"], "no such folder: './no'"),
        (["demo", "--against", "./no"], "no such folder: './no'"),
        (["demo"], "--against"),
        ([], "CHECKPOINT"),
    ],
)
def test_a_mistake_is_one_the_user_can_mend(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert says in shown.err


def test_another_vocabulary_is_refused(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(small), "--against", "demo"]) == 2
    assert "only checkpoints with one vocabulary" in capfd.readouterr().err


def test_importing_the_command_imports_nothing_slow() -> None:
    code = (
        "import sys; import mlx_gemma4.cli.evaluate;"
        "print(sorted({'mlx', 'numpy', 'rich', 'PIL', 'tokenizers'} & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")
