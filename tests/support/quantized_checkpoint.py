"""A checkpoint quantized as MLX's converters write it, in their names."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import mlx.core as mx


def write_quantized(
    source: Path, target: Path, *, bits: int, group_size: int = 64, mode: str = "affine"
) -> Path:
    """Quantize the decoder's matrices and the embedding; return the folder."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja"):
            shutil.copy(path, target)
    arrays = cast(dict[str, mx.array], mx.load(str(source / "model.safetensors")))
    written: dict[str, mx.array] = {}
    for name, array in arrays.items():
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        if name.startswith("language_model.") and array.ndim == 2:
            parts = mx.quantize(array, group_size=group_size, bits=bits, mode=mode)
            module = name.removesuffix(".weight")
            for part, of_part in zip(("weight", "scales", "biases"), parts, strict=False):
                written[f"{module}.{part}"] = of_part
        else:
            written[name] = array
    mx.save_safetensors(str(target / "model.safetensors"), written)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization"] = {"group_size": group_size, "bits": bits, "mode": mode}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target
