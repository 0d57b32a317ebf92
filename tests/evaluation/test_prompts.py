"""The bundled set, files of prompts, and which tokens are scored."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.config import Config
from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.evaluation import prompts
from mlx_gemma4.evaluation.prompts import (
    EvaluationPrompt,
    ScoredPrompt,
    bundled_prompts,
    read_prompts,
    score_prompts,
)
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.processing.processor import Processor

PARTS: tuple[prompts.Part, ...] = ("calibration", "report")
SCRIPTS = (
    "LATIN",
    "CYRILLIC",
    "GREEK",
    "ARABIC",
    "HEBREW",
    "DEVANAGARI",
    "THAI",
    "CJK",
    "HIRAGANA",
    "HANGUL",
)


@pytest.fixture(scope="module")
def processor() -> Processor:
    folder = find_checkpoint("demo")
    return Processor.from_folder(folder, Config.from_folder(folder))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    """Return the processor of a checkpoint without a chat template."""
    folder = tmp_path_factory.mktemp("prompts") / "base"
    size = Size(64, 128, 6, 2, 1, 64, 512, 32, 1024)
    write_checkpoint(folder, size, has_tokenizer=False)
    write_tiny_checkpoint(folder, template=None)
    return Processor.from_folder(folder, Config.from_folder(folder))


def score(processor: Processor, *given: EvaluationPrompt, limit: int = 4096) -> list[ScoredPrompt]:
    return score_prompts(given, processor, limit)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_in_ten_scripts(part: prompts.Part) -> None:
    letters = {character for p in bundled_prompts(part) for character in p.answer or ""}
    names = {unicodedata.name(letter, "").split()[0] for letter in letters if letter.isalpha()}
    assert set(SCRIPTS) <= names


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_texts_pictures_and_sounds(part: prompts.Part) -> None:
    found = bundled_prompts(part)
    kinds = [prompt.kind for prompt in found]
    assert (kinds.count("text"), kinds.count("image"), kinds.count("audio")) == (18, 12, 12)
    assert len({prompt.name for prompt in found}) == len(found)
    names = " ".join(prompt.name for prompt in found)
    assert all(word in names for word in ("code", "numbers", "markup", "reasoning"))


def test_the_parts_share_nothing() -> None:
    def content(prompt: EvaluationPrompt) -> set[Any]:
        if prompt.kind == "text":
            return {prompt.text, prompt.answer}
        media = [*prompt.images, *prompt.audio]
        return {medium.tobytes() for medium in media}

    one, other = (set().union(*map(content, bundled_prompts(part))) for part in PARTS)
    assert len(one) == len(other) == 2 * 18 + 24
    assert not one & other


def test_there_is_no_third_part() -> None:
    with pytest.raises(OptionError, match="allowed are calibration, report"):
        bundled_prompts("test")  # pyright: ignore[reportArgumentType]


@pytest.mark.google_files
def test_a_part_costs_what_the_docstrings_say(google_checkpoint: Path) -> None:
    processor = Processor.from_folder(google_checkpoint, Config.from_folder(google_checkpoint))
    for part in PARTS:
        scored = score(processor, *bundled_prompts(part))
        lengths = [len(prompt.inputs) for prompt in scored]
        assert max(lengths) < 300
        # 15 KiB a position: LayerwiseRun says about 90 MB.
        assert 75e6 < sum(lengths) * 4 * 3840 < 105e6
        # Enough for 99.9 % to be more than the largest of a few hundred.
        assert sum(len(prompt.positions) for prompt in scored) > 2500


def test_an_answer_is_scored_to_the_end_of_the_turn(processor: Processor) -> None:
    (found,) = score(processor, EvaluationPrompt("p", "How many?", answer="three red"))
    tokenizer = processor.tokenizer
    turn_end = tokenizer.special_id("eot_token")
    assert found.targets.tolist() == [*tokenizer.encode("three red"), turn_end]
    prompt = processor("How many?").input_ids
    assert found.inputs.input_ids.tolist() == [*prompt.tolist(), *found.targets.tolist()]
    assert found.positions.tolist() == list(range(len(prompt) - 1, len(found.inputs) - 1))


def test_a_text_without_an_answer_is_scored_whole(processor: Processor) -> None:
    (found,) = score(processor, EvaluationPrompt("p", "one two three"))
    tokenizer = processor.tokenizer
    assert found.inputs.input_ids.tolist() == tokenizer.encode("one two three", add_bos=True)
    assert found.targets.tolist() == tokenizer.encode("one two three")


def test_a_model_without_template_reads_the_answer_on_a_new_line(base: Processor) -> None:
    (found,) = score(base, EvaluationPrompt("p", "hi", answer="thought"))
    assert found.inputs.input_ids.tolist() == base.tokenizer.encode("hi\nthought", add_bos=True)
    assert found.targets.tolist() == base.tokenizer.encode("\nthought")


@pytest.mark.parametrize("answer", [None, "a circle"])
def test_soft_tokens_are_never_scored(processor: Processor, answer: str | None) -> None:
    picture = np.full((96, 96, 3), 200, np.uint8)
    sound = np.sin(np.arange(4000, dtype=np.float32))
    prompt = EvaluationPrompt("p", "What <|image|> is <|audio|> it?", (picture,), (sound,), answer)
    (found,) = score(processor, prompt)
    assert found.kind == "image and audio"
    soft = np.concatenate([np.arange(s.start, s.stop) for s in found.inputs.spans])
    assert len(soft) > 15
    assert not np.isin(found.positions, soft).any()
    assert not np.isin(found.positions + 1, soft).any()
    if answer is None:  # all other pairs of neighbours are
        is_soft = np.isin(np.arange(len(found.inputs)), soft)
        assert len(found.positions) == np.count_nonzero(~is_soft[1:] & ~is_soft[:-1])


@pytest.mark.parametrize(
    ("prompt", "limit", "says"),
    [
        (EvaluationPrompt("p", "hi", answer="a <|image|>"), 99, "p: the answer has a place for"),
        (EvaluationPrompt("p", "hi " * 200), 99, "p: .* tokens with the answer; .* context is 99"),
        (EvaluationPrompt("p", "hi", images=(np.zeros((9, 9)),), answer="a"), 99, "^p: "),
        (EvaluationPrompt("p", "<bos>"), 99, "p: there is no token to score"),
    ],
)
def test_what_cannot_be_scored_is_named(
    processor: Processor, prompt: EvaluationPrompt, limit: int, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        score(processor, prompt, limit=limit)


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_prompts(tmp_path: Path, processor: Processor) -> None:
    (tmp_path / "media").mkdir()
    Image.new("RGB", (96, 96), "red").save(tmp_path / "media" / "red.png")
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(4000)) / 2, 16000)
    path = write(
        tmp_path,
        {"text": "Wie heißt es?", "answer": "schön\nund gut"},
        "",
        {"text": "What is it?", "images": ["media/red.png"], "audio": None, "answer": "red"},
        {"text": "Both?", "images": "media/red.png", "audio": ["tone.wav"]},
    )
    found = read_prompts(path)
    assert [prompt.kind for prompt in found] == ["text", "image", "image and audio"]
    assert [prompt.name.rpartition(", ")[2] for prompt in found] == ["line 1", "line 3", "line 4"]
    assert (found[0].text, found[0].answer) == ("Wie heißt es?", "schön\nund gut")
    assert found[2].answer is None
    assert found[1].images == (tmp_path / "media" / "red.png",)
    assert len(score(processor, *found)) == 3


def test_a_byte_order_mark_is_no_character_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "hi"}\r\n{"text": "ho"}\r\n')
    assert [prompt.text for prompt in read_prompts(path)] == ["hi", "ho"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('["hi"]', "line 2 is a list; write an object with text, images, audio, answer"),
        ({"prompt": "hi"}, "line 2 has an unknown key, 'prompt'; allowed are text, images"),
        ({"text": 7}, "line 2: text is 7; it must be a string"),
        ({"text": "hi", "answer": ["x"]}, "line 2: answer is .*; it must be a string"),
        ({"text": "hi", "answer": " "}, "line 2: the answer is empty"),
        ({"text": " "}, "line 2 is empty"),
        ({"text": "hi", "images": {"path": "x"}}, "line 2: images is .* a path or a list of paths"),
        ({"text": "hi", "audio": [3]}, "line 2: audio is .* a path or a list of paths"),
        ({"text": "hi", "images": ["no.png"]}, "line 2: no such file: .*no.png"),
        ({"text": "hi", "audio": ["."]}, "line 2: .* is a folder"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_prompts(write(tmp_path, {"text": "fine"}, line))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n\n", "has no prompts; write one JSON object a line"),
        (b'{"text": "\xff"}', "is not UTF-8 text .byte 0xff at position 10.; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_file_of_prompts(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "says"), [("no", "cannot read .*No such file"), (".", "not a file"), ("\0", "cannot")]
)
def test_a_path_to_nothing(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_prompts(tmp_path / name)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"text": "one"}, {"text": "two"}, {"text": "three"})
    monkeypatch.setattr(prompts, "MAX_PROMPTS", 3)
    assert len(read_prompts(path)) == 3
    monkeypatch.setattr(prompts, "MAX_PROMPTS", 2)
    with pytest.raises(InputError, match="more than 2 prompts; split it"):
        read_prompts(path)
    monkeypatch.setattr(prompts, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="allowed are 10"):
        read_prompts(path)
