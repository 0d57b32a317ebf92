"""The model card: what a converted checkpoint is, how it was made, and how good it is.

Every figure comes from the record in the index or from a quality report.  What was not measured is
said to be so.
"""

import json
import re
import shlex
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.config.section import read_json
from mlx_gemma4.convert.plan import describe
from mlx_gemma4.convert.source import ASSISTANT
from mlx_gemma4.errors import CheckpointError
from mlx_gemma4.memory import format_bytes
from mlx_gemma4.weights import INDEX_FILE

if TYPE_CHECKING:
    from jinja2 import Template

CARD_FILE = "README.md"
# Of Google's own cards: https://huggingface.co/google/gemma-4-12B-it
_LICENSE = {
    "license": "apache-2.0",
    "license_link": "https://ai.google.dev/gemma/docs/gemma_4_license",
}
_PIPELINE_TAG = "any-to-any"
_LICENSE_KEYS = ("license", "license_name", "license_link")
_MAX_SOURCE_CARD_BYTES = 1 << 20
_MAX_TEXT = 500
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_TENSOR_KINDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# Heading, key, and form of each figure of a quality report.
_FIGURES = (
    ("positions", "positions", ",d"),
    ("mean KL", "mean_kl", ".5f"),
    ("99.9 % KL", "kl_999", ".5f"),
    ("largest KL", "max_kl", ".5f"),
    ("same top token", "top1_agreement", ".2%"),
    ("perplexity", "perplexity", ".3f"),
    ("the source's", "reference_perplexity", ".3f"),
)


@dataclass(frozen=True)
class ModuleGroup:
    """Modules of one kind that are stored in the same way.

    Attributes:
        modules: Their path, layers as "*".
        count: How many.
        weights: Number of weights in all of them.
        nbytes: Bytes of all of them, scales and biases included.
        settings: Of the quantization; None if they are plain.
        dtype: Of plain ones, in the words of safetensors.
        why: The recipe's reason; empty where no rule decided.
    """

    modules: str
    count: int
    weights: int
    nbytes: int
    settings: QuantizationSettings | None
    dtype: str | None
    why: str

    @property
    def stored_as(self) -> str:
        """How they are stored, as tables show it."""
        if self.settings:
            return describe(self.settings)
        return _TENSOR_KINDS.get(self.dtype or "", self.dtype or "not quantized")


@dataclass(frozen=True)
class ConversionRecord:
    """What the index of a converted checkpoint tells of the conversion.

    Attributes:
        recipe: Its name.
        recipe_sha256: Of the recipe's file.
        recipe_description: One line; empty if the recipe has none.
        learned: How scales were learned before rounding; None if they were not.
        source: The source as it was named: on the Hub, or a folder.
        version: Of mlx-gemma4.
        bits_per_weight: Over all tensors.
        total_size: Bytes of all tensors.
        total_parameters: Number of weights, however they are stored.
        groups: What is stored how.
        is_in_google_names: Whether tensors have the names that transformers knows.
    """

    recipe: str
    recipe_sha256: str
    recipe_description: str
    learned: str | None
    source: str
    version: str
    bits_per_weight: float
    total_size: int
    total_parameters: int
    groups: tuple[ModuleGroup, ...]
    is_in_google_names: bool

    @property
    def is_quantized(self) -> bool:
        """Whether any module is."""
        return any(group.settings for group in self.groups)


