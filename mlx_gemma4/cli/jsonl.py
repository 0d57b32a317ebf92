"""Prompts in a file, a JSON object a line, read and checked one at a time."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlx_gemma4.errors import Gemma4Error, InputError
from mlx_gemma4.messages import (
    MediaPart,
    Message,
    parse_messages,
    parse_tools,
    resolve_source,
)

MAX_LINE_BYTES = 64 << 20  # media may stand in a line as base64

_NUMBER = (int, float)
# What a line may say besides "id", and of which types; the names are those of `generate`.
_PROMPT: Mapping[str, type | tuple[type, ...]] = {
    "prompt": str,
    "messages": list,
    "system": str,
    "images": (str, list),
    "audio": (str, list),
    "videos": (str, list),
    "tools": list,
}
_PROCESSING: Mapping[str, type | tuple[type, ...]] = {
    "thinking": bool,
    "image_tokens": (int, str),
    "num_frames": int,
    "video_sound": bool,
    "ignore_chat_template": bool,
}
_SAMPLING: Mapping[str, type | tuple[type, ...]] = {
    "temp": _NUMBER,
    "top_p": _NUMBER,
    "top_k": int,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "seed": int,
}
_TYPES = {
    "id": (str, int),
    **_PROMPT,
    **_PROCESSING,
    **_SAMPLING,
    "max_tokens": int,
    "stop": (str, list),
}
_TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}


@dataclass(frozen=True)
class PromptLine:
    """A line that asks for an answer.

    Attributes:
        number: Of the line, from 1.
        id: What the answer will be known by.
        fingerprint: Of everything that the answer depends on.
        messages: The conversation.
        processing: Options of the processor, media included.
        sampling: Options of sampling.
        max_tokens: -1 goes on to the end of the context.
        stop: Texts that end the answer.
    """

    number: int
    id: str | int
    fingerprint: str
    messages: tuple[Message, ...]
    processing: dict[str, Any]
    sampling: dict[str, Any]
    max_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be honoured, and why."""

    number: int
    error: str


class PromptFile:
    """Lines of a file, read anew each time; blank ones are left out.

    Args:
        path: Of the file; media are found from its folder.
        defaults: What every line says that does not say otherwise, under the names of a line.
        circumstances: What else an answer depends on, such as the model's name.

    Raises:
        InputError: There is no such file.
    """

    def __init__(
        self, path: Path, defaults: Mapping[str, Any], circumstances: Mapping[str, Any]
    ) -> None:
        self.path = path
        self._defaults = {key: value for key, value in defaults.items() if value is not None}
        self._circumstances = dict(circumstances)
        with self._open():
            pass

    def __iter__(self) -> Iterator[PromptLine | BadLine]:
        """Yield each line as what it asks for, or as what is wrong with it."""
        numbers: dict[str | int, int] = {}  # of lines, by their ids
        with self._open() as file:
            for number, content in enumerate(_read_lines(file), 1):
                if not content.strip():
                    continue
                try:
                    line = self._parse(number, content)
                    if (first := numbers.setdefault(line.id, number)) != number:
                        raise InputError(f"its id is that of line {first}; give it one of its own")
                except Gemma4Error as error:
                    yield BadLine(number, str(error))
                else:
                    yield line

    def _open(self) -> BinaryIO:
        advice = "give a file with one JSON object a line"
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path} is not a file; {advice}")
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}; {advice}") from None

    def _parse(self, number: int, content: bytes) -> PromptLine:
        entry = _read_object(content)
        for key, value in entry.items():
            _check_type(key, value)
        if entry.get("id") in (None, ""):
            raise InputError('it has no "id"; give each line one, by which its answer is known')
        given = self._defaults | {k: v for k, v in entry.items() if v is not None}
        processing = {key: given[key] for key in _PROCESSING if key in given}
        for key in ("images", "audio", "videos"):
            if key in given:
                processing[key] = self._sources(given[key], key)
        if "tools" in given:
            processing["tools"] = parse_tools(given["tools"])
        sampling = {key: given[key] for key in _SAMPLING if key in given}
        stop = given.get("stop", [])
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        max_tokens = given.get("max_tokens", -1)
        _check_options(sampling, stop, max_tokens)
        return PromptLine(
            number=number,
            id=entry["id"],
            fingerprint=self._fingerprint(given),
            messages=self._messages(given),
            processing=processing,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
        )

    def _fingerprint(self, given: Mapping[str, Any]) -> str:
        text = json.dumps([given, self._circumstances], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _messages(self, given: Mapping[str, Any]) -> tuple[Message, ...]:
        if ("prompt" in given) is ("messages" in given):
            raise InputError('give it either "prompt", a text, or "messages", a list')
        messages = parse_messages(given.get("prompt", given.get("messages")))
        system = (Message("system", given["system"]),) if "system" in given else ()
        return (*system, *(self._with_paths(message) for message in messages))

    def _with_paths(self, message: Message) -> Message:
        if not isinstance(message.content, tuple):
            return message
        parts = (
            dataclasses.replace(part, source=self._path(part.source))
            if isinstance(part, MediaPart)
            else part
            for part in message.content
        )
        return dataclasses.replace(message, content=tuple(parts))

    def _sources(self, value: str | list[Any], key: str) -> list[Any]:
        sources = [value] if isinstance(value, str) else value
        for source in sources:
            if not isinstance(source, str):
                raise InputError(f'"{key}" holds a {type(source).__name__}; allowed are paths')
        return [self._path(resolve_source(source, key)) for source in sources]

    def _path(self, source: Any) -> Any:
        """Return a medium's source, found from the folder of the file if it is a path."""
        if not isinstance(source, str | Path):
            return source
        return self.path.parent / Path(source).expanduser()


def _read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long no more than shows that it is."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line


def _read_object(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_LINE_BYTES:
        raise InputError(f"it has more than {MAX_LINE_BYTES:,} bytes; give media as paths")
    try:
        entry = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({error}); write one object a line") from None
    if not isinstance(entry, dict):
        raise InputError(f"it is a {type(entry).__name__}; write a JSON object")
    return entry


def _check_type(key: str, value: Any) -> None:
    if key not in _TYPES:
        raise InputError(f"it has an unknown key, {key[:80]!r}; allowed are {', '.join(_TYPES)}")
    allowed = _TYPES[key] if isinstance(_TYPES[key], tuple) else (_TYPES[key],)
    if value is None or (
        isinstance(value, allowed) and (type(value) is not bool or bool in allowed)
    ):
        return
    names = " or ".join(_TYPE_NAMES[kind] for kind in allowed)
    raise InputError(f'its "{key}" is {json.dumps(value)[:80]}; allowed is {names}')


def _check_options(sampling: Mapping[str, Any], stop: tuple[Any, ...], max_tokens: int) -> None:
    """Raise the errors of wrong options before anything is read or loaded."""
    from mlx_gemma4.generation.sampling import make_logits_processors, make_sampler
    from mlx_gemma4.generation.stop import StopStrings

    if max_tokens < -1:
        raise InputError(f"max_tokens is {max_tokens}; allowed is 0 or more, or -1 for no limit")
    given = dict(sampling)
    make_logits_processors(repetition_penalty=given.pop("repetition_penalty", None))
    make_sampler(**given)
    if any(not isinstance(text, str) for text in stop):
        raise InputError('its "stop" holds what is no string; allowed are strings')
    StopStrings(stop)
