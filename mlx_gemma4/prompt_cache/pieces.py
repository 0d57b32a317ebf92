"""Pieces of prompts in safetensors files: rows of some positions, or the rings of one.

A prompt on disk is a chain of pieces of rows, each known by a hash of everything up to its end, and
rings at the ends of some.  A file holds one piece or several, with what they belong to and a
checksum of every tensor.  It is written whole or not at all, and nothing of it is used before its
header, its shapes, and its checksums have been checked.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_gemma4.errors import CheckpointError, PromptCacheError
from mlx_gemma4.kernels.verdicts import is_alive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint, LayerLayout
from mlx_gemma4.weights.header import StoredTensor, read_header
from mlx_gemma4.weights.reading import read_rows

FORMAT = "mlx-gemma4 prompt cache 1"
SUFFIX = ".safetensors"

_MAX_PIECES = 1 << 12
_MAX_POSITIONS = 1 << 31
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8"} | {
    "uint32": "U32"
}
_Kind = Literal["rows", "rings"]


@dataclass(frozen=True)
class Piece:
    """Rows of positions start..stop of a prompt, or its rings at `stop`.

    Attributes:
        kind: "rows" or "rings".
        id: Hash of the prompt up to `stop`.
        parent: `id` of the rows before these; "" if they are the first.
        start: First position; of rings, `stop`.
        stop: Position after the last.
        layers: Tensors by layer index.
        keys: What the positions are (`prompt_keys`), [stop - start, 2] uint64; of rows alone.
        hashes: SHA-256 of each tensor by its name, in hexadecimal.
    """

    kind: _Kind
    id: str
    parent: str
    start: int
    stop: int
    layers: Mapping[int, Sequence[StoredTensor]]
    keys: StoredTensor | None
    hashes: Mapping[str, str]

    @property
    def file(self) -> Path:
        """Where it lies."""
        return next(iter(self.layers.values()))[0].file

    def read(self) -> dict[int, list[mx.array]]:
        """Return the arrays of each layer.

        Raises:
            PromptCacheError: The file is gone, or its content is not what was written.
        """
        return {
            index: [self._read(tensor) for tensor in tensors]
            for index, tensors in self.layers.items()
        }

    def read_keys(self) -> np.ndarray:
        """Return the keys of the positions of rows.

        Raises:
            PromptCacheError: As `read`.
        """
        assert self.keys is not None
        return np.array(self._read(self.keys))

    def _read(self, tensor: StoredTensor) -> mx.array:
        try:
            array = read_rows(tensor)
        except CheckpointError as error:
            raise refusal(tensor.file, f"it cannot be read ({_reason(error)})") from None
        if _sha256(array) != self.hashes[tensor.name]:
            raise refusal(tensor.file, f"the checksum of tensor {tensor.name} is wrong")
        return array


@dataclass(frozen=True)
class NewPiece:
    """A piece that is not written yet; see `Piece`."""

    kind: _Kind
    id: str
    parent: str
    start: int
    stop: int
    layers: Mapping[int, Sequence[mx.array]]
    keys: np.ndarray | None = None


def write_pieces(
    file: Path, fingerprint: Fingerprint, pieces: Sequence[NewPiece], model_name: str = ""
) -> None:
    """Write a file of pieces, whole or not at all; what was there before is replaced.

    Args:
        file: Where.
        fingerprint: Of the model.
        pieces: What it holds.
        model_name: What people call the model.

    Raises:
        PromptCacheError: It cannot be written.
    """
    arrays = {
        f"{number}.{layer}.{part}": mx.contiguous(array)
        for number, piece in enumerate(pieces)
        for layer, parts in piece.layers.items()
        for part, array in enumerate(parts)
    }
    arrays |= {
        f"{number}.keys": mx.array(piece.keys)
        for number, piece in enumerate(pieces)
        if piece.keys is not None
    }
    heads = [[p.kind, p.id, p.parent, p.start, p.stop] for p in pieces]
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint.as_text(),
        "model_name": model_name,
        "pieces": json.dumps(heads),
        "sha256": json.dumps({name: _sha256(array) for name, array in arrays.items()}),
    }
    metadata["checksum"] = _checksum(metadata)
    partial = file.with_name(f".{file.name}.{os.getpid()}{SUFFIX}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_partial(file)
        mx.save_safetensors(str(partial), arrays, metadata)
        read_header(partial)  # a full disk makes it shorter, which nobody else says
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except (OSError, RuntimeError, CheckpointError) as error:
        reason = getattr(error, "strerror", None) or _reason(error)
        raise PromptCacheError(
            f"cannot write {file}: {reason}; make room there, or name another place"
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def remove_partial(file: Path) -> None:
    """Remove what processes that have ended have left of a file half-written."""
    for partial in file.parent.glob(f".{file.name}.*{SUFFIX}"):
        process = partial.name.removeprefix(f".{file.name}.").removesuffix(SUFFIX)
        if process.isdecimal() and not is_alive(int(process)):
            with suppress(OSError):
                partial.unlink()


def read_model_name(file: Path) -> str:
    """Return what the model of a file is called, from its header.

    Raises:
        PromptCacheError: As `read_pieces`.
    """
    name = _read_head(file)[1].get("model_name", "")
    return name[:80] if name.isprintable() else ascii(name)[:80]


def read_pieces(file: Path, fingerprint: Fingerprint | None = None) -> list[Piece]:
    """Return the pieces of a file; no tensor is read.

    Args:
        file: A safetensors file that `write_pieces` has written, so it is hoped.
        fingerprint: Of the model that is to go on; None only looks at the file.

    Raises:
        PromptCacheError: The file is damaged, foreign, or of something else than `fingerprint`.
    """
    tensors, metadata = _read_head(file)
    if fingerprint and (reason := fingerprint.difference(metadata.get("fingerprint", ""))):
        raise refusal(file, reason, is_foreign=True)
    try:
        heads, hashes = json.loads(metadata["pieces"]), json.loads(metadata["sha256"])
        if not 0 < len(heads) <= _MAX_PIECES or hashes.keys() != tensors.keys():
            raise ValueError("pieces and tensors do not fit")
        pieces = [_parse(number, head, tensors, hashes) for number, head in enumerate(heads)]
        used = sum(len(layer) for p in pieces for layer in p.layers.values())
        if used + sum(piece.keys is not None for piece in pieces) != len(tensors):
            raise ValueError("a tensor belongs to nothing")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise refusal(file, "its header makes no sense") from None
    for piece in pieces if fingerprint else ():
        _check_layers(piece, fingerprint.layout if fingerprint else ())
    return pieces


def _read_head(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return tensors and metadata of a file whose header is whole."""
    try:
        tensors = read_header(file)
        with safe_open(file, "numpy") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (CheckpointError, SafetensorError, OSError) as error:
        raise refusal(file, _reason(error)) from None
    if metadata.get("format") != FORMAT:
        raise refusal(file, f"it is no prompt cache of this form ({FORMAT})")
    stated = metadata.pop("checksum", "")
    if stated != _checksum(metadata):
        raise refusal(file, "the checksum of its header is wrong")
    return tensors, metadata


