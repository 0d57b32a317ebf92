"""The prompts of tests/data/demo as inputs of the demo checkpoint."""

import json
from pathlib import Path
from typing import Any

from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.processing.processor import Processor

FOLDER = Path(__file__).parent.parent / "data" / "demo"


def demo_prompts() -> list[dict[str, Any]]:
    """Return the stored prompts, each with the ids that transformers generated."""
    return json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))


def inputs_of(processor: Processor, record: dict[str, Any]) -> ModelInputs:
    """Return what the model is given for one of them."""
    options: dict[str, Any] = {key: record[key] for key in ("thinking", "tools") if key in record}
    for kind in ("images", "audio", "videos"):
        if kind in record:
            options[kind] = [FOLDER / name for name in record[kind]]
    return processor(record["prompt"], **options)