def read_record(folder: Path) -> ConversionRecord:
    """Return what a checkpoint's index tells of its conversion.

    Raises:
        CheckpointError: The folder was not made by `convert`, or its index is damaged.
    """
    file = folder / INDEX_FILE
    index = read_json(file) if file.is_file() else {}
    metadata = index.get("metadata")
    conversion = metadata.get("conversion") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(conversion, Mapping):
        raise CheckpointError(
            f"{folder} has no record of a conversion in {INDEX_FILE}: it was not made by "
            "mlx-gemma4 convert; convert the checkpoint that it comes from"
        )
    try:
        return ConversionRecord(
            recipe=str(conversion["recipe"]),
            recipe_sha256=str(conversion["recipe_sha256"]),
            recipe_description=str(conversion.get("recipe_description") or ""),
            learned=str(conversion["learned"]) if conversion.get("learned") else None,
            source=str(conversion["source"]),
            version=str(conversion["version"]),
            bits_per_weight=float(conversion["bits_per_weight"]),
            total_size=int(metadata["total_size"]),
            total_parameters=int(metadata["total_parameters"]),
            groups=tuple(_read_group(row) for row in conversion.get("modules", ())),
            is_in_google_names=any(
                str(name).startswith("model.") for name in index.get("weight_map", ())
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: the record of the conversion is damaged ({type(error).__name__}: {error}); "
            "convert the checkpoint again"
        ) from None


def _read_group(row: Mapping[str, Any]) -> ModuleGroup:
    settings = row["settings"]
    return ModuleGroup(
        modules=str(row["modules"]),
        count=int(row["count"]),
        weights=int(row["weights"]),
        nbytes=int(row["nbytes"]),
        settings=QuantizationSettings(
            group_size=int(settings["group_size"]),
            bits=int(settings["bits"]),
            mode=settings["mode"],
        )
        if settings
        else None,
        dtype=None if row.get("dtype") is None else str(row["dtype"]),
        why=str(row.get("why") or ""),
    )


def write_card(
    folder: Path,
    *,
    source_folder: Path | None = None,
    quality: Mapping[str, Any] | None = None,
) -> str:
    """Write README.md for a converted checkpoint, and return its text.

    Args:
        folder: With the index and config.json of the conversion.
        source_folder: Where the source lies, whose own card may name a license.
        quality: A report against the source: under "kinds", for each kind of prompt and for "all",
            positions, mean_kl, kl_999, max_kl, top1_agreement, perplexity, and
            reference_perplexity; under "prompts" their number.  None: it was not measured.

    Raises:
        CheckpointError: As `read_record`.
    """
    record = read_record(folder)
    config = read_json(folder / "config.json")
    is_drafter = config.get("model_type") == ASSISTANT
    source_header = _read_header(source_folder / CARD_FILE) if source_folder else {}
    is_on_hub = _is_on_hub(record.source, source_folder)
    short_source = Path(record.source).name or record.source
    text = _template().render(
        header=_header(record, source_header, is_on_hub=is_on_hub, is_drafter=is_drafter),
        record=record,
        # A path is nobody's business; its last part is what the folder is called.
        source=record.source if is_on_hub else short_source,
        source_link=f"https://huggingface.co/{record.source}" if is_on_hub else None,
        title=f"{short_source}, {record.recipe}",
        size=format_bytes(record.total_size),
        rules=_rules(record),
        is_drafter=is_drafter,
        takes=_takes(config),
        has_license_of_source="license" in source_header,
        quality=_quality_table(quality) if quality else None,
    )
    part = folder / f"{CARD_FILE}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(folder / CARD_FILE)
    return text


def _header(
    record: ConversionRecord,
    source_header: Mapping[str, Any],
    *,
    is_on_hub: bool,
    is_drafter: bool,
) -> dict[str, str | list[str]]:
    """Return what the Hub reads, in the order in which it is written.

    Source: https://huggingface.co/docs/hub/model-cards, and the cards of google/gemma-4-12B-it
    and mlx-community.
    """
    header: dict[str, str | list[str]] = {}
    own = {key: source_header[key] for key in _LICENSE_KEYS if key in source_header}
    header |= own if "license" in own else _LICENSE
    is_for_transformers = record.is_in_google_names and not record.is_quantized
    header["library_name"] = "transformers" if is_for_transformers else "mlx"
    tag = source_header.get("pipeline_tag") or ("text-generation" if is_drafter else _PIPELINE_TAG)
    header["pipeline_tag"] = tag
    if is_on_hub:
        header["base_model"] = record.source
        if record.is_quantized:
            header["base_model_relation"] = "quantized"
    kinds = {
        f"{group.settings.bits}-bit" if group.settings.mode == "affine" else group.settings.mode
        for group in record.groups
        if group.settings
    }
    quantized = ["quantized", *sorted(kinds)] if record.is_quantized else []
    header["tags"] = ["mlx", "gemma4", "mlx-gemma4", *quantized]
    return header


def _read_header(card: Path) -> dict[str, str]:
    """Return the texts at the top of the header of a card; of one that cannot be read, nothing."""
    try:
        if card.stat().st_size > _MAX_SOURCE_CARD_BYTES:
            return {}
    except OSError:
        return {}
    # It parses YAML; its import takes a third of a second, which most sources need not wait for.
    from huggingface_hub.repocard import metadata_load

    try:
        header = metadata_load(card) or {}
    except Exception:  # YAML's errors, in whichever library reads it
        return {}
    return {key: value for key, value in header.items() if isinstance(value, str) and value}


def _is_on_hub(source: str, source_folder: Path | None) -> bool:
    """Whether a source's name is one on the Hub, and not a folder that looks like one."""
    if not _HUB_NAME.fullmatch(source):
        return False
    if source_folder is None:
        return not Path(source).exists()
    return Path(source).resolve() != source_folder.resolve()


def _takes(config: Mapping[str, Any]) -> str:
    """Return what the model takes, in words."""
    kinds = ["text"]
    kinds += ["pictures", "clips"] if config.get("vision_config") else []
    kinds += ["sounds"] if config.get("audio_config") else []
    return ", ".join(kinds[:-1]) + (" and " if kinds[:-1] else "") + kinds[-1]


def _rules(record: ConversionRecord) -> list[tuple[str, str]]:
    """Return how the recipe stores what, and why: each reason once."""
    rules = {(group.stored_as, group.why): None for group in record.groups if group.why}
    return list(rules)


def _quality_table(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return headings and rows of a quality report; "all" comes last."""
    kinds = quality["kinds"]
    names = [*(name for name in kinds if name != "all"), *(["all"] if "all" in kinds else [])]
    return {
        "headings": [heading for heading, _, _ in _FIGURES],
        "rows": [
            (name, [_figure(kinds[name].get(key), form) for _, key, form in _FIGURES])
            for name in names
        ],
        "num_prompts": quality.get("prompts"),
    }


def _figure(value: float | None, form: str) -> str:
    if value is None:
        return "not measured"
    text = format(value, form)
    return text.replace("%", " %")


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown and YAML, each with its own filter below
    )
    environment.filters |= {
        "cell": lambda text: _code(text).replace(
            "|", "\\|"
        ),  # bars end a table's cell, even in code
        "code": _code,
        "command": lambda text: shlex.quote(_one_line(text)),
        "prose": _prose,
        "size": format_bytes,
        "yaml": _yaml,
    }
    file = resources.files("mlx_gemma4.convert.templates") / "model_card.md.jinja"
    return environment.from_string(file.read_text(encoding="utf-8"))


def _one_line(text: str) -> str:
    """Return a text without anything that ends a line, hides, or turns the direction of writing."""
    shown = "".join(
        "?" if unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" else letter
        for letter in " ".join(text.split())
    )
    return shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 3] + "..."


def _yaml(text: str) -> str:
    """Return a scalar: a JSON string is one in YAML too, whatever it holds."""
    return json.dumps(_one_line(text), ensure_ascii=False)


def _prose(text: str) -> str:
    """Return a text in which Markdown sees nothing but text, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", _one_line(text).replace("&", "&amp;"))


def _code(text: str) -> str:
    """Return a code span, whatever backticks the text has."""
    shown = _one_line(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
