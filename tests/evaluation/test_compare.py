"""A report has the figures that whole logits give; what cannot be compared is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from quantized_checkpoint import write_quantized
from random_checkpoint import Size, write_checkpoint

from mlx_gemma4.api import load
from mlx_gemma4.errors import CheckpointError, InputError, MemoryLimitError
from mlx_gemma4.evaluation import compare as module
from mlx_gemma4.evaluation.compare import QualityReport, compare
from mlx_gemma4.evaluation.prompts import EvaluationPrompt, bundled_prompts, score_prompts
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.memory import MemoryLimit

DEMO = find_checkpoint("demo")
SMALL = Size(64, 128, 6, 2, 1, 32, 512, 32, 1280)
SOUND = np.sin(np.arange(3000, dtype=np.float32))
PROMPTS = (
    EvaluationPrompt("long", "Copy this: " + "seven green stones " * 4, answer="seven green"),
    EvaluationPrompt("document", "The sum of 47 and 38 is 85, and that of 19 and 23 is 42."),
    EvaluationPrompt("sound", "Which keys?", audio=(SOUND,), answer="three of them"),
    EvaluationPrompt(
        "picture",
        "Which shape?",
        images=(np.full((96, 96, 3), 90, np.uint8),),
        answer="a red square",
        image_tokens=70,
    ),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random checkpoint; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("compare") / "small", SMALL)


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


@pytest.fixture(scope="module")
def demo_q4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(DEMO, tmp_path_factory.mktemp("compare") / "q4", bits=4)


def change_weights(folder: Path, **changed: Any) -> None:
    path = str(folder / "model.safetensors")
    arrays = cast(dict[str, mx.array], mx.load(path))
    for name in list(arrays):
        for pattern, change in changed.items():
            if pattern in name:
                arrays[name] = change(arrays[name])
    mx.eval(arrays)
    mx.save_safetensors(path, {n: a for n, a in arrays.items() if a.size})


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


def expected_figures(subject: Path, reference: Path, prompts: Any) -> dict[str, float]:
    """Return what the models' whole logits give, written out."""
    judged, _ = load(subject, dtype="float32")
    model, processor = load(reference, dtype="float32")
    kl, same, losses = [], [], []
    for prompt in score_prompts(prompts, processor, 4096):
        p = log_softmax(np.array(model(prompt.inputs))[prompt.positions])
        q = log_softmax(np.array(judged(prompt.inputs))[prompt.positions])
        kl.append((np.exp(p) * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        rows = np.arange(len(p))
        losses.append(np.stack([-q[rows, prompt.targets], -p[rows, prompt.targets]]))
    joined, loss = np.concatenate(kl), np.concatenate(losses, axis=1)
    return {
        "positions": len(joined),
        "mean_kl": joined.mean(),
        "kl_999": np.quantile(joined, 0.999),
        "max_kl": joined.max(),
        "top1_agreement": np.concatenate(same).mean(),
        "perplexity": np.exp(loss[0].mean()),
        "reference_perplexity": np.exp(loss[1].mean()),
    }


@pytest.fixture(scope="module")
def report_q4(demo_q4: Path) -> QualityReport:
    return compare(demo_q4, DEMO, PROMPTS)


@pytest.mark.parametrize("kind", ["all", "text", "image", "audio"])
def test_figures_are_those_of_whole_logits(
    demo_q4: Path, report_q4: QualityReport, kind: str
) -> None:
    chosen = [prompt for prompt in PROMPTS if kind in ("all", prompt.kind)]
    found = vars(report_q4.kinds[kind])
    expected = expected_figures(demo_q4, DEMO, chosen) | {"prompts": len(chosen)}
    assert found == pytest.approx(expected, rel=1e-3)
    assert 1e-6 < found["mean_kl"] < found["kl_999"] <= found["max_kl"]


def test_a_checkpoint_is_itself_exactly() -> None:
    report = compare(DEMO, DEMO, PROMPTS)
    for quality in report.kinds.values():
        assert (quality.mean_kl, quality.max_kl, quality.top1_agreement) == (0, 0, 1)
        assert quality.perplexity == quality.reference_perplexity > 1


def test_eight_bits_differ_less_than_four(report_q4: QualityReport, tmp_path: Path) -> None:
    eight = compare(write_quantized(DEMO, tmp_path / "q8", bits=8), DEMO, PROMPTS).kinds["all"]
    four = report_q4.kinds["all"]
    assert 0 < eight.mean_kl < four.mean_kl / 20
    assert eight.max_kl < four.max_kl
    assert four.top1_agreement <= eight.top1_agreement


def test_the_report_as_json(small: Path) -> None:
    report = compare(small, small, PROMPTS)
    document = json.loads(json.dumps(report.to_dict(with_prompts=True)))
    assert document["prompts"] == 4
    assert list(document["kinds"]) == ["text", "image", "audio", "all"]
    assert set(document["by_prompt"]) == {prompt.name for prompt in PROMPTS}
    assert set(document["kinds"]["all"]) == {
        "prompts",
        "positions",
        "mean_kl",
        "kl_999",
        "max_kl",
        "top1_agreement",
        "perplexity",
        "reference_perplexity",
    }
    assert "by_prompt" not in report.to_dict()
    assert str(small) not in json.dumps(document)
    parts = document["by_prompt"].values()
    assert sum(p["positions"] for p in parts) == document["kinds"]["all"]["positions"]


def test_progress_counts_to_the_end(small: Path) -> None:
    calls: list[tuple[int, int]] = []
    compare(small, small, PROMPTS, progress=lambda *call: calls.append(call))
    totals = {total for _, total in calls}
    assert len(totals) == 1
    assert [done for done, _ in calls] == list(range(1, totals.pop() + 1))


def test_blocks_change_nothing(demo_q4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(demo_q4, DEMO, PROMPTS[1:2]).kinds["all"]
    monkeypatch.setattr(module, "_HEAD_BLOCK_BYTES", 192 * 4 * 100)
    monkeypatch.setattr(module, "_POSITION_BLOCK", 7)
    blocks = compare(demo_q4, DEMO, PROMPTS[1:2]).kinds["all"]
    assert vars(blocks) == pytest.approx(vars(whole), rel=1e-5)


def test_checkpoints_of_another_shape_may_be_compared(small: Path, tmp_path: Path) -> None:
    wider = write_checkpoint(tmp_path / "wider", replace(SMALL, hidden_size=128))
    report = compare(wider, small, PROMPTS)
    assert report.kinds["all"].mean_kl > 0.1


def test_a_vocabulary_of_another_size_is_refused(small: Path) -> None:
    with pytest.raises(CheckpointError, match=r"1,280 tokens, .*demo one of 1,024; only"):
        compare(small, DEMO, PROMPTS)


def test_a_vocabulary_with_other_tokens_is_refused(small: Path, copy: Path) -> None:
    path = copy / "tokenizer.json"
    form = json.loads(path.read_text(encoding="utf-8"))
    by_id = {token_id: token for token, token_id in form["model"]["vocab"].items()}
    form["model"]["vocab"] |= {by_id[900]: 901, by_id[901]: 900}
    path.write_text(json.dumps(form), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"copy/tokenizer.json has another .* id 900 is"):
        compare(copy, small, PROMPTS)


def test_a_tokenizer_file_may_be_written_in_another_way(small: Path, copy: Path) -> None:
    path = copy / "tokenizer.json"
    form = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(form, indent=1, sort_keys=True), encoding="utf-8")
    assert path.read_bytes() != (small / "tokenizer.json").read_bytes()
    assert compare(copy, small, PROMPTS).kinds["all"].max_kl == 0


def without_sound(folder: Path) -> Path:
    change_weights(folder, embed_audio=lambda array: mx.zeros((0,)))
    return folder


@pytest.mark.parametrize("is_subject", [True, False])
def test_what_one_of_them_cannot_hear_is_left_out_with_a_note(
    small: Path, copy: Path, is_subject: bool
) -> None:
    pair = (without_sound(copy), small)
    subject, reference = pair if is_subject else pair[::-1]
    report = compare(subject, reference, PROMPTS)
    assert list(report.kinds) == ["text", "image", "all"]
    assert report.kinds["all"].prompts == 3
    (note,) = report.notes
    name = "judged" if is_subject else "reference"
    assert note == (
        f"1 of 4 prompts were left out, those with audio: the {name} checkpoint has no audio front "
        "end"
    )
    assert report.to_dict()["notes"] == [note]


def test_no_prompt_left_is_an_error(small: Path, copy: Path) -> None:
    with pytest.raises(InputError, match=r"no prompt to compare with .*no audio front end"):
        compare(without_sound(copy), small, PROMPTS[2:3])


def test_values_that_are_not_finite_are_named(small: Path, copy: Path) -> None:
    def break_one(array: mx.array) -> mx.array:
        array[0] = mx.nan
        return array

    change_weights(copy, **{"layers.3.input_layernorm": break_one})
    with pytest.raises(
        CheckpointError, match=r"copy computes values that are not finite at \d+ of"
    ):
        compare(copy, small, PROMPTS)


def test_prompts_that_do_not_fit_into_memory_are_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = MemoryLimit(610_000_000, "this machine can hold")
    monkeypatch.setattr(module, "machine_limit", lambda: limit)
    assert isinstance(compare(small, small, PROMPTS), QualityReport)
    monkeypatch.setattr(module, "machine_limit", lambda: replace(limit, limit_bytes=600_000_000))
    with pytest.raises(MemoryLimitError, match=r"a layer and \d+ positions; .* 600\.0 MB; give"):
        compare(small, small, PROMPTS)


def test_a_prompt_of_each_kind_of_the_bundled_set(small: Path) -> None:
    chosen = {(p.kind, p.name.split()[1]): p for p in bundled_prompts("report")}
    kinds = ("text", "image", "audio")
    few = [next(p for (kind, _), p in chosen.items() if kind == wanted) for wanted in kinds]
    report = compare(small, small, few)
    assert [report.kinds[kind].prompts for kind in kinds] == [1, 1, 1]
