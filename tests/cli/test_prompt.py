import io
import json
import sys
from typing import Any

import pytest

from mlx_gemma4.cli import prompt
from mlx_gemma4.cli.prompt import PromptRequest
from mlx_gemma4.errors import InputError
from mlx_gemma4.messages import MediaPart, Message, TextPart
from mlx_gemma4.processing.tokenizer import SPECIAL_TOKENS

SETTINGS: Any = {
    "thinking": False,
    "image_tokens": None,
    "num_frames": None,
    "video_sound": False,
    "ignore_chat_template": False,
}


class RecordingProcessor:
    """Says what it was asked to prepare."""

    class tokenizer:  # noqa: N801
        special_tokens = SPECIAL_TOKENS

    def prepare(self, prompt, **options):
        return prompt, options


PROCESSOR: Any = RecordingProcessor()


def read(prompt, media=(), system=None, messages=None, tools=None) -> Any:
    return PromptRequest.read(
        prompt, media, system=system, messages=messages, tools=tools, settings=SETTINGS
    )


@pytest.fixture
def media(tmp_path):
    """Return a clip, a sound, and a picture, in this order."""
    parts: list[Any] = []
    kind: Any
    for kind, name in (("video", "c.mp4"), ("audio", "s.wav"), ("image", "p.png")):
        (tmp_path / name).write_bytes(b"content")
        parts.append(MediaPart(kind, str(tmp_path / name)))
    return tuple(parts)


def test_pictures_and_clips_stand_before_the_text_and_sounds_after(media):
    (message,), options = read("hi", media).prepare(PROCESSOR)
    clip, sound, picture = media
    assert message == Message("user", (clip, picture, TextPart("hi"), sound))
    assert not options["images"] + options["audio"] + options["videos"]


def test_media_go_where_the_text_keeps_a_place(media):
    (message,), options = read("see <|image|> and", media).prepare(PROCESSOR)
    clip, sound, picture = media
    assert message == Message("user", (clip, TextPart("see <|image|> and"), sound))
    assert options["images"] == [picture.source]


def test_system_and_earlier_messages_come_first(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}))
    conversation, _ = read("b", system="be brief", messages=str(path)).prepare(PROCESSOR)
    assert conversation == (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("user", "b"),
    )


def test_media_alone_are_a_prompt(media):
    (message,), _ = read(None, media[:1]).prepare(PROCESSOR)
    assert message.parts == media[:1]


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"hi\n", "hi"), (b"\xef\xbb\xbfhi", "hi"), (b"a\n\nb\n\n", "a\n\nb\n"), ("é".encode(), "é")],
)
def test_standard_input_loses_one_line_end(content, text, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
    assert read("-").text == text


@pytest.mark.parametrize("content", ["{", "3", '{"other": []}'])
def test_tools_that_are_no_list(content, tmp_path):
    (tmp_path / "tools.json").write_text(content)
    with pytest.raises(InputError, match=r"tools\.json"):
        read("hi", tools=str(tmp_path / "tools.json"))


def test_a_file_without_end_is_not_read_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt, "MAX_JSON_BYTES", 100)
    (tmp_path / "messages.json").write_text("[" + " " * 100 + "]")
    with pytest.raises(InputError, match="more than 100 bytes; give media as paths"):
        read("hi", messages=str(tmp_path / "messages.json"))
