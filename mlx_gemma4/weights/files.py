"""The safetensors files of a folder: one, or shards with or without an index."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights.header import MAX_LISTED, listed, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 32 * 1024 * 1024
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


def find_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the safetensors files of a checkpoint, and which of them has each tensor.

    Returns:
        Files in order, and tensor name -> file name from the index; None without an index.

    Raises:
        CheckpointError: There is none, or a shard is missing, or the index is broken.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if index.is_file():
        weight_map = _read_index(index)
        names = sorted(set(weight_map.values()))
        if single.is_file() and SINGLE_FILE not in names:
            raise CheckpointError(
                f"{folder} has both {SINGLE_FILE} and an index of other files; remove whichever "
                "is left over from an earlier conversion"
            )
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(names)} files in {INDEX_FILE} are missing: "
                f"{listed(missing)}; download them again"
            )
        return [folder / name for name in names], weight_map
    if single.is_file():
        return [single], None
    files = sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no {SINGLE_FILE}{_other_formats(folder)}")
    _check_shards(folder, files)
    return files, None


def _read_index(index: Path) -> dict[str, str]:
    """Return tensor name -> file name; a file name is never a path out of the folder."""
    try:
        too_large = index.stat().st_size > _MAX_INDEX_BYTES
        content = None if too_large else json.loads(index.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"cannot read {index}: {error.strerror}; check its permissions"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{index} is not JSON; download it again") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    for name, file in weight_map.items():
        # A longer name no disk can hold, and asking for it is an error.
        proper = isinstance(file, str) and file.endswith(".safetensors") and len(file) <= 100
        if not proper or Path(file).name != file or "\\" in file or not file.isprintable():
            raise CheckpointError(
                f"{index}: {shown(name)} is in {str(file)[:80]!r}; allowed is the name of a "
                ".safetensors file in the same folder"
            )
    return weight_map


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    """Check by their names that no shard is missing where there is no index."""
    shards = [match for file in files if (match := _SHARD.fullmatch(file.name))]
    for digits, total in sorted({(len(shard[1]), shard[2]) for shard in shards}):
        have = {int(shard[1]) for shard in shards if shard[2] == total}
        # A count far beyond the files that are here is listed no further than messages go.
        wanted = range(1, min(int(total), len(have) + MAX_LISTED + 1) + 1)
        if missing := [number for number in wanted if number not in have]:
            names = [f"model-{number:0{digits}}-of-{total}.safetensors" for number in missing]
            raise CheckpointError(
                f"{folder}: {len(have)} of {int(total)} shards are here; missing: "
                f"{listed(names)}; download them again"
            )


def _other_formats(folder: Path) -> str:
    """Say what a folder without safetensors has instead."""
    suffixes = {path.suffix for path in folder.iterdir()} if folder.is_dir() else set()
    if suffixes & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        return (
            ", only pickled weights (.bin, .pt), which can run any code when they are opened and "
            "are never read; take a checkpoint with safetensors"
        )
    if ".gguf" in suffixes:
        return ", only GGUF, which is not supported; take a checkpoint with safetensors"
    return f" and no {INDEX_FILE}; check the path, or download the weights again"
