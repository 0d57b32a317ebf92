import json
from pathlib import Path

import pytest
from tiny_tokenizer import tiny_backend, write_tiny_checkpoint

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.processing.tokenizer import SPECIAL_TOKENS, Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tiny_checkpoint(tmp_path))


def test_bos_is_added_once_and_only_if_asked(tokenizer: Tokenizer) -> None:
    bos = tokenizer.bos_token_id
    text = tokenizer.encode("hi")  # the file itself would add <bos>
    assert bos not in text
    assert tokenizer.encode("hi", add_bos=True) == [bos, *text]
    assert tokenizer.encode("<bos>hi", add_bos=True) == [bos, *text]
    assert tokenizer.encode("", add_bos=True) == [bos]
    assert tokenizer.encode("") == []


def test_special_tokens_in_text_become_their_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hi<turn|>hi")
    assert ids[1] == tokenizer.special_id("eot_token")
    assert tokenizer.decode(ids) == "hihi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "hi<turn|>hi"


def test_what_is_not_in_the_vocabulary_becomes_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ж")
    assert set(ids) < tokenizer.byte_ids
    assert len(tokenizer.byte_ids) == 256
    assert tokenizer.decode(ids) == "ж"


def test_special_ids_are_those_that_decode_leaves_out(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.special_ids) == len(SPECIAL_TOKENS)
    assert tokenizer.decode(sorted(tokenizer.special_ids)) == ""


def test_nothing_is_cut_or_padded(tmp_path: Path) -> None:
    backend = tiny_backend()
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert len(tokenizer.encode("abcdef" * 9)) == 54
    assert len(tokenizer.encode("a")) == 1


def test_names_of_special_tokens_come_from_the_config(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    settings = {"eos_token": {"content": "<turn|>"}, "pad_token": None, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.special_tokens == {**SPECIAL_TOKENS, "eos_token": "<turn|>"}
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tmp_path).special_tokens == SPECIAL_TOKENS


def test_the_file_is_read_when_needed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    tokenizer = Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer.json.*fetch it again"):
        tokenizer.encode("hi")


def test_a_file_on_which_the_library_panics(tmp_path: Path) -> None:
    """In Rust, which is no `Exception` in Python."""
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "longer than any token"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer\.json: .*out of range"):
        Tokenizer.from_folder(tmp_path).encode("hi")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(tmp_path)


def test_half_a_surrogate_pair_is_the_users_mistake(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode at character 2"):
        tokenizer.encode("ab\udcff")


def test_a_vocabulary_without_a_special_token(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(CheckpointError, match=r"lacks <s>; it is not a Gemma 4 tokenizer"):
        Tokenizer.from_folder(tmp_path).encode("hi", add_bos=True)


def test_ids_beyond_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.id_to_token(tokenizer.vocab_size) is None
    assert tokenizer.token_to_id("nothing") is None
