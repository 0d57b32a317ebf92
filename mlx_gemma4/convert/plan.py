"""ConversionPlan: what every tensor becomes, and in which file it will stand, before any is read.

Shapes decide sizes, so headers and offsets of all output files are known before the first byte is
written.  That is what lets rows go straight to their place, and an interrupted run go on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.convert.recipe import Names, Recipe, Rule
from mlx_gemma4.convert.source import Source
from mlx_gemma4.errors import OptionError
from mlx_gemma4.weights import INDEX_FILE, SINGLE_FILE, StoredTensor
from mlx_gemma4.weights.header import ITEM_BYTES

SHARD_BYTES = 1 << 30
# Matrices that a checkpoint may lack: a recipe may name them all the same.
_FRONT_END_MATRICES = (
    "vision_embedder.patch_dense",
    "embed_vision.embedding_projection",
    "embed_audio.embedding_projection",
)
# A drafter has no front ends, and reads the keys and values of the model.
_NOT_IN_ASSISTANT = (
    *_FRONT_END_MATRICES,
    "language_model.layers.0.self_attn.k_proj",
    "language_model.layers.0.self_attn.v_proj",
)
_QUANTIZED_PARTS = ("weight", "scales", "biases")


@dataclass(frozen=True)
class OutputTensor:
    """A tensor as its file will describe it; dtype in the words of safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class PlannedParameter:
    """One parameter of the model, from what is stored to what will be.

    Attributes:
        name: Canonical; that of the weight if it is quantized, before or after.
        stored: By part: "weight", and "scales" and "biases" where the source is quantized.
        stored_settings: None where the source is plain.
        settings: None where the output is plain.
        rule: Of the recipe that decided; None where none matched, or where it is no matrix.
        parts: What is written, by part.
    """

    name: str
    stored: Mapping[str, StoredTensor]
    stored_settings: QuantizationSettings | None
    settings: QuantizationSettings | None
    rule: Rule | None
    parts: Mapping[str, OutputTensor]

    @property
    def path(self) -> str:
        """Canonical path of the module, for a matrix."""
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter, whatever it is stored as."""
        shape = self.stored["weight"].shape
        if self.stored_settings is None:
            return shape
        return (shape[0], shape[1] * 32 // self.stored_settings.bits)

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def source_bytes(self) -> int:
        """Bytes to read."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def nbytes(self) -> int:
        """Bytes to write."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def is_copied(self) -> bool:
        """Whether its bytes go over as they are."""
        same = self.stored.keys() == self.parts.keys() and all(
            self.parts[part].dtype == tensor.dtype for part, tensor in self.stored.items()
        )
        return same and self.stored_settings == self.settings


@dataclass(frozen=True)
class Shard:
    """One output file."""

    file: str
    parameters: tuple[PlannedParameter, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(parameter.nbytes for parameter in self.parameters)

    def tensors(self) -> list[OutputTensor]:
        """Return its tensors in file order: wide items first, so that all are aligned."""
        tensors = [part for parameter in self.parameters for part in parameter.parts.values()]
        return sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype])


@dataclass(frozen=True)
class ConversionPlan:
    """A recipe applied to a source."""

    source: Source
    recipe: Recipe
    shards: tuple[Shard, ...]

    def parameters(self) -> Iterator[PlannedParameter]:
        """Yield all parameters in the order in which they are written."""
        for shard in self.shards:
            yield from shard.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def source_bytes(self) -> int:
        """Bytes to read."""
        return sum(parameter.source_bytes for parameter in self.parameters())

    @property
    def num_weights(self) -> int:
        """Number of weights, however they are stored."""
        return sum(parameter.count for parameter in self.parameters())

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over the number of weights: scales and front ends included."""
        return 8 * self.nbytes / self.num_weights

    def groups(self) -> list[dict[str, Any]]:
        """Return one row for each rule and kind of module: what the tables show.

        Each has `modules` (layers as "*"), `count`, `weights`, `settings` (None if plain), `dtype`
        of a plain one, `nbytes`, and `why`.
        """
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for parameter in self.parameters():
            kind = ".".join("*" if part.isdigit() else part for part in parameter.path.split("."))
            if parameter.rule is None and parameter.settings is None:
                kind = "norms, biases, and tables"
            dtype = None if parameter.settings else parameter.parts["weight"].dtype
            key = (kind, parameter.settings, dtype)
            row = rows.setdefault(
                key,
                {
                    "modules": kind,
                    "count": 0,
                    "weights": 0,
                    "settings": parameter.settings,
                    "dtype": dtype,
                    "nbytes": 0,
                    "why": parameter.rule.why if parameter.rule else "",
                },
            )
            row["count"] += 1
            row["weights"] += parameter.count
            row["nbytes"] += parameter.nbytes
        return list(rows.values())

    def config(self) -> dict[str, Any]:
        """Return config.json: the source's, and how the weights are stored now.

        The form is that of mlx-lm: defaults, then the modules that differ, by the names that the
        files use.  A module without scales is plain, which readers see by themselves.
        """
        config = {
            key: value
            for key, value in self.source.config.items()
            if key not in ("quantization", "quantization_config")
        }
        dtypes = {part.dtype for p in self.parameters() for part in p.parts.values()}
        if "BF16" in dtypes and "F32" not in dtypes:
            config["dtype"] = "bfloat16"
        settings = {p.path: p.settings for p in self.parameters() if p.settings}
        if not settings:
            return config
        weights = {
            choice: sum(p.count for p in self.parameters() if p.settings == choice)
            for choice in settings.values()
        }
        default = max(weights, key=lambda choice: (weights[choice], choice.bits))
        quantization: dict[str, Any] = _as_json(default)
        for path, choice in settings.items():
            if choice != default:
                quantization[output_name(path, self.recipe.names, self.source)] = _as_json(choice)
        config["quantization"] = quantization
        config["quantization_config"] = quantization  # where transformers and the Hub look
        return config


