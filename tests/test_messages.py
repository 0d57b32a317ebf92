import base64
from pathlib import Path
from typing import Any, cast

import pytest

from mlx_gemma4.errors import InputError
from mlx_gemma4.messages import (
    MediaPart,
    Message,
    TextPart,
    ToolCall,
    ToolResponse,
    parse_messages,
    parse_tools,
    resolve_source,
)

PIXEL = base64.b64encode(b"pixels").decode()


def parse_part(part: Any) -> Any:
    (message,) = parse_messages([{"role": "user", "content": [part]}])
    assert message.content is not None
    return message.content[0]


def test_a_string_is_one_message_of_the_user() -> None:
    assert parse_messages("Hi ") == (Message("user", "Hi "),)


def test_messages_pass_unchanged() -> None:
    messages = (Message("user", "Hi"), Message("assistant", (TextPart("Hello"),)))
    assert parse_messages(messages) == messages
    assert messages[0].parts == (TextPart("Hi"),)
    assert Message("assistant").parts == ()


def test_strings_and_parts_are_kept_apart() -> None:
    """A template trims each text part, so the two are different prompts."""
    text, parts = parse_messages(
        [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ]
    )
    assert text.content == "a"
    assert parts.content == (TextPart("a"),)


@pytest.mark.parametrize(
    ("part", "parsed"),
    [
        ({"type": "text", "text": "a"}, TextPart("a")),
        ({"type": "input_text", "text": "a"}, TextPart("a")),
        ("a", TextPart("a")),
        (MediaPart("audio", b"x"), MediaPart("audio", b"x")),
        ({"type": "image"}, MediaPart("image")),
        ({"type": "image", "image": "a.png"}, MediaPart("image", "a.png")),
        ({"type": "image", "path": "a.png"}, MediaPart("image", "a.png")),
        ({"type": "image", "url": "file:///a%20b.png"}, MediaPart("image", Path("/a b.png"))),
        ({"type": "image", "base64": PIXEL}, MediaPart("image", b"pixels")),
        ({"type": "image", "image": None, "url": "a.png"}, MediaPart("image", "a.png")),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            MediaPart("image", b"pixels"),
        ),
        (
            {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}},
            MediaPart("image", "a.png"),
        ),
        ({"type": "image_url", "image_url": "a.png"}, MediaPart("image", "a.png")),
        (
            {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
            MediaPart("audio", b"pixels"),
        ),
        ({"type": "audio", "audio": "a.wav"}, MediaPart("audio", "a.wav")),
        ({"type": "video", "video": "a.mp4"}, MediaPart("video", "a.mp4")),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, MediaPart("video", "a.mp4")),
    ],
)
def test_parts(part: Any, parsed: Any) -> None:
    assert parse_part(part) == parsed


