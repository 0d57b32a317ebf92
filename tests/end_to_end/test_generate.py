"""What a person or a script sees of `generate`, `inspect`, and `demo`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from demo_memory import between, weights_bytes

from mlx_gemma4.cli import main
from mlx_gemma4.memory import PREFILL_STEPS, MemoryLimit

DATA = Path(__file__).parent.parent / "data"


def start(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlx_gemma4", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_demo_answers_rightly(capsys):
    assert main(["demo"]) == 0, capsys.readouterr().out
    output = capsys.readouterr().out
    assert "wrong" not in output
    assert {line.partition(":")[0] for line in output.splitlines()} >= {"image", "audio", "video"}


def test_answer_alone_is_on_stdout(capsys):
    picture = str(DATA / "shapes.png")
    code = main(["generate", "--model", "demo", "--image", picture, "What shape is this?"])
    output, errors = capsys.readouterr()
    assert code == 0
    assert output == "circle\n"
    assert errors.startswith("prompt 80 tokens")


def test_quiet_says_nothing_else(capsys):
    picture = str(DATA / "shapes.png")
    arguments = ["--model", "demo", "--image", picture, "--quiet", "What shape is this?"]
    assert main(["generate", *arguments]) == 0
    assert capsys.readouterr() == ("circle\n", "")


def test_json_is_one_document(capsys):
    media = ["--audio", str(DATA / "note.m4a"), "--image", str(DATA / "shapes.png")]
    assert main(["generate", "--model", "demo", *media, "--json", "What shape is this?"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finish_reason"] == "stop"
    assert [medium["modality"] for medium in document["media"]] == ["image", "audio"]
    assert any("note.m4a" in note for note in document["notes"])


def test_prompt_from_stdin_equals_the_argument(small_checkpoint):
    arguments = ["generate", "--model", str(small_checkpoint), "--temp", "0", "--max-tokens", "8"]
    answers = []
    for prompt, given in (("hi there", None), ("-", b"hi there\n")):
        process = start(*arguments, "--json", prompt, stdin=subprocess.PIPE)
        answers.append(json.loads(process.communicate(given, timeout=60)[0])["tokens"])
    assert answers[0] == answers[1]


def test_a_closed_pipe_is_no_error(small_checkpoint):
    with start("generate", "--model", str(small_checkpoint), "--raw", "hi") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_finds_no_room_is_an_error_with_advice(small_checkpoint, unbuffered):
    arguments = ["generate", "--model", str(small_checkpoint), "--max-tokens", "4", "--json", "hi"]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "mlx_gemma4", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            timeout=60,
        )
    assert result.returncode == 2, result.stderr
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_cleanly_with_exit_code_130(small_checkpoint):
    with start("generate", "--model", str(small_checkpoint), "--raw", "hi", bufsize=0) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
    assert b"interrupted" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize("rule", ["sliding", "all"])
def test_inspect_shows_what_the_model_will_see(small_checkpoint, rule, capsys):
    media = ["--image", str(DATA / "shapes.png"), "--video", str(DATA / "clip.mp4")]
    media += ["--audio", str(DATA / "note.m4a"), "--image-attention", rule]
    arguments = ["inspect", "--model", str(small_checkpoint), *media, "hi"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    prompt = document["prompt"]
    kinds = ["image", "video", "audio"]
    assert [medium["modality"] for medium in prompt["media"]] == kinds
    assert prompt["media"][0]["grid"] == [9, 7]
    assert len(prompt["token_ids"]) == prompt["num_tokens"]
    assert sum(span["length"] for span in prompt["spans"]) == sum(
        medium["num_soft_tokens"] for medium in prompt["media"]
    )
    assert document["memory"]["weights_bytes"] > 0
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert f"on {'sliding' if rule == 'sliding' else 'all'} layers" in output
    assert "63 soft tokens" in output


def test_inspect_reads_no_weights(small_checkpoint, monkeypatch, capsys):
    def load_weights(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("mlx_gemma4.weights.load_weights", load_weights)
    assert main(["inspect", "--model", str(small_checkpoint), "hi"]) == 0


def test_inspect_says_how_far_int8_rows_reach(monkeypatch, capsys):
    limit_bytes = weights_bytes() + between(8192, PREFILL_STEPS[-1])
    limit = MemoryLimit(limit_bytes, "this test can hold")
    monkeypatch.setattr("mlx_gemma4.memory.machine_limit", lambda: limit)
    arguments = ["inspect", "--model", "demo", "--dtype", "float32"]
    assert main([*arguments, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["longest_context"] < memory["longest_context_int8"] == 8192
    assert main(arguments) == 0
    longest = f"a context of {memory['longest_context']:,} tokens fits"
    assert f"{longest}, of 8,192 with --kv-bits 8" in capsys.readouterr().out


@pytest.mark.google_files
def test_inspect_needs_no_weights(google_checkpoint, capsys):
    assert main(["inspect", "--model", str(google_checkpoint), "--dtype", "bfloat16"]) == 0
    output, errors = capsys.readouterr()
    assert "weights 23.9 GB as bfloat16" in output
    assert "has no weights" in errors