def plan_conversion(
    source: Source,
    recipe: Recipe,
    *,
    scale_dtypes: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ConversionPlan:
    """Apply a recipe to a checkpoint.

    Args:
        source: What is there.
        recipe: What it becomes.
        scale_dtypes: Dtype of the scales of matrices on a grid, by path, once they are known.
        shard_bytes: Bound of an output file; a larger parameter has one of its own.

    Raises:
        OptionError: A pattern matches nothing, a matrix does not fit its rule, or the source is
            quantized already.
    """
    _check_patterns(source, recipe)
    parameters = [
        _plan_parameter(
            source, recipe, name, (scale_dtypes or {}).get(name.removesuffix(".weight"))
        )
        for name in source.tensors
        if not _is_part_of_quantized(source, name)
    ]
    parameters.sort(key=lambda p: (p.stored["weight"].file, p.stored["weight"].offset))
    if source.quantization and all(parameter.is_copied for parameter in parameters):
        raise OptionError(
            f"{source.name} is already what {recipe.name} makes of it; nothing is left to convert"
        )
    return ConversionPlan(source, recipe, _make_shards(parameters, shard_bytes))


def output_name(name: str, names: Names, source: Source) -> str:
    """Return the name in the output of a canonical parameter or module."""
    decoder = "language_model."
    if source.is_assistant:
        return f"model.{name.removeprefix(decoder)}" if name.startswith(decoder) else name
    if names == "google":
        return f"model.{name}"
    return f"{decoder}model.{name.removeprefix(decoder)}" if name.startswith(decoder) else name


def _check_patterns(source: Source, recipe: Recipe) -> None:
    """Refuse a pattern that matches no matrix, or only those that earlier ones have taken."""
    present = source.matrices()
    absent = _NOT_IN_ASSISTANT if source.is_assistant else _FRONT_END_MATRICES
    matrices = {*present, *absent}
    reached = {recipe.rule_of(path) for path in matrices}
    for rule in recipe.rules:
        if rule in reached:
            continue
        if any(fnmatchcase(path, rule.match) for path in matrices):
            what = "matches only what earlier patterns have taken; move it up, or remove it"
        else:
            kinds = sorted(
                {".".join("*" if p.isdigit() else p for p in path.split(".")) for path in present}
            )
            what = f"matches no matrix; there are {', '.join(kinds)}"
        raise OptionError(f"recipe {recipe.name}: the pattern {rule.match!r} {what}")


def _is_part_of_quantized(source: Source, name: str) -> bool:
    """Whether a tensor is scales or biases of a quantized matrix."""
    path, _, part = name.rpartition(".")
    return path in source.quantization and part in ("scales", "biases")


def _plan_parameter(
    source: Source, recipe: Recipe, name: str, scale_dtype: str | None
) -> PlannedParameter:
    path = name.removesuffix(".weight")
    stored_settings = source.quantization.get(path)
    stored = {"weight": source.tensors[name]}
    if stored_settings is not None:
        for part in _QUANTIZED_PARTS[1:]:
            if (key := f"{path}.{part}") in source.tensors:
                stored[part] = source.tensors[key]
    is_matrix = name.endswith(".weight") and len(stored["weight"].shape) == 2
    rule = recipe.rule_of(path) if is_matrix else None
    settings = rule.settings if rule else None
    if settings and stored_settings and stored_settings != settings:
        raise OptionError(
            f"{source.name} is already quantized ({path}: {describe(stored_settings)}), and "
            f"{recipe.name} wants {describe(settings)}; rounding twice loses twice: convert the "
            "bfloat16 checkpoint instead"
        )
    output = output_name(name, recipe.names, source)
    plain = PlannedParameter(name, stored, stored_settings, None, rule, {})
    if settings is None:
        dtype = "BF16" if stored_settings or stored["weight"].dtype == "F32" else None
        tensor = OutputTensor(output, dtype or stored["weight"].dtype, plain.shape)
        return PlannedParameter(name, stored, stored_settings, None, rule, {"weight": tensor})
    rows, columns = plain.shape
    if columns % settings.group_size:
        raise OptionError(
            f"recipe {recipe.name}: {path} has rows of {columns}, which groups of "
            f"{settings.group_size} do not divide; take a smaller group, or keep = true"
        )
    parts = {"weight": OutputTensor(output, "U32", (rows, columns * settings.bits // 32))}
    groups = (rows, columns // settings.group_size)
    prefix = output.removesuffix(".weight")
    if settings.mode == "affine":
        floats = stored["scales"].dtype if stored_settings else stored["weight"].dtype
        is_rounded = floats == "F32" and stored_settings is None
        floats = scale_dtype or ("BF16" if is_rounded else floats)
        parts["scales"] = OutputTensor(f"{prefix}.scales", floats, groups)
        parts["biases"] = OutputTensor(f"{prefix}.biases", floats, groups)
    else:
        parts["scales"] = OutputTensor(f"{prefix}.scales", "U8", groups)
    return PlannedParameter(name, stored, stored_settings, settings, rule, parts)


def describe(settings: QuantizationSettings | None) -> str:
    """Return settings as messages and tables show them."""
    if settings is None:
        return "not quantized"
    mode = f"{settings.bits}-bit" if settings.mode == "affine" else settings.mode
    return f"{mode} in groups of {settings.group_size}"


def _as_json(settings: QuantizationSettings) -> dict[str, Any]:
    return {"group_size": settings.group_size, "bits": settings.bits, "mode": settings.mode}


def _make_shards(parameters: Sequence[PlannedParameter], shard_bytes: int) -> tuple[Shard, ...]:
    groups: list[list[PlannedParameter]] = [[]]
    size = 0
    for parameter in parameters:
        if groups[-1] and size + parameter.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    if len(groups) == 1:
        return (Shard(SINGLE_FILE, tuple(groups[0])),)
    return tuple(
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    )


def index_of(
    plan: ConversionPlan, sha256: Mapping[str, str], conversion: Mapping[str, Any]
) -> dict[str, Any]:
    """Return model.safetensors.index.json, in which every tensor has its checksum."""
    weight_map = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors()}
    return {
        "metadata": {
            "total_size": plan.nbytes,
            "total_parameters": plan.num_weights,
            "conversion": dict(conversion),
            "sha256": dict(sorted(sha256.items())),
        },
        "weight_map": dict(sorted(weight_map.items())),
    }


__all__ = [
    "INDEX_FILE",
    "SHARD_BYTES",
    "ConversionPlan",
    "OutputTensor",
    "PlannedParameter",
    "Shard",
    "describe",
    "index_of",
    "output_name",
    "plan_conversion",
]
