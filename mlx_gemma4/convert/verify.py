"""A converted checkpoint checked: its files, its headers, and every tensor's checksum."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gemma4.config.section import read_json
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights import INDEX_FILE, read_bytes
from mlx_gemma4.weights.checkpoint import read_headers
from mlx_gemma4.weights.header import listed

_BLOCK_BYTES = 8 << 20
_NEEDED_FILES = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class Verification:
    """A checkpoint that is as it was written.

    Attributes:
        num_tensors: All of which have the checksum that the index has for them.
        nbytes: Of the tensors.
        conversion: What the index tells of the conversion.
    """

    num_tensors: int
    nbytes: int
    conversion: dict[str, Any]


def verify_checkpoint(
    folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check a folder that `convert` has made.

    Args:
        folder: With model.safetensors.index.json.
        progress: Called with (bytes done, bytes in all).

    Raises:
        CheckpointError: Something is missing, does not fit config.json, or is not as it was
            written; each tensor is named, at most ten and a count.
    """
    index = folder / INDEX_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; pass one that mlx-gemma4 convert has made")
    metadata = read_json(index).get("metadata") if index.is_file() else None
    checksums = metadata.get("sha256") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(checksums, dict) or not checksums:
        raise CheckpointError(
            f"{folder} has no checksums in {INDEX_FILE}: it was not made by mlx-gemma4 convert; "
            "convert it, or compare its files with the repository that it comes from"
        )
    source = open_source(folder)  # headers, shapes, dtypes against config.json
    needed = [name for name in _NEEDED_FILES if not (folder / name).is_file()]
    if source.is_assistant:
        needed = [name for name in needed if name == "config.json"]
    if needed:
        raise CheckpointError(f"{folder} lacks {', '.join(needed)}; convert the checkpoint again")
    tensors = read_headers(folder)
    if differing := sorted(tensors.keys() ^ checksums.keys()):
        raise CheckpointError(
            f"{folder}: {len(differing)} tensors are in the files or in the checksums, and not in "
            f"both: {listed(differing)}; convert the checkpoint again"
        )
    total = sum(tensor.nbytes for tensor in tensors.values())
    done, wrong = 0, []
    for name, tensor in tensors.items():
        digest = hashlib.sha256()
        for start in range(0, tensor.nbytes, _BLOCK_BYTES):
            stop = min(start + _BLOCK_BYTES, tensor.nbytes)
            digest.update(read_bytes(tensor, start, stop))
            done += stop - start
            if progress:
                progress(done, total)
        if digest.hexdigest() != checksums[name]:
            wrong.append(f"{name} in {tensor.file.name}")
    if wrong:
        raise CheckpointError(
            f"{folder}: {len(wrong)} of {len(tensors)} tensors are not as they were written: "
            f"{listed(wrong)}; convert the checkpoint again, or copy the files again"
        )
    conversion = metadata.get("conversion")
    return Verification(len(tensors), total, conversion if isinstance(conversion, dict) else {})
