from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from prompt_cases import TEXTS
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.generation.detokenizer import Detokenizer
from mlx_gemma4.processing.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tiny_checkpoint(tmp_path))


def stream(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*map(detokenizer.add, ids), detokenizer.finish()]


def byte_ids(tokenizer: Tokenizer, content: bytes) -> list[int]:
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in content)
    return [token_id for token_id in ids if token_id is not None]


@pytest.mark.parametrize(
    "text",
    ["hi hi", "  two  spaces ", "é", "ж", "👩\u200d🚀 is 👍🏽", "שלום hi", "\n\n", "a\ufffdb"],
)
def test_pieces_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(Detokenizer(tokenizer), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert ("\ufffd" in "".join(pieces)) == ("\ufffd" in text)


@pytest.mark.parametrize("name", TEXTS)
def test_every_script(tokenizer: Tokenizer, name: str) -> None:
    pieces = stream(
        Detokenizer(tokenizer, skip_special_tokens=False), tokenizer.encode(TEXTS[name])
    )
    assert "".join(pieces) == TEXTS[name]


def test_a_character_comes_whole(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token_id) for token_id in tokenizer.encode("a🚀b")]
    assert pieces == ["a", "", "", "", "", "🚀b"]
    assert detokenizer.finish() == ""


def test_the_end_gives_what_was_held(tokenizer: Tokenizer) -> None:
    whole, broken = "🚀".encode(), "🚀".encode()[:3]
    assert stream(Detokenizer(tokenizer), byte_ids(tokenizer, whole)) == ["", "", "", "", "🚀"]
    assert stream(Detokenizer(tokenizer), byte_ids(tokenizer, broken))[-1] == "\ufffd" * 3
    detokenizer = Detokenizer(tokenizer)
    stream(detokenizer, byte_ids(tokenizer, broken))
    assert detokenizer.finish() == ""  # only once


def test_special_tokens_are_shown_or_not(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hi<turn|>🚀<eos>")
    assert "".join(stream(Detokenizer(tokenizer), ids)) == "hi🚀"
    shown = Detokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(stream(shown, ids)) == "hi<turn|>🚀<eos>"


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_anything_streams_as_it_decodes(
    tokenizer: Tokenizer, rng: np.random.Generator, skip_special_tokens: bool
) -> None:
    for _ in range(200):
        ids = rng.integers(0, tokenizer.vocab_size, 60).tolist()
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        whole = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        assert "".join(stream(detokenizer, ids)) == whole


def test_time_is_linear(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, num_decoded = tokenizer.decode, 0

    def counted(ids: Sequence[int], **options: bool) -> str:
        nonlocal num_decoded
        num_decoded += len(ids)
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counted)
    ids = tokenizer.encode("hi 🚀 " * 100)
    stream(Detokenizer(tokenizer), ids)
    assert num_decoded == len(ids)  # each id once
