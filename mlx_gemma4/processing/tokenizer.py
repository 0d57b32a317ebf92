"""Text to token ids and back, by the checkpoint's tokenizer.json.

The file is read when it is first needed: Google's has 32 MB and takes about a second.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.processing.json_file import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Gemma 4's special tokens by the names that tokenizer_config.json and chat templates use.
SPECIAL_TOKENS: Mapping[str, str] = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "video_token": "<|video|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "think_token": "<|think|>",
    "std_token": "<|tool>",
    "etd_token": "<tool|>",
    "stc_token": "<|tool_call>",
    "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>",
    "etr_token": "<tool_response|>",
    "escape_token": '<|"|>',
}


class Tokenizer:
    """A checkpoint's tokenizer: the same ids as transformers', without transformers.

    Args:
        path: tokenizer.json.
        special_tokens: Names and texts of special tokens, as chat templates expect them.
    """

    def __init__(self, path: Path, special_tokens: Mapping[str, str] = SPECIAL_TOKENS) -> None:
        self.path = path
        self.special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Return the tokenizer of a checkpoint; tokenizer_config.json may be missing.

        Raises:
            CheckpointError: tokenizer.json is missing, or tokenizer_config.json is broken.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json; it must stand beside config.json; "
                "fetch the checkpoint again"
            )
        special_tokens = dict(SPECIAL_TOKENS)
        settings_path = folder / "tokenizer_config.json"
        if settings_path.is_file():
            for name, value in read_json(settings_path).items():
                text = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(text, str):
                    special_tokens[name] = text
        return cls(path, special_tokens)

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Return the ids of a text; special tokens in it become their ids.

        Args:
            text: Any text; the empty one gives no ids.
            add_bos: Start with exactly one `<bos>`, whatever the text starts with.

        Raises:
            InputError: The text holds half of a surrogate pair, which no file can hold either.
        """
        try:
            # Whether `<bos>` is added differs between Google's base and -it tokenizers, so it is
            # decided by `add_bos` and not by the file.
            ids = self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            where = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), 0)
            raise InputError(
                f"the text is not valid Unicode at character {where}; save it as UTF-8"
            ) from None
        if add_bos and (not ids or ids[0] != self.bos_token_id):
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids; bytes that form no character become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token, or None if the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None beyond the vocabulary."""
        return self._backend.id_to_token(token_id)

    def special_id(self, name: str) -> int:
        """Return the id of a special token by its name in `SPECIAL_TOKENS`, such as "eot_token".

        Raises:
            CheckpointError: The vocabulary lacks it.
        """
        token = self.special_tokens[name]
        token_id = self.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"{self.path} lacks {token}; it is not a Gemma 4 tokenizer")
        return token_id

    @cached_property
    def bos_token_id(self) -> int:
        """Id of `<bos>`, which starts every prompt."""
        return self.special_id("bos_token")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens: what `decode` leaves out."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids of the 256 tokens that stand for one byte of a character outside the vocabulary."""
        names = (f"<0x{byte:02X}>" for byte in range(256))
        return frozenset(i for i in map(self.token_to_id, names) if i is not None)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def _backend(self) -> "Backend":
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_file(str(self.path))
        except BaseException as error:  # the library raises bare Exception, and worse if it panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(f"cannot read {self.path}: {error}; fetch it again") from None
        backend.no_truncation()  # a file may carry its trainer's settings, which cut text silently
        backend.no_padding()
        return backend
