"""Message and its parts: what somebody said, neutral between command line, server, and template.

Takes what people already have: a string, dictionaries as transformers writes them, dictionaries
as OpenAI's API writes them.  Anything that would be dropped or misread is an `InputError` that
names the place, such as `messages[2].content[0].image_url`.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

from mlx_gemma4.errors import InputError

Role = Literal["system", "developer", "user", "assistant", "tool"]
MediaKind = Literal["image", "audio", "video"]  # the values of inputs.Modality

ROLES: tuple[str, ...] = get_args(Role)
MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
_MAX_DEPTH = 64  # of arguments and schemas; a template walks them recursively


@dataclass(frozen=True)
class TextPart:
    """Words inside a message."""

    text: str


@dataclass(frozen=True)
class MediaPart:
    """A picture, a sound, or a clip inside a message.

    Attributes:
        kind: Which of the three.
        source: A path, the bytes of a file, or what the loader of that medium takes (a Pillow
            image, an array); None where `images=`, `audio=`, or `videos=` brings it.
    """

    kind: MediaKind
    source: Any = None


@dataclass(frozen=True)
class ToolCall:
    """One function that the model asks to be run."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True)
class ToolResponse:
    """A function's answer that stands on the assistant's own message, as Google writes it."""

    name: str | None
    response: Any


Part = TextPart | MediaPart
Content = str | tuple[Part, ...] | None


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: A string, or parts in order.  The two are not the same to a chat template: it
            trims each text part.
        reasoning: What the assistant thought before it answered.
        tool_calls: What the assistant asked for.
        tool_responses: Answers that stand on the assistant's message itself.
        tool_call_id: In a tool's message, the `ToolCall.id` that it answers.
        name: In a tool's message, the function's name.
    """

    role: Role
    content: Content = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_responses: tuple[ToolResponse, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts, a string being one part."""
        if isinstance(self.content, str):
            return (TextPart(self.content),)
        return self.content or ()


def parse_messages(prompt: "str | Sequence[Message | Mapping[str, Any]]") -> tuple[Message, ...]:
    """Return the prompt as messages; a string is one message of the user.

    Raises:
        InputError: A message is empty, unknown, or holds something that would be lost.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if isinstance(prompt, Message | Mapping | bytes) or not isinstance(prompt, Sequence):
        raise InputError(
            f"the prompt is a {type(prompt).__name__}; allowed: a string or a list of messages"
        )
    if not prompt:
        raise InputError("the conversation is empty; give at least one message")
    return tuple(
        message if isinstance(message, Message) else _parse_message(message, f"messages[{index}]")
        for index, message in enumerate(prompt)
    )


def parse_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return tool declarations as chat templates read them: JSON schemas under "function".

    Raises:
        InputError: A tool has no name, or holds something that is not JSON.
    """
    parsed: list[dict[str, Any]] = []
    for index, tool in enumerate(_as_list(tools, "tools")):
        where = f"tools[{index}]"
        schema = _as_mapping(_as_json(tool, where), where)
        if "function" not in schema and "name" in schema:
            schema = {"type": "function", "function": schema}
        function = _as_mapping(schema.get("function"), f"{where}.function")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise InputError(f'{where}.function has no name; give it a "name" string')
        parsed.append(schema)
    return parsed


# Three programs, three names for the same text.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_MESSAGE_KEYS = (
    "role",
    "content",
    *_REASONING_KEYS,
    "tool_calls",
    "tool_responses",
    "tool_call_id",
    "name",
)


def _parse_message(value: Any, where: str) -> Message:
    message = _as_mapping(value, where)
    _refuse_unknown(message, _MESSAGE_KEYS, where)
    role = message.get("role")
    if role == "model":  # Gemma's own word for it
        role = "assistant"
    if role not in ROLES:
        raise InputError(f"{where}.role is {role!r}; allowed: {', '.join(ROLES)}")
    reasonings = {
        _as_text(message[key], f"{where}.{key}")
        for key in _REASONING_KEYS
        if message.get(key) is not None
    }
    if len(reasonings) > 1:
        raise InputError(f"{where} has two different reasoning texts; give only one")
    parsed = Message(
        role=role,
        content=_parse_content(message.get("content"), f"{where}.content"),
        reasoning=next(iter(reasonings), None),
        tool_calls=tuple(
            _parse_tool_call(call, f"{where}.tool_calls[{index}]")
            for index, call in enumerate(_as_list(message.get("tool_calls"), f"{where}.tool_calls"))
        ),
        tool_responses=tuple(
            _parse_tool_response(item, f"{where}.tool_responses[{index}]")
            for index, item in enumerate(
                _as_list(message.get("tool_responses"), f"{where}.tool_responses")
            )
        ),
        tool_call_id=_as_optional_text(message.get("tool_call_id"), f"{where}.tool_call_id"),
        name=_as_optional_text(message.get("name"), f"{where}.name"),
    )
    says_something = parsed.tool_calls or parsed.tool_responses or parsed.reasoning
    if parsed.content is None and not says_something:
        raise InputError(f"{where} has no content; give a string or a list of parts")
    return parsed


def _parse_content(value: Any, where: str) -> Content:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        raise InputError(
            f"{where} is an object; allowed: a string or a list of parts; write it as JSON text"
        )
    parts = _as_list(value, where)
    return tuple(_parse_part(part, f"{where}[{index}]") for index, part in enumerate(parts))


