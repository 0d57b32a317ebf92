"""What a command line says to the model: prompt, media, conversation, and tools, read and checked.

Everything is checked that can be before a model is looked for: files are there, standard input is
text, numbers are allowed.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mlx_gemma4.cli.terminal import say
from mlx_gemma4.errors import InputError
from mlx_gemma4.messages import (
    MEDIA_KINDS,
    MediaPart,
    Message,
    Part,
    TextPart,
    parse_messages,
    parse_tools,
)

if TYPE_CHECKING:
    from mlx_gemma4.processing.processor import PreparedPrompt, Processor

STDIN = "-"
MAX_JSON_BYTES = 256 << 20  # of --messages and --tools; media may stand in them as base64
_MEDIUM_NAMES = {"image": "image", "audio": "sound", "video": "video"}  # as messages call files


class PromptSettings(TypedDict):
    """How the processor is to take a prompt: its own options, under its own names."""

    thinking: bool
    image_tokens: Any
    num_frames: int | None
    video_sound: bool
    ignore_chat_template: bool


@dataclass(frozen=True)
class PromptRequest:
    """A prompt as the command line gave it.

    Attributes:
        text: What the user says; "" if media alone.
        media: Pictures, sounds, and clips in the order in which they were given.
        earlier: Messages before the prompt.
        tools: Functions that the model may call.
        settings: How to prepare it.
    """

    text: str
    media: tuple[MediaPart, ...]
    earlier: tuple[Message, ...]
    tools: Sequence[dict[str, Any]]
    settings: PromptSettings

    @classmethod
    def read(
        cls,
        prompt: str | None,
        media: tuple[MediaPart, ...],
        *,
        system: str | None,
        messages: str | None,
        tools: str | None,
        settings: PromptSettings,
    ) -> "PromptRequest":
        """Read what the options name, standard input last.

        Raises:
            InputError: A file is missing or not what it should be, or nothing was said.
        """
        if prompt is None and not media and messages is None:
            raise InputError(
                f"there is no prompt; write one, or {STDIN} to read it from standard input"
            )
        _check_files(media)
        earlier = () if system is None else (Message("system", system),)
        if messages is not None:
            earlier += parse_messages(_read_json_list(messages, "messages"))
        read_tools = [] if tools is None else parse_tools(_read_json_list(tools, "tools"))
        text = _read_stdin() if prompt == STDIN else prompt or ""
        if not text.strip() and not media and messages is None:
            raise InputError("the prompt is empty; say something, or give a medium")
        return cls(text, media, earlier, read_tools, settings)

    def prepare(self, processor: "Processor") -> "PreparedPrompt":
        """Return the model's inputs and what they are made of.

        Raises:
            InputError: A medium cannot be read, or the prompt cannot be honoured.
        """
        from mlx_gemma4.processing.prompt import find_placeholders

        # A medium for which the text keeps a place goes there; the rest stand around the text,
        # where the processor would put them too, but in the order of the command line.
        awaited = {modality for modality, _ in find_placeholders(self.text, processor.tokenizer)}
        free = [part for part in self.media if part.kind not in awaited]
        placed = {
            kind: [part.source for part in self.media if part.kind == kind and kind in awaited]
            for kind in MEDIA_KINDS
        }
        parts: list[Part] = [part for part in free if part.kind != "audio"]
        parts += [TextPart(self.text)] if self.text else []
        parts += [part for part in free if part.kind == "audio"]
        conversation = self.earlier
        if parts:
            conversation += (Message("user", tuple(parts) if free else self.text),)
        return processor.prepare(
            conversation,
            images=placed["image"],
            audio=placed["audio"],
            videos=placed["video"],
            tools=self.tools,
            **self.settings,
        )


def _check_files(media: Sequence[MediaPart]) -> None:
    """Look whether the files of all media are there, before anything slow."""
    from mlx_gemma4.processing.source import open_source

    for part in media:
        medium = _MEDIUM_NAMES[part.kind]
        open_source(part.source, medium, "a path", f"the {medium}")


def _read_stdin() -> str:
    """Return standard input, without the line end that `echo` adds."""
    if sys.stdin is None:
        raise InputError("standard input is closed; write the prompt as an argument")
    if sys.stdin.isatty():
        say("type the prompt, and end it with Ctrl-D on a line of its own")
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(
            f"cannot read the prompt from standard input: {error.strerror}; write it as an argument"
        ) from None
    try:
        return content.decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 text (byte {content[error.start]:#04x} at position "
            f"{error.start}); convert it to UTF-8, and give media by --image, --audio, or --video"
        ) from None


def _read_json_list(path: str, what: str) -> list[Any]:
    """Return the list in a JSON file; it may also stand under the name of what it holds."""
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)  # a pipe does not tell its size
        if len(content) > MAX_JSON_BYTES:
            raise InputError(
                f"{path} has more than {MAX_JSON_BYTES:,} bytes; give media as paths, not as base64"
            )
        document = json.loads(content)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); give a list of {what}") from None
    if isinstance(document, dict):
        document = document.get(what)
    if not isinstance(document, list):
        raise InputError(f"{path} holds no list of {what}; give a JSON list")
    return document
