"""A short run of each fuzz target; and the fuzzer finds what is planted."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from fuzz.__main__ import TARGETS, main
from fuzz.case import Finding
from fuzz.hunt import Hunt, minimise, replay
from fuzz.mutation import mutate_bytes, mutate_json, mutate_png, mutate_text
from fuzz.worker import Limits
from planted_targets import DEFECTS

# How many are run, by how long they take.
CASES = {"weights": 200, "config": 200, "sound": 200, "picture": 150, "answer": 100}
CASES |= {"tokenizer": 60, "messages": 60, "clip": 40, "command": 40, "template": 25}
LIMITS = Limits(0.6, 3)  # of what is planted


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_our_own_errors(name: str) -> None:
    """`python -m fuzz --replay` says more of a case that is found here."""
    hunt = Hunt(TARGETS[name], seed=0)
    hunt.run(0, CASES[name])
    assert not hunt.findings, [(f.place, f.detail) for f, _ in hunt.findings.values()]
    assert hunt.counts.total() == CASES[name]
    # Else the mutations do not get past the first check, or change nothing that is looked at.
    assert hunt.counts["taken"] > 0
    assert hunt.counts["refused"] > 0 or name == "answer"


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_is_made_of_its_number(name: str) -> None:
    target = TARGETS[name]
    real = target.read_real()
    one, again, other = (target.make(real, 5, index) for index in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    ("name", "kind", "place"),
    [
        ("foreign_exception", "exception", "KeyError at "),
        ("panic", "exception", "BaseException at "),
        ("hang", "hang", ""),
        ("hang_in_c", "hang", ""),
        ("wait", "hang", ""),
        ("hog", "memory", ""),
        ("hog_beyond_bounds", "memory", ""),
        ("crash", "crash", "SIGSEGV at "),
    ],
)
def test_what_is_planted_is_found(name: str, kind: str, place: str, tmp_path: Path) -> None:
    """It is found, named, and kept; the cases after it are run all the same."""
    target = DEFECTS[name]
    real = target.read_real()
    bad = [index for index in range(200) if b"7" in target.make(real, 0, index)["a"]][:2]
    hunt = Hunt(target, seed=0, folder=tmp_path, limits=LIMITS)
    hunt.run(bad[0], bad[1] + 1)
    assert hunt.counts[kind] == 2
    assert hunt.counts.total() == bad[1] - bad[0] + 1
    [(finding, times)] = hunt.findings.values()
    assert (finding.kind, finding.index, times) == (kind, bad[0], 2)
    assert finding.place.startswith(place)
    assert finding.is_repeatable
    kept = Finding.load(next(tmp_path.iterdir()))
    assert kept == finding
    answer = replay(target, kept.files, LIMITS)
    assert not isinstance(answer, Counter)
    assert answer.kind == kind


def test_what_is_sound_is_counted() -> None:
    hunt = Hunt(DEFECTS["sound"], seed=0)
    hunt.run(0, 50)
    assert not hunt.findings
    assert hunt.counts.keys() == {"taken", "refused"}
    assert hunt.counts.total() == 50


def test_a_case_is_made_small() -> None:
    target = DEFECTS["foreign_exception"]
    hunt = Hunt(target, seed=0)
    hunt.run(0, 60)
    [(finding, _)] = hunt.findings.values()
    assert finding.files == {"a": b"7"}


def test_what_does_not_happen_again_is_said() -> None:
    finding = Finding("sound", 0, 0, "exception", "KeyError", "", {"a": b"harmless"})
    assert not minimise(DEFECTS["sound"], finding, LIMITS).is_repeatable


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "config", "--cases", "20", "--output", str(tmp_path)]) == 0
    assert "20 cases, 0 findings" in capsys.readouterr().out
    finding = Finding("config", 0, 0, "exception", "", "", TARGETS["config"].read_real()[0])
    finding.save(tmp_path / "kept.zip")
    assert main(["--replay", str(tmp_path / "kept.zip")]) == 0
    assert "taken; it is not a finding any more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--jobs", "0"], "--jobs: invalid above_0 value: '0'"),
        (["--target", "moon"], "invalid choice: 'moon'"),
        (["--replay", "nowhere.zip"], "nowhere.zip is no finding"),
    ],
)
def test_mistakes(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert error in capsys.readouterr().err


def test_command_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C sums up what was run."""

    def interrupted(self: Hunt, start: int, stop: int, advance: object) -> None:
        self.counts["taken"] += 7
        raise KeyboardInterrupt

    monkeypatch.setattr(Hunt, "run", interrupted)
    assert main(["--target", "config", "--output", str(tmp_path)]) == 130
    assert "7 cases, 0 findings" in capsys.readouterr().out


def test_mutations_change_what_they_are_given(repository: Path) -> None:
    png = (repository / "tests" / "data" / "shapes.png").read_bytes()
    document = {"a": [1, 2.5, "x", None], "b": {"c": True}}
    rngs = [Random(seed) for seed in range(200)]
    assert len({mutate_bytes(rng, png) for rng in rngs}) > 180
    assert len({mutate_png(rng, png) for rng in rngs}) > 150
    texts = {mutate_json(rng, document) for rng in rngs}
    assert len(texts) > 100
    assert sum(is_json(text) for text in texts) > 80
    text = "{% for a in b %}{{ a }}{% endfor %}"
    assert len({mutate_text(rng, text, [text], ["|", "x"]) for rng in rngs}) > 100
    assert document == {"a": [1, 2.5, "x", None], "b": {"c": True}}


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