# Part type -> (kind, keys that may hold the source).
_MEDIA_PARTS: dict[str, tuple[MediaKind, tuple[str, ...]]] = {
    "image": ("image", ("image", "url", "path", "base64")),
    "image_url": ("image", ("image_url", "url")),
    "input_image": ("image", ("image_url",)),
    "audio": ("audio", ("audio", "url", "path", "base64")),
    "audio_url": ("audio", ("audio_url", "url")),
    "input_audio": ("audio", ("input_audio",)),
    "video": ("video", ("video", "url", "path", "base64")),
    "video_url": ("video", ("video_url", "url")),
}
_TEXT_PARTS = ("text", "input_text", "output_text")


def _parse_part(value: Any, where: str) -> Part:
    if isinstance(value, TextPart | MediaPart):
        return value
    if isinstance(value, str):
        return TextPart(value)
    part = _as_mapping(value, where)
    part_type = part.get("type")
    if part_type in _TEXT_PARTS:
        _refuse_unknown(part, ("type", "text"), where)
        return TextPart(_as_text(part.get("text"), f"{where}.text"))
    if not isinstance(part_type, str) or part_type not in _MEDIA_PARTS:
        allowed = ", ".join(("text", *_MEDIA_PARTS))
        raise InputError(f"{where}.type is {part_type!r}; allowed: {allowed}")
    kind, keys = _MEDIA_PARTS[part_type]
    _refuse_unknown(part, ("type", *keys), where)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"{where} names two sources ({', '.join(given)}); give one")
    if not given:
        return MediaPart(kind)
    return MediaPart(kind, _parse_source(part[given[0]], kind, given[0], f"{where}.{given[0]}"))


def _parse_source(value: Any, kind: MediaKind, key: str, where: str) -> Any:
    """Return a medium's source: base64 and data: URLs become bytes, the rest stays as it is."""
    if isinstance(value, Mapping):  # OpenAI: {"url": ...} or {"data": base64, "format": ...}
        _refuse_unknown(value, ("url", "data", "format"), where)
        if "data" in value:
            return _decode_base64(_as_text(value["data"], f"{where}.data"), f"{where}.data")
        return _parse_source(value.get("url"), kind, "url", f"{where}.url")
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        return _decode_base64(value, where)
    if value is None or (isinstance(value, str) and not value):
        raise InputError(f"{where} is empty; allowed: a path, a data: URL, or the {kind} itself")
    return resolve_source(value, where)


def resolve_source(source: Any, where: str) -> Any:
    """Return the source of a medium, data: URLs decoded and file: URLs as paths.

    Raises:
        InputError: It is a web address, which is never fetched, or a broken data: URL.
    """
    if not isinstance(source, str):
        return source
    if source.startswith("data:"):
        head, comma, body = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InputError(
                f"{where} is a data: URL without base64; allowed: data:<type>;base64,<text>"
            )
        return _decode_base64(body, where)
    if source.startswith(("http://", "https://")):
        raise InputError(
            f"{where} is a web address ({source[:60]}), which is not fetched; "
            "download it and give the file's path"
        )
    if source.startswith("file://"):
        return Path(unquote(source.removeprefix("file://")))
    return source


def _decode_base64(text: str, where: str) -> bytes:
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where} is not base64 ({error}); encode the file again") from None
    if not content:
        raise InputError(f"{where} is empty; encode the file again")
    return content


def _parse_tool_call(value: Any, where: str) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    call = _as_mapping(value, where)
    function = _as_mapping(call.get("function", call), f"{where}.function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI sends JSON text; templates want the object
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}.function.arguments is not JSON ({error}); give an object"
            ) from None
    where_arguments = f"{where}.function.arguments"
    return ToolCall(
        name=_as_text(function.get("name"), f"{where}.function.name"),
        arguments=_as_mapping(_as_json(arguments or {}, where_arguments), where_arguments),
        id=_as_optional_text(call.get("id"), f"{where}.id"),
    )


def _parse_tool_response(value: Any, where: str) -> ToolResponse:
    if isinstance(value, ToolResponse):
        return value
    response = _as_mapping(value, where)
    if "response" not in response:
        raise InputError(f'{where} has no "response"; give the function\'s answer')
    return ToolResponse(
        _as_optional_text(response.get("name"), f"{where}.name"),
        _as_json(response["response"], f"{where}.response"),
    )


def _refuse_unknown(value: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    """Raise for a key that would be ignored; empty ones, and OpenAI's default `detail`, may be."""
    for key, item in value.items():
        is_empty = item is None or (isinstance(item, str | list | tuple | dict | bool) and not item)
        if key not in allowed and not is_empty and not (key == "detail" and item == "auto"):
            raise InputError(
                f"{where}.{key} is unknown; allowed keys: {', '.join(allowed)}; remove it"
            )


def _as_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is a {type(value).__name__}; it must be an object with keys")
    return dict(value)


def _as_list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} is a {type(value).__name__}; it must be a list")
    return list(value)


def _as_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is a {type(value).__name__}; it must be a string")
    return value


def _as_optional_text(value: Any, where: str) -> str | None:
    return None if value is None else _as_text(value, where)


def _as_json(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy made of JSON's own types, so that a template never sees live objects."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{where} is nested deeper than {_MAX_DEPTH} levels; flatten it")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {
            _as_text(key, f"a key of {where}"): _as_json(item, f"{where}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_as_json(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise InputError(f"{where} is a {type(value).__name__}; allowed: what JSON can hold")
