"""`mlx-gemma4 batch`: what lines may say, what is written, and what a killed run leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import batch_app
import pytest

from mlx_gemma4.cli import main
from mlx_gemma4.cli.answer_file import open_answers
from mlx_gemma4.cli.jsonl import BadLine, PromptFile, PromptLine
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.messages import MediaPart

SAMPLE = find_checkpoint("demo") / "samples" / "shape.png"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that runs the command with an engine that only pretends."""
    engine = batch_app.StandIn(tmp_path / "log")
    monkeypatch.setattr("mlx_gemma4.cli.batch.open_engine", lambda *_, **__: engine)

    def run(*arguments):
        return main(["batch", *map(str, arguments), "--model", "stand-in"])

    return run


@pytest.fixture
def files(tmp_path):
    """Return a function that writes prompts, and the two paths."""

    def write(*lines):
        prompts = tmp_path / "prompts.jsonl"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        prompts.write_text(text + "\n", encoding="utf-8")
        return prompts, tmp_path / "answers.jsonl"

    return write


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def complete_ids(path):
    """The ids of whole answers in a file that a killed run has left."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    return [json.loads(line)["id"] for line in whole]


def start(log, *arguments):
    script = Path(batch_app.__file__)
    command = [sys.executable, str(script), str(log), "batch", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def kill_at(process, path, size):
    """Kill a run as soon as its file has a size; fail if it ends before."""
    while not path.exists() or path.stat().st_size < size:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def test_ten_thousand_prompts_and_four_kills_lose_and_repeat_nothing(tmp_path, files):
    prompts, answers = files(*({"id": n, "prompt": f"prompt {n}"} for n in range(10_000)))
    rng, log = random.Random(7), tmp_path / "log"
    for size in (1, 200_000, 400_000, 600_000, None):
        done_before = complete_ids(answers)
        log.unlink(missing_ok=True)
        process = start(log, prompts, "--output", answers, "--model", "stand-in")
        if size is not None:
            kill_at(process, answers, size)
            if size > 1:  # as if the kill had come in the middle of a line
                os.truncate(answers, answers.stat().st_size - rng.randrange(2, 40))
        else:
            errors = finish(process)
            assert f"note: {len(done_before):,} answers of 10,000 there already" in errors
            assert "half a line at the end was dropped" in errors
        taken = [int(line) for line in log.read_text().splitlines()]
        assert len(set(taken)) == len(taken) > 0
        assert not set(taken) & set(done_before)
    found = records(answers)
    assert sorted(record["id"] for record in found) == list(range(10_000))
    assert all(record["text"] == f"an answer to prompt {record['id']}" for record in found)
    assert os.listdir(tmp_path).count("answers.jsonl") == len(list(tmp_path.glob("answers*")))


def test_killed_runs_of_the_demo_checkpoint_lose_and_repeat_nothing(tmp_path, files, capsys):
    words = ["tiger", "lemon", "cloud", "plane", "river", "stone"]
    lines = [
        {"id": f"line {n}", "prompt": f"Say this again: {words[n % 6]} {words[n // 6 % 6]}"}
        for n in range(48)
    ]
    prompts, answers = files(*lines)
    options = ["--model", "demo", "--temp", "0", "--max-tokens", "12", "--batch-size", "4"]
    for number in (10, 26):
        process = start("", prompts, "--output", answers, *options)
        while len(complete_ids(answers)) < number:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        kill_at(process, answers, 0)
    finish(start("", prompts, "--output", answers, *options))
    whole = tmp_path / "whole.jsonl"
    assert main(["batch", str(prompts), "--output", str(whole), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 48
    by_id = {record["id"]: record for record in records(whole)}
    found = records(answers)
    assert len(found) == 48
    assert {record["id"]: record for record in found} == by_id
    assert by_id["line 1"]["text"] == "lemon tiger"


def test_every_kind_of_line(files, capsys):
    """Text, a conversation, a picture in each of two ways, and the options of a line."""
    picture = {"type": "image", "path": str(SAMPLE)}
    ask = {"type": "text", "text": "What shape is this?"}
    prompts, answers = files(
        {"id": "text", "prompt": "Say this again: tiger lemon"},
        {"id": "short", "prompt": "Say this again: tiger lemon", "max_tokens": 1},
        {"id": "stopped", "prompt": "Say this again: tiger lemon", "stop": " lemon"},
        {"id": "picture", "prompt": "What shape is this?", "images": [str(SAMPLE)]},
        "",
        {"id": 5, "messages": [{"role": "user", "content": [picture, ask]}], "seed": 3},
        {"id": 6, "prompt": "What is this?", "image_tokens": 3, "images": str(SAMPLE)},
    )
    code = main(["batch", str(prompts), "-o", str(answers), "--model", "demo", "--temp", "0"])
    assert code == 2
    found = {record["id"]: record for record in records(answers)}
    assert found["text"]["text"] == "tiger lemon"
    assert (found["short"]["finish_reason"], found["short"]["generation_tokens"]) == ("length", 1)
    assert (found["stopped"]["text"], found["stopped"]["finish_reason"]) == ("tiger", "stop")
    assert found["picture"]["text"] == found[5]["text"] == "square"
    assert found["picture"]["notes"] == found[5]["notes"]
    assert (found[6]["line"], "budget of 3" in found[6]["error"]) == (7, True)
    output, errors = capsys.readouterr()
    assert output == ""
    assert "5 answers; 1 error; prompts " in errors
    assert "prompts.jsonl, line 7: " in errors


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it is a list; write a JSON object"),
        ('"\xff"', "it is a str; write a JSON object"),
        ("[" * 100_000, "it is not JSON"),
        ({"prompt": "hi"}, 'it has no "id"'),
        ({"id": "", "prompt": "hi"}, 'it has no "id"'),
        ({"id": 1.5, "prompt": "hi"}, 'its "id" is 1.5; allowed is a string or a whole number'),
        ({"id": True, "prompt": "hi"}, 'its "id" is true'),
        ({"id": 1}, 'give it either "prompt", a text, or "messages", a list'),
        ({"id": 1, "prompt": "hi", "messages": []}, "give it either"),
        ({"id": 1, "prompt": 3}, 'its "prompt" is 3; allowed is a string'),
        ({"id": 1, "messages": []}, "the conversation is empty"),
        ({"id": 1, "messages": [{"role": "nobody"}]}, "messages[0].role is 'nobody'"),
        ({"id": 1, "prompt": "hi", "image": "a.png"}, "it has an unknown key, 'image'"),
        ({"id": 1, "prompt": "hi", "images": [3]}, '"images" holds a int; allowed are paths'),
        ({"id": 1, "prompt": "hi", "images": "https://a.b/c.png"}, "images is a web address"),
        ({"id": 1, "prompt": "hi", "temp": -1}, "temperature is -1"),
        ({"id": 1, "prompt": "hi", "temp": "hot"}, 'its "temp" is "hot"; allowed is a whole numb'),
        ({"id": 1, "prompt": "hi", "max_tokens": -2}, "max_tokens is -2"),
        ({"id": 1, "prompt": "hi", "max_tokens": 2.5}, 'its "max_tokens" is 2.5'),
        ({"id": 1, "prompt": "hi", "stop": [""]}, "a stop string is empty"),
        ({"id": 1, "prompt": "hi", "stop": [1]}, 'its "stop" holds what is no string'),
        ({"id": 1, "prompt": "hi", "tools": [{"name": ""}]}, "tools[0].function has no name"),
        ({"id": 1, "prompt": "hi", "thinking": 1}, 'its "thinking" is 1; allowed is true or'),
        ({"id": "first", "prompt": "hi"}, "its id is that of line 1"),
    ],
)
def test_a_bad_line_is_an_error_and_the_others_go_on(files, stand_in, line, says):
    prompts, answers = files({"id": "first", "prompt": "a"}, line, {"id": "last", "prompt": "b"})
    assert stand_in(prompts, "--output", answers) == 2
    bad, *good = records(answers)
    assert (bad["id"], bad["line"]) == (None, 2)
    assert says in bad["error"]
    assert {record["id"] for record in good} == {"first", "last"}


def test_a_line_may_not_be_endless(files, monkeypatch):
    monkeypatch.setattr("mlx_gemma4.cli.jsonl.MAX_LINE_BYTES", 100)
    prompts, _ = files({"id": 1, "prompt": "a" * 1000}, {"id": 2, "prompt": "hi"})
    bad, good = PromptFile(prompts, {}, {})
    assert isinstance(bad, BadLine)
    assert "more than 100 bytes" in bad.error
    assert good.number == 2


def test_paths_start_at_the_folder_of_the_file(files):
    part = {"type": "image", "path": "b.png"}
    prompts, _ = files(
        {"id": 1, "prompt": "hi", "images": ["a.png", "/c.png"]},
        {"id": 2, "messages": [{"role": "user", "content": [part, {"type": "text", "text": "x"}]}]},
    )
    given, placed = (line for line in PromptFile(prompts, {}, {}) if isinstance(line, PromptLine))
    assert given.processing["images"] == [prompts.parent / "a.png", Path("/c.png")]
    media = [part for part in placed.messages[0].parts if isinstance(part, MediaPart)]
    assert media == [MediaPart("image", prompts.parent / "b.png")]


def test_errors_are_tried_again_and_answers_are_not(files, stand_in, capsys, tmp_path):
    prompts, answers = files({"id": "é\ud800", "prompt": "a"}, "nonsense")
    for _ in range(2):
        assert stand_in(prompts, "--output", answers) == 2
        assert sorted(map(str, (record["id"] for record in records(answers)))) == [
            "None",
            "é\ud800",
        ]
    assert "1 error from before, tried again now" in capsys.readouterr().err
    prompts, _ = files({"id": "é\ud800", "prompt": "a"}, {"id": 2, "prompt": "b"})
    assert stand_in(prompts, "--output", answers) == 0
    assert [record["id"] for record in records(answers)] == ["é\ud800", 2]
    assert (tmp_path / "log").read_text().splitlines() == ["é\\ud800", "2"]


@pytest.mark.parametrize(
    ("change", "option"),
    [({"prompt": "b"}, []), ({"seed": 2}, []), ({}, ["--temp", "0.5"]), ({}, ["--raw"])],
)
def test_another_question_under_the_same_id_is_refused(files, stand_in, capsys, change, option):
    line = {"id": "one", "prompt": "a"}
    prompts, answers = files(line)
    assert stand_in(prompts, "--output", answers) == 0
    before = answers.read_bytes()
    files({**line, **change})
    assert stand_in(prompts, "--output", answers, *option) == 2
    assert 'answers under the id "one"' in capsys.readouterr().err
    assert answers.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"my diary", b"my diary\n", b'{"id": 1, "text": "x"}\n', b"\x89PNG\n\x00", b"[]\n"]
)
def test_a_file_of_something_else_is_left_alone(files, stand_in, capsys, content):
    prompts, answers = files({"id": 1, "prompt": "a"})
    answers.write_bytes(content)
    assert stand_in(prompts, "--output", answers) == 2
    assert "is not an answer of this command" in capsys.readouterr().err
    assert answers.read_bytes() == content


@pytest.mark.parametrize("tail", [b'{"id": "tw', b"{", b'{"id": "two", "text": "\xc3', b"\0\0\0"])
def test_half_a_line_is_dropped(files, stand_in, capsys, tail):
    prompts, answers = files({"id": "one", "prompt": "a"})
    assert stand_in(prompts, "--output", answers) == 0
    whole = answers.read_bytes()
    answers.write_bytes(whole + tail)
    assert stand_in(prompts, "--output", answers) == 0
    assert answers.read_bytes() == whole
    assert "half a line at the end was dropped" in capsys.readouterr().err


def test_a_last_line_without_an_end_is_kept_if_it_is_whole(files, stand_in, capsys):
    prompts, answers = files({"id": "one", "prompt": "a"})
    assert stand_in(prompts, "--output", answers) == 0
    whole = answers.read_bytes()
    answers.write_bytes(whole[:-1])
    assert stand_in(prompts, "--output", answers) == 0
    assert answers.read_bytes() == whole
    assert "half a line" not in capsys.readouterr().err


def test_a_link_stays_a_link(files, stand_in, tmp_path):
    prompts, answers = files({"id": "one", "prompt": "a"}, "nonsense")
    (tmp_path / "elsewhere").mkdir()
    answers.symlink_to(tmp_path / "elsewhere" / "real.jsonl")
    for _ in range(2):
        assert stand_in(prompts, "--output", answers) == 2
    assert answers.is_symlink()
    assert len(records(answers)) == 2


def test_two_runs_do_not_write_one_file(files, stand_in, capsys):
    prompts, answers = files({"id": "one", "prompt": "a"})
    with open_answers(answers):
        assert stand_in(prompts, "--output", answers) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(files, tmp_path, monkeypatch, capsys):
    prompts, answers = files(*({"id": n, "prompt": "a"} for n in range(20)))

    class Interrupted(batch_app.StandIn):
        def answer(self, lines):
            for count, done in enumerate(super().answer(lines)):
                if count == 5:
                    raise KeyboardInterrupt
                yield done

    engine = Interrupted(tmp_path / "log")
    monkeypatch.setattr("mlx_gemma4.cli.batch.open_engine", lambda *_, **__: engine)
    arguments = ["batch", str(prompts), "-o", str(answers), "--model", "stand-in"]
    assert main(arguments) == 130
    assert "5 of 20 prompts are answered" in capsys.readouterr().err
    assert len(records(answers)) == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jsonl", "-o", "a.jsonl"], "cannot read nowhere.jsonl"),
        ([".", "-o", "a.jsonl"], ". is not a file"),
        (["{prompts}", "-o", "{prompts}"], "--output is the file of prompts"),
        (["{prompts}", "-o", "nowhere/a.jsonl"], "cannot write"),
        (["{prompts}", "-o", "."], "is not a file; choose another --output"),
        (["{prompts}", "-o", "a.jsonl", "--batch-size", "0"], "--batch-size is '0'"),
        (["{empty}", "-o", "a.jsonl"], "has no prompts"),
    ],
)
def test_a_wrong_call_writes_nothing(
    files, stand_in, capsys, tmp_path, arguments, says, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    prompts, _ = files({"id": "one", "prompt": "a"})
    (tmp_path / "empty").write_text("\n\n")
    names = {"prompts": prompts, "empty": tmp_path / "empty"}
    before = sorted(os.listdir(tmp_path))
    assert stand_in(*(argument.format(**names) for argument in arguments)) == 2
    assert says in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_model_that_is_not_there_leaves_no_file(files, capsys):
    prompts, answers = files({"id": "one", "prompt": "a"})
    assert main(["batch", str(prompts), "-o", str(answers), "--model", "/nowhere/model"]) == 2
    assert not answers.exists()


def test_more_errors_than_one_wants_to_see(files, stand_in, capsys):
    prompts, answers = files(*["nonsense"] * 40)
    assert stand_in(prompts, "--output", answers) == 2
    assert len(records(answers)) == 40
    shown = capsys.readouterr().err.splitlines()
    assert len([line for line in shown if "not JSON" in line]) == 10