def _parse(
    number: int, head: Any, tensors: Mapping[str, StoredTensor], hashes: Mapping[str, str]
) -> Piece:
    kind, name, parent, start, stop = head
    if kind not in ("rows", "rings") or not (isinstance(name, str) and isinstance(parent, str)):
        raise ValueError("no such piece")
    if type(start) is not int or type(stop) is not int or not 0 <= start <= stop < _MAX_POSITIONS:
        raise ValueError("no such positions")
    layers: dict[int, list[StoredTensor]] = {}
    keys = tensors.get(f"{number}.keys")
    if (kind == "rows") is not (
        keys is not None and keys.dtype == "U64" and keys.shape == (stop - start, 2)
    ):
        raise ValueError("no such keys")
    own = [key.split(".") for key in tensors if key.startswith(f"{number}.")]
    own = [key for key in own if len(key) == 3]
    for _, layer, part in sorted(own, key=lambda key: (int(key[1]), int(key[2]))):
        layers.setdefault(int(layer), []).append(tensors[f"{number}.{layer}.{part}"])
    if not layers:
        raise ValueError("nothing in it")
    return Piece(kind, name, parent, start, stop, layers, keys, hashes)


def _check_layers(piece: Piece, layout: Sequence[LayerLayout]) -> None:
    """Check the tensors of a piece against what the model's layers keep."""
    is_ring = piece.kind == "rings"
    wanted = {index for index, layer in enumerate(layout) if bool(layer.window) is is_ring}
    if piece.layers.keys() != wanted:
        raise refusal(piece.file, "it has other layers than the model")
    for index, tensors in piece.layers.items():
        layer = layout[index]
        if len(tensors) != len(layer.parts):
            raise refusal(piece.file, f"layer {index} has other arrays than the model's")
        for tensor, (batch, heads, dims, dtype) in zip(tensors, layer.parts, strict=True):
            count = tensor.shape[2] if len(tensor.shape) == 4 else -1
            least = min(piece.stop, layer.window - 1) if is_ring else piece.stop - piece.start
            most = piece.stop if is_ring else least
            if (
                tensor.shape != (batch, heads, count, dims)
                or tensor.dtype != _DTYPES.get(dtype)
                or not max(least, 1) <= count <= most
            ):
                raise refusal(
                    piece.file,
                    f"tensor {tensor.name} is {tensor.dtype} {list(tensor.shape)}, which does not "
                    f"fit layer {index}",
                )


def refusal(file: Path, reason: str, *, is_foreign: bool = False) -> PromptCacheError:
    """Return the error that a file is not used."""
    error = PromptCacheError(
        f"the prompt cache {file} is refused: {reason}; remove it, or name another one"
    )
    error.file, error.is_foreign = file, is_foreign
    return error


def _reason(error: Exception) -> str:
    """Return what an error says, without what to do about checkpoints."""
    return str(error).splitlines()[0].removesuffix("; download it again")[:300]


def _checksum(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _sha256(array: mx.array) -> str:
    words = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array  # NumPy has none
    return hashlib.sha256(np.array(words, copy=False).data).hexdigest()
