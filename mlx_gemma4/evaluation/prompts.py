"""Prompts with fixed answers, on which next-token distributions are compared.

The bundled set has two disjoint parts: what learned quantization may see, and what quality is
measured on.  Its texts are in ten scripts, its pictures are drawn, its sounds synthesized; nothing
is downloaded, and the same is made every time.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.processing.source import open_source

Part = Literal["calibration", "report"]

MAX_FILE_BYTES = 64 << 20
MAX_PROMPTS = 10_000
# Bundled pictures are drawn to this budget: larger ones would cost more than they tell.
IMAGE_TOKENS = 70
_VARIANTS = 2  # of each kind of picture and sound
_KEYS = ("text", "images", "audio", "answer")
_SEEDS: Mapping[Part, int] = {"calibration": 1, "report": 2}


@dataclass(frozen=True)
class EvaluationPrompt:
    """What is said to the model, and what it answers.

    Attributes:
        name: What messages call it.
        text: What the user says.
        images: Each what `Processor` takes.
        audio: Each what `Processor` takes.
        answer: Its tokens are scored, given all before them.  None takes the text as a document of
            its own: no chat template, and every token of text in it is scored.
        image_tokens: Soft tokens that a picture may take; None is the checkpoint's default.
    """

    name: str
    text: str
    images: tuple[Any, ...] = ()
    audio: tuple[Any, ...] = ()
    answer: str | None = None
    image_tokens: int | None = None

    @property
    def kind(self) -> str:
        """What reports are divided by: "text", "image", "audio", or "image and audio"."""
        media = ["image"] * bool(self.images) + ["audio"] * bool(self.audio)
        return " and ".join(media) or "text"


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt as the model takes it, answer included.

    Attributes:
        name: What messages call it.
        kind: Of the prompt.
        inputs: L positions.
        positions: [N] int64, ascending: where the prediction of the next token is compared.
            Neither they nor the tokens after them are soft tokens.
    """

    name: str
    kind: str
    inputs: ModelInputs
    positions: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """The next tokens, [N] int32."""
        return self.inputs.input_ids[self.positions + 1]


def bundled_prompts(part: Part) -> tuple[EvaluationPrompt, ...]:
    """Return the prompts of one part of the bundled set, the same every time.

    Raises:
        OptionError: There is no such part.
    """
    if part not in get_args(Part):
        raise OptionError(f"there is no part {part!r}; allowed are {', '.join(get_args(Part))}")
    return _bundled(part)


@cache
def _bundled(part: Part) -> tuple[EvaluationPrompt, ...]:
    from mlx_gemma4.evaluation.pictures import DRAWERS
    from mlx_gemma4.evaluation.sounds import PLAYERS

    def generator(name: str, variant: int) -> np.random.Generator:
        return np.random.default_rng([_SEEDS[part], variant, *name.encode()])

    content = resources.files("mlx_gemma4.evaluation").joinpath("texts.toml").read_text("utf-8")
    prompts = [
        EvaluationPrompt(f"text {entry['name']}", entry["text"], answer=entry["answer"])
        for entry in tomllib.loads(content)["texts"]
        if entry["part"] == part
    ]
    for variant in range(1, _VARIANTS + 1):
        for name, draw in DRAWERS.items():
            image, text, answer = draw(generator(name, variant))
            label = f"image {name} {variant}"
            prompts.append(
                EvaluationPrompt(
                    label, text, images=(image,), answer=answer, image_tokens=IMAGE_TOKENS
                )
            )
    for variant in range(1, _VARIANTS + 1):
        for name, play in PLAYERS.items():
            samples, text, answer = play(generator(name, variant))
            label = f"audio {name} {variant}"
            prompts.append(EvaluationPrompt(label, text, audio=(samples,), answer=answer))
    return tuple(prompts)


def read_prompts(path: str | Path) -> tuple[EvaluationPrompt, ...]:
    """Read prompts from a file with one JSON object a line.

    A line has "text", and may have "images" and "audio" (a path or a list of paths, relative to the
    file) and "answer": see `EvaluationPrompt`.  Empty lines are skipped.

    Raises:
        InputError: The file or a medium is missing, too large, or a line is not as described; the
            line is named.
    """
    path = Path(path).expanduser()
    prompts: list[EvaluationPrompt] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        if len(prompts) == MAX_PROMPTS:
            raise InputError(
                f"{path} has more than {MAX_PROMPTS:,} prompts; split it into several files"
            )
        prompts.append(_read_line(line, f"{path.name}, line {number}", path.parent))
    if not prompts:
        raise InputError(f"{path} has no prompts; write one JSON object a line, with {_KEYS[0]}")
    return tuple(prompts)


