from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.errors import InputError
from mlx_gemma4.inputs import Modality
from mlx_gemma4.messages import MediaPart, Message, TextPart, parse_messages
from mlx_gemma4.processing.placement import as_sources, place_media
from mlx_gemma4.processing.tokenizer import Tokenizer

IMAGE, AUDIO, VIDEO = Modality.IMAGE, Modality.AUDIO, Modality.VIDEO


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tiny_checkpoint(tmp_path))


def test_pictures_and_clips_before_the_text_sounds_after_it(tokenizer: Tokenizer) -> None:
    given = {AUDIO: ["s"], VIDEO: ["v"], IMAGE: ["i", "j"]}
    (message,), placed = place_media(tokenizer, parse_messages("hi"), given)
    assert message.content == (
        MediaPart("image"),
        MediaPart("image"),
        MediaPart("video"),
        TextPart("hi"),
        MediaPart("audio"),
    )
    assert placed == [(IMAGE, "i"), (IMAGE, "j"), (VIDEO, "v"), (AUDIO, "s")]


def test_without_media_nothing_changes(tokenizer: Tokenizer) -> None:
    messages = parse_messages("hi")
    assert place_media(tokenizer, messages, {}) == (messages, [])


def test_places_in_the_text_are_kept(tokenizer: Tokenizer) -> None:
    messages = parse_messages("a <|image|> b <|image|>")
    assert place_media(tokenizer, messages, {IMAGE: ["i", "j"]}) == (
        messages,
        [(IMAGE, "i"), (IMAGE, "j")],
    )


def test_one_modality_in_place_another_not(tokenizer: Tokenizer) -> None:
    given = {IMAGE: ["i"], AUDIO: ["s"]}
    (message,), placed = place_media(tokenizer, parse_messages("a <|image|>"), given)
    assert message.content == (TextPart("a <|image|>"), MediaPart("audio"))
    assert placed == [(IMAGE, "i"), (AUDIO, "s")]


def test_messages_keep_their_media_in_place(tokenizer: Tokenizer) -> None:
    image: dict[str, Any] = {"type": "image"}
    messages = parse_messages(
        [
            {"role": "user", "content": ["a", image | {"image": "own"}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [image, "c", image, {"type": "audio", "audio": "s"}]},
        ]
    )
    same, placed = place_media(tokenizer, messages, {IMAGE: ["i", "j"]})
    assert same == messages
    assert placed == [(IMAGE, "own"), (IMAGE, "i"), (IMAGE, "j"), (AUDIO, "s")]


def test_the_last_message_of_the_user_gets_the_media(tokenizer: Tokenizer) -> None:
    messages = parse_messages(
        [
            {"role": "user", "content": [{"type": "image", "image": "own"}, "a"]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    )
    placed_messages, placed = place_media(tokenizer, messages, {IMAGE: ["i"]})
    assert placed_messages[2] == Message("user", (MediaPart("image"), TextPart("c")))
    assert placed_messages[:2] + placed_messages[3:] == messages[:2] + messages[3:]
    assert placed == [(IMAGE, "own"), (IMAGE, "i")]


def test_a_picture_without_words(tokenizer: Tokenizer) -> None:
    (message,), _ = place_media(tokenizer, parse_messages(""), {IMAGE: ["i"]})
    assert message.content == (MediaPart("image"),)


@pytest.mark.parametrize(
    ("prompt", "given", "error"),
    [
        ("<|image|><|image|>", {IMAGE: ["i"]}, "has 2 places for image .* but 1 was given"),
        ("<|image|>", {IMAGE: ["i", "j"]}, "has 1 place for image .* but 2 were given"),
        ("<|video|>", {}, "has 1 place for video .* but 0 were given"),
        ([{"role": "user", "content": [{"type": "audio"}]}], {}, "has 1 place for audio"),
        ([{"role": "assistant", "content": "a"}], {IMAGE: ["i"]}, "no message of the user"),
    ],
)
def test_every_medium_has_a_place_and_every_place_a_medium(
    tokenizer: Tokenizer, prompt: Any, given: dict[Modality, list[Any]], error: str
) -> None:
    with pytest.raises(InputError, match=error):
        place_media(tokenizer, parse_messages(prompt), given)


def test_one_medium_need_not_stand_in_a_list() -> None:
    samples = np.zeros(4, np.float32)
    assert as_sources(None, "audio") == []
    assert as_sources("a.wav", "audio") == ["a.wav"]
    assert as_sources(["a.wav", b"x"], "audio") == ["a.wav", b"x"]
    assert as_sources(("a.wav", "b.wav"), "audio") == ["a.wav", "b.wav"]
    assert as_sources(samples, "audio")[0] is samples
    ((array, rate),) = as_sources((samples, 8000), "audio")  # one sound and its sample rate
    assert array is samples
    assert rate == 8000
    assert len(as_sources((samples, samples), "audio")) == 2
    with pytest.raises(InputError, match=r"audio\[1\] is a web address"):
        as_sources(["a.wav", "https://x.org/b.wav"], "audio")