def test_tool_calls_and_answers() -> None:
    call, bare, answer = parse_messages(
        [
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [
                    {
                        "id": "7",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"a": 1}'},
                    },
                    {"function": {"name": "g", "arguments": {"b": (1, 2)}}},
                    {"function": {"name": "h", "arguments": ""}},
                ],
                "tool_responses": [{"name": "f", "response": {"x": 1}}],
                "refusal": None,
                "annotations": [],
            },
            {"role": "model", "content": "ok"},
            {"role": "tool", "content": "18", "tool_call_id": "7", "name": "f"},
        ]
    )
    assert call == Message(
        "assistant",
        reasoning="hm",
        tool_calls=(ToolCall("f", {"a": 1}, "7"), ToolCall("g", {"b": [1, 2]}), ToolCall("h", {})),
        tool_responses=(ToolResponse("f", {"x": 1}),),
    )
    assert bare == Message("assistant", "ok")
    assert answer == Message("tool", "18", tool_call_id="7", name="f")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ("Hi", r"messages\[1\] is a str"),
        ({"content": "a"}, r"messages\[1\]\.role is None; allowed: system, developer, user"),
        ({"role": "robot", "content": "a"}, r"messages\[1\]\.role is 'robot'"),
        ({"role": "user"}, r"messages\[1\] has no content"),
        ({"role": "user", "content": 3}, r"messages\[1\]\.content is a int"),
        ({"role": "user", "content": {"a": 1}}, r"messages\[1\]\.content is an object"),
        ({"role": "user", "contnet": "a"}, r"messages\[1\]\.contnet is unknown"),
        ({"role": "user", "content": "a", "name": 3}, r"messages\[1\]\.name is a int"),
        (
            {"role": "assistant", "reasoning": "a", "thinking": "b"},
            "two different reasoning texts",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            r"messages\[1\]\.tool_calls\[0\]\.function\.arguments is not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]x"}}]},
            "not JSON",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}],
            },
            "not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
            r"tool_calls\[0\]\.function\.name is a NoneType",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]},
            r"arguments is a list; it must be an object",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1, 2}}}}],
            },
            r"arguments\.a is a set; allowed: what JSON can hold",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": nested(100)}}}],
            },
            "nested deeper than 64 levels",
        ),
        ({"role": "assistant", "tool_calls": "f"}, r"tool_calls is a str; it must be a list"),
        ({"role": "assistant", "tool_responses": [{"name": "f"}]}, 'no "response"'),
    ],
)
def test_the_place_of_a_mistake_is_named(message: Any, where: str) -> None:
    with pytest.raises(InputError, match=where):
        parse_messages([{"role": "user", "content": "Hi"}, message])


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "smell"}, r"content\[0\]\.type is 'smell'; allowed: text, image"),
        ({"text": "a"}, r"content\[0\]\.type is None"),
        ({"type": ["image"]}, r"content\[0\]\.type is \['image'\]; allowed: text, image"),
        ({"type": "image", "imge": "a.png"}, r"content\[0\]\.imge is unknown; allowed keys: type"),
        (
            {"type": "image_url", "image_url": {"url": "a", "detail": "high"}},
            r"image_url\.detail is",
        ),
        ({"type": "text"}, r"content\[0\]\.text is a NoneType"),
        ({"type": "image", "url": "a", "path": "b"}, r"names two sources \(url, path\)"),
        ({"type": "image", "url": "https://x.org/a.png"}, r"content\[0\]\.url is a web address"),
        ({"type": "image", "url": ""}, r"content\[0\]\.url is empty"),
        ({"type": "image_url", "image_url": {"url": None}}, r"image_url\.url is empty"),
        ({"type": "image", "base64": "%%%"}, "is not base64"),
        ({"type": "image", "url": "data:image/png,abc"}, "a data: URL without base64"),
        ({"type": "image", "url": "data:image/png;base64,"}, "is empty"),
        ({"type": "input_audio", "input_audio": {"data": 3}}, r"input_audio\.data is a int"),
    ],
)
def test_parts_that_cannot_be_honoured(part: Any, where: str) -> None:
    with pytest.raises(InputError, match=where):
        parse_part(part)


@pytest.mark.parametrize("prompt", [None, 3, b"Hi", {"role": "user", "content": "Hi"}])
def test_prompts_of_another_type(prompt: Any) -> None:
    with pytest.raises(InputError, match="allowed: a string or a list of messages"):
        parse_messages(prompt)


def test_an_empty_conversation() -> None:
    with pytest.raises(InputError, match="the conversation is empty"):
        parse_messages([])


def test_sources() -> None:
    assert resolve_source("a.png", "images[0]") == "a.png"
    assert resolve_source(b"x", "images[0]") == b"x"
    with pytest.raises(InputError, match=r"images\[0\] is a web address .*download it"):
        resolve_source("http://x.org/a.png", "images[0]")


def test_tools() -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": function}
    assert parse_tools(None) == []
    assert parse_tools([wrapped, function]) == [wrapped, wrapped]
    for tool, where in (
        ({"function": {}}, r"tools\[0\]\.function has no name"),
        ({"type": "function"}, r"tools\[0\]\.function is a NoneType"),
        ({"function": {"name": "f", "x": print}}, r"tools\[0\]\.function\.x is a builtin"),
    ):
        with pytest.raises(InputError, match=where):
            parse_tools([tool])
    with pytest.raises(InputError, match="tools is a int; it must be a list"):
        parse_tools(cast(Any, 3))