def _read_text(path: Path) -> str:
    advice = "give a file with one JSON object a line"
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path} is not a file; {advice}")
        if size > MAX_FILE_BYTES:
            raise InputError(
                f"{path} has {size:,} bytes; allowed are {MAX_FILE_BYTES:,}; {advice}, and media "
                "as paths"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} at position "
            f"{error.start}); save it as UTF-8"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {str(path)[:200]!r}: {reason}; {advice}") from None


def _read_line(line: str, where: str, folder: Path) -> EvaluationPrompt:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); write one object a line") from None
    if not isinstance(entry, dict):
        raise InputError(
            f"{where} is a {type(entry).__name__}; write an object with {', '.join(_KEYS)}"
        )
    if unknown := [key for key in entry if key not in _KEYS]:
        raise InputError(
            f"{where} has an unknown key, {unknown[0][:80]!r}; allowed are {', '.join(_KEYS)}"
        )
    text, answer = entry.get("text", ""), entry.get("answer")
    for key, value in (("text", text), ("answer", "" if answer is None else answer)):
        if not isinstance(value, str):
            raise InputError(f"{where}: {key} is {_shown(value)}; it must be a string")
    images = _read_media(entry.get("images"), "images", where, folder)
    audio = _read_media(entry.get("audio"), "audio", where, folder)
    if not text.strip() and not images and not audio:
        raise InputError(f"{where} is empty; give it a text, or media and an answer")
    if answer is not None and not answer.strip():
        raise InputError(f"{where}: the answer is empty; write one, or leave the key out")
    return EvaluationPrompt(where, text, images, audio, answer)


def _read_media(value: Any, key: str, where: str, folder: Path) -> tuple[Path, ...]:
    """Return the paths of media, which are looked for before anything slow."""
    value = [] if value is None else value
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: {key} is {_shown(value)}; it must be a path or a list of paths")
    paths = tuple(folder / Path(item).expanduser() for item in value)
    medium = "image" if key == "images" else "sound"
    for path in paths:
        try:
            open_source(path, medium, "a path", f"the {medium}")
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return paths


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def score_prompts(
    prompts: Sequence[EvaluationPrompt], processor: Processor, max_positions: int
) -> list[ScoredPrompt]:
    """Return the prompts as the model takes them, each with its answer behind it.

    Args:
        prompts: Of kinds for which the processor has front ends.
        processor: Of the checkpoint; without a chat template the answer follows on a new line.
        max_positions: Of one prompt: the model's context.

    Raises:
        InputError: A prompt cannot be honoured, is too long, or has no token to score.
    """
    scored: list[ScoredPrompt] = []
    for prompt in prompts:
        try:
            inputs, positions = _with_answer(prompt, processor)
        except InputError as error:
            raise InputError(f"{prompt.name}: {error}") from None
        if len(inputs) > max_positions:
            raise InputError(
                f"{prompt.name}: {len(inputs):,} tokens with the answer; the model's context is "
                f"{max_positions:,}; shorten it"
            )
        if not len(positions):
            raise InputError(f"{prompt.name}: there is no token to score; write more text")
        scored.append(ScoredPrompt(prompt.name, prompt.kind, inputs, positions))
    return scored


def _with_answer(prompt: EvaluationPrompt, processor: Processor) -> tuple[ModelInputs, np.ndarray]:
    tokenizer = processor.tokenizer
    is_raw = prompt.answer is None or processor.chat_template is None
    inputs = processor(
        prompt.text,
        images=prompt.images,
        audio=prompt.audio,
        image_tokens=prompt.image_tokens,
        ignore_chat_template=is_raw,
    )
    if prompt.answer is None:
        return inputs, _text_positions(inputs)
    ids = tokenizer.encode("\n" + prompt.answer if is_raw else prompt.answer)
    for modality in ("image", "audio", "video"):
        if tokenizer.token_to_id(token := tokenizer.special_tokens[f"{modality}_token"]) in ids:
            raise InputError(f"the answer has a place for a medium, {token}; take it out")
    if not is_raw:  # that the answer ends here is part of it
        ids.append(tokenizer.special_id("eot_token"))
    start, count = len(inputs), len(ids)
    joined = np.concatenate([inputs.input_ids, np.array(ids, np.int32)])
    return replace(inputs, input_ids=joined), np.arange(start - 1, start + count - 1)


def _text_positions(inputs: ModelInputs) -> np.ndarray:
    """Return the positions that are text and are followed by text."""
    is_soft = np.zeros(len(inputs), np.bool_)
    for span in inputs.spans:
        is_soft[span.start : span.stop] = True
    return np.flatnonzero(~is_soft[:-1] & ~is_soft[1:])
