"""Source: a checkpoint to convert, the model itself or its drafter."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_gemma4.config import FULL_ATTENTION, Config, QuantizationSettings
from mlx_gemma4.config.quantization import read_quantization
from mlx_gemma4.config.section import Section, read_json
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.weights import StoredTensor, open_checkpoint
from mlx_gemma4.weights.checkpoint import check_tensors, read_headers

ASSISTANT = "gemma4_unified_assistant"

# What goes along unchanged; the card and config.json are written anew.
COPIED_FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_MATRIX = 2


@dataclass(frozen=True)
class Source:
    """A checkpoint whose headers fit its config.

    Attributes:
        name: As the user gave it.
        folder: Where it lies.
        config: All of config.json.
        tensors: By canonical name.
        quantization: Of each module that is stored quantized, by canonical path.
        notes: What was left out: one line each.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    quantization: Mapping[str, QuantizationSettings]
    notes: tuple[str, ...] = ()

    @property
    def is_assistant(self) -> bool:
        """Whether this is a drafter, whose tensors keep the names that they have."""
        return self.config.get("model_type") == ASSISTANT

    @property
    def files(self) -> list[Path]:
        """The files with tensors."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    @property
    def disk_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def matrices(self) -> list[str]:
        """Return the canonical paths of the modules that have a matrix."""
        return [
            name.removesuffix(".weight")
            for name, tensor in self.tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == _MATRIX
        ]


def open_source(folder: Path, name: str | None = None) -> Source:
    """Check a checkpoint's config and headers; no tensor is read.

    Raises:
        CheckpointError: As `open_checkpoint`; ConfigError if the fault is in a config.
    """
    name = str(folder) if name is None else name
    document = _read_document(folder)
    if document.get("model_type") == ASSISTANT:
        return _open_assistant(folder, name, document)
    config = Config.from_folder(folder)
    checkpoint = open_checkpoint(folder, config)
    return Source(
        name,
        folder,
        document,
        checkpoint.tensors,
        checkpoint.quantization,
        checkpoint.notes,
    )


def check_config(folder: Path) -> None:
    """Refuse a config.json of what cannot be converted; no weights need to be there yet.

    Raises:
        ConfigError: It is of neither the model nor its drafter, or has an impossible value.
    """
    document = _read_document(folder)
    if document.get("model_type") == ASSISTANT:
        expected_assistant(folder, document)
    else:
        Config.from_folder(folder)


def check_tokenizer(source: Source) -> None:
    """Refuse a model without its tokenizer: what is made of it could not be asked anything.

    Raises:
        CheckpointError: There is no tokenizer.json; a drafter needs none.
    """
    if not source.is_assistant and not (source.folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{source.folder} has no tokenizer.json, which goes into the conversion; it must stand "
            "beside config.json; fetch the checkpoint again"
        )


def assistant_name(name: str) -> str:
    """Return a drafter's parameter or module, as its file calls it, among the model's paths.

    Its decoder is "language_model", so that a recipe's patterns mean the same in both; the two
    projections, to and from the model's states, stand beside it.
    """
    return f"language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return dict(read_json(path)) if path.is_file() else {}


def _open_assistant(folder: Path, name: str, document: dict[str, Any]) -> Source:
    """Check a drafter against its config; its layers read the keys and values of the model."""
    shapes = expected_assistant(folder, document)
    config = read_quantization(Section(document, "", str(folder / "config.json")))
    if config is not None:
        overrides = {assistant_name(path): choice for path, choice in config.overrides.items()}
        config = replace(config, overrides=overrides)
    tensors = {assistant_name(key): tensor for key, tensor in read_headers(folder).items()}
    return Source(name, folder, document, tensors, check_tensors(folder, shapes, config, tensors))


def expected_assistant(folder: Path, document: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a drafter, by the names of `assistant_name`.

    Source: transformers modeling_gemma4_unified_assistant.py; Google's file has these 48 tensors.
    """
    top = Section(document, "", str(folder / "config.json"))
    text = top.section("text_config")
    if text is None:
        raise top.missing("text_config")
    backbone = top.integer("backbone_hidden_size")
    D = text.integer("hidden_size")
    width = text.integer("intermediate_size")
    heads = text.integer("num_attention_heads")
    layer_types = text.get("layer_types")
    if not isinstance(layer_types, list) or not layer_types:
        raise text.error("layer_types", layer_types, "it must list the type of each layer")
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.embed_tokens.weight": (text.integer("vocab_size"), D),
        "language_model.norm.weight": (D,),
        "pre_projection.weight": (D, 2 * backbone),
        "post_projection.weight": (backbone, D),
    }
    for index, layer_type in enumerate(layer_types):
        key = "global_head_dim" if layer_type == FULL_ATTENTION else "head_dim"
        head_dim = text.integer(key)
        layer = f"language_model.layers.{index}"
        shapes[f"{layer}.layer_scalar"] = (1,)
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            shapes[f"{layer}.{norm}.weight"] = (D,)
        shapes[f"{layer}.self_attn.q_proj.weight"] = (heads * head_dim, D)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (D, heads * head_dim)
        shapes[f"{layer}.self_attn.q_norm.weight"] = (head_dim,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (width, D)
        shapes[f"{layer}.mlp.up_proj.weight"] = (width, D)
        shapes[f"{layer}.mlp.down_proj.weight"] = (D, width)
    return shapes
