"""Headers of safetensors files, checked before any tensor is read."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gemma4.errors import CheckpointError

_MAX_HEADER_BYTES = 32 * 1024 * 1024  # 677 tensors take 90 kB
MAX_LISTED = 10
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
FLOATS: tuple[str, ...] = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it.

    Attributes:
        file: Where it lies.
        name: What the file calls it.
        dtype: In the words of safetensors, such as "BF16".
        offset: Of its first byte in the file.
        nbytes: In the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def is_float(self) -> bool:
        """Whether it is cast to the dtype of activations."""
        return self.dtype in FLOATS


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by the names in it; no tensor is read.

    Raises:
        CheckpointError: The file is truncated or corrupt, or has an unknown dtype.

    Source: safetensors' format description: u64 length, JSON, then the bytes of all tensors
        without gaps.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise _corrupt(file, f"a header of {length:,} bytes in a file of {size:,}")
            header = _parse(stream.read(length))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror}; check its permissions"
        ) from None
    except (ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
        raise _corrupt(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    metadata = header.get("__metadata__")
    if metadata is not None and not (  # MLX writes null
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _corrupt(file, "its __metadata__ is not an object of strings")
    tensors = {
        name: _read_entry(file, name, entry, 8 + length)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_extents(file, tensors, 8 + length, size)
    return tensors


def _parse(content: bytes) -> Any:
    """Return JSON as MLX reads it too: in UTF-8, with whole characters and finite numbers.

    Raises:
        ValueError: It is none.
    """
    header = json.loads(content.decode())
    # Python takes NaN, 1e999, and half a surrogate pair; writing it strictly finds them all.
    json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    return header


def _read_entry(file: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """Return one entry of a header, whose offsets count from `start`."""
    tensor = shown(name)
    if not isinstance(entry, dict):
        raise _corrupt(file, f"tensor {tensor} is no object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{file}: tensor {tensor} has dtype {str(dtype)[:20]}; known are "
            f"{', '.join(ITEM_BYTES)}; download the file again, or take another conversion"
        )
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _corrupt(file, f"tensor {tensor} has no proper shape and offsets")
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise _corrupt(
            file, f"tensor {tensor} needs {nbytes:,} bytes and has {offsets[1] - offsets[0]:,}"
        )
    return StoredTensor(file, name, dtype, shape, start + offsets[0], nbytes)


def _sizes(values: Any) -> tuple[int, ...] | None:
    """Return a short list of whole numbers that a file can have, or None if it is no such list."""
    if not isinstance(values, list) or len(values) > 8:
        return None
    proper = all(type(value) is int and 0 <= value < 2**48 for value in values)
    return tuple(values) if proper else None


def _check_extents(file: Path, tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Check that the tensors fill the file from `start` to its end, side by side."""
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a gap before"
            raise _corrupt(file, f"tensor {shown(tensor.name)} {what} it")
        end += tensor.nbytes
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: it has {size:,} bytes of {end:,}; download it again"
        )
    if end < size:
        raise _corrupt(file, f"{size - end:,} bytes follow the last tensor")


def _corrupt(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is no proper safetensors file ({what}); download it again")


def shown(name: str) -> str:
    """Return a tensor's name as messages print it, whatever characters a file has there."""
    name = name if len(name) <= 100 else name[:97] + "..."
    return name if name.isprintable() else ascii(name)


def listed(names: Sequence[str]) -> str:
    """Return at most ten names, and the count of the rest."""
    rest = len(names) - MAX_LISTED
    listed = ", ".join(shown(name) for name in names[:MAX_LISTED])
    return f"{listed}, and {rest} more" if rest > 0 else listed
