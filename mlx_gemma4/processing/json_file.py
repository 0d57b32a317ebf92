"""JSON files of a checkpoint that stand beside config.json."""

import json
from pathlib import Path
from typing import Any

from mlx_gemma4.errors import CheckpointError

_MAX_BYTES = 16 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file.

    Raises:
        CheckpointError: It cannot be read, or holds something else; the file is named.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes; at most {_MAX_BYTES:,} are read; fetch it again"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return content
