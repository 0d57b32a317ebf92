from pathlib import Path

import pytest
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.inputs import Modality, SoftTokenSpan
from mlx_gemma4.processing.prompt import (
    encode_prompt,
    expand_audio,
    expand_image,
    expand_video,
    find_placeholders,
    order_media,
)
from mlx_gemma4.processing.tokenizer import Tokenizer

IMAGE, AUDIO, VIDEO = Modality.IMAGE, Modality.AUDIO, Modality.VIDEO


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tiny_checkpoint(tmp_path))


def test_expansions(tokenizer: Tokenizer) -> None:
    assert expand_image(tokenizer, 2).text == "<|image><|image|><|image|><image|>"
    assert expand_audio(tokenizer, 1).text == "<|audio><|audio|><audio|>"
    video = expand_video(tokenizer, [1, 2], [0.0, 61.99])
    assert video.text == "00:00 <|image><|video|><image|> 01:01 <|image><|video|><|video|><image|>"
    assert video.lengths == (1, 2)


@pytest.mark.parametrize(
    ("seconds", "label"),
    [(0.999, "00:00"), (59.99, "00:59"), (60, "01:00"), (3599, "59:59"), (3600, "60:00")],
)
def test_timestamps_are_cut_not_rounded(tokenizer: Tokenizer, seconds: float, label: str) -> None:
    assert expand_video(tokenizer, [1], [seconds]).text.startswith(f"{label} <|image>")


def test_placeholders_are_found_in_order(tokenizer: Tokenizer) -> None:
    text = "a<|video|><|image|> <|image> <|audio|>"
    assert find_placeholders(text, tokenizer) == [(VIDEO, 1), (IMAGE, 10), (AUDIO, 29)]


def test_media_are_ordered_by_their_places(tokenizer: Tokenizer) -> None:
    text = "<|audio|><|image|><|image|><|video|>"
    assert order_media(tokenizer, text, [IMAGE, VIDEO, IMAGE, AUDIO]) == [3, 0, 2, 1]
    assert order_media(tokenizer, "none", []) == []


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        ("hi", [IMAGE], r"has 0 places for image .*but 1 was given"),
        ("<|image|>", [], r"has 1 place for image \(<\|image\|>\), but 0 were given"),
        ("<|audio|><|audio|>", [AUDIO], "has 2 places for audio"),
        ("<|image|>", [VIDEO], "image"),
    ],
)
def test_each_medium_has_one_place(
    tokenizer: Tokenizer, text: str, media: list[Modality], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        order_media(tokenizer, text, media)


def test_ids_and_spans(tokenizer: Tokenizer) -> None:
    expansions = [
        expand_audio(tokenizer, 3),
        expand_video(tokenizer, [2, 2], [0, 1]),
        expand_image(tokenizer, 1),
    ]
    ids, spans = encode_prompt(tokenizer, "hi<|audio|> <|video|><|image|>", expansions)
    written = "hi" + expansions[0].text + " " + expansions[1].text + expansions[2].text
    assert ids.tolist() == tokenizer.encode(written)
    assert ids.dtype == "int32"
    assert [(span.length, span.modality) for span in spans] == [
        (3, AUDIO),
        (2, VIDEO),
        (2, VIDEO),
        (1, IMAGE),
    ]
    for span in spans:
        token_id = tokenizer.special_id(f"{span.modality}_token")
        assert set(ids[span.start : span.stop]) == {token_id}
        assert token_id not in ids[[span.start - 1, span.stop]]


def test_neighbours_are_separate_spans(tokenizer: Tokenizer) -> None:
    two = [expand_image(tokenizer, 2)] * 2
    _, spans = encode_prompt(tokenizer, "<|image|><|image|>", two)
    assert spans == (SoftTokenSpan(1, 2, IMAGE), SoftTokenSpan(5, 2, IMAGE))


def test_raw_text_starts_with_bos(tokenizer: Tokenizer) -> None:
    ids, spans = encode_prompt(tokenizer, "hi", [], add_bos=True)
    assert ids.tolist() == [tokenizer.bos_token_id, *tokenizer.encode("hi")]
    assert spans == ()


@pytest.mark.parametrize(
    ("image_token", "error"),
    [("zz", "lacks zz; it is not a Gemma 4 tokenizer"), ("t", "splits the placeholders")],
)
def test_a_tokenizer_that_does_not_know_placeholders(
    tmp_path: Path, image_token: str, error: str
) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        f'{{"image_token": "{image_token}", "eoi_token": "hought"}}'  # it has "thought"
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match=error):
        encode_prompt(tokenizer, image_token, [expand_image(tokenizer, 3)])
