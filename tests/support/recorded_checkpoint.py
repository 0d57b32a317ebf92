"""A folder that looks converted: an index with a record, and files without meaning."""

import json
from pathlib import Path
from typing import Any

Q4 = {"group_size": 64, "bits": 4, "mode": "affine"}
Q8 = {"group_size": 64, "bits": 8, "mode": "affine"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
MODULES: list[dict[str, Any]] = [
    {
        "modules": "language_model.embed_tokens",
        "count": 1,
        "weights": 1_006_632_960,
        "settings": Q8,
        "dtype": None,
        "nbytes": 1_069_547_520,
        "why": "The embedding is the output head too.",
    },
    {
        "modules": "language_model.layers.*.mlp.down_proj",
        "count": 48,
        "weights": 2_831_155_200,
        "settings": Q4,
        "dtype": None,
        "nbytes": 1_592_524_800,
        "why": "The rest.",
    },
    {
        "modules": "norms, biases, and tables",
        "count": 337,
        "weights": 741_168,
        "settings": None,
        "dtype": "BF16",
        "nbytes": 1_482_336,
        "why": "",
    },
]


def build_record(**changes: Any) -> dict[str, Any]:
    """Return what an index tells of a conversion; None as a value removes a key."""
    record: dict[str, Any] = {
        "recipe": "mixed-4-8",
        "recipe_sha256": "0123456789abcdef" * 4,
        "recipe_description": "4-bit, and 8 bits where it matters",
        "learned": None,
        "source": "google/gemma-4-12B-it",
        "version": "0.1.0",
        "bits_per_weight": 5.5512,
        "modules": MODULES,
        "settings": {},
    } | changes
    return {key: value for key, value in record.items() if value is not None or key == "learned"}


def write_recorded(folder: Path, *, prefix: str = "language_model.model.", **changes: Any) -> Path:
    """Write config.json, index, two shards, tokenizer, and a card; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "gemma4_unified", "vision_config": {"x": 1}, "audio_config": {"x": 1}}
    weight_map = {f"{prefix}layers.{k}.mlp.up_proj.weight": shard for k, shard in enumerate(SHARDS)}
    index = {
        "metadata": {
            "total_size": 2_663_554_656,
            "total_parameters": 3_838_529_328,
            "conversion": build_record(**changes),
            "sha256": dict.fromkeys(weight_map, "00" * 32),
        },
        "weight_map": weight_map,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A card\n", "utf-8")
    for number, shard in enumerate(SHARDS):
        (folder / shard).write_bytes(bytes([number]) * 300_000)
    return folder
