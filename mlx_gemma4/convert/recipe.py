"""Recipes: which matrix is stored how, as TOML that people edit without touching Python."""

import difflib
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from mlx_gemma4.config import QUANTIZATION_MODES, QuantizationSettings
from mlx_gemma4.errors import OptionError

Names = Literal["mlx", "google"]
Learned = Literal["awq"]

# In a checkout this is convert/recipes at the top; see pyproject.toml.
_FOLDER = Path(str(resources.files("mlx_gemma4.convert.recipes")))
_MAX_BYTES = 1 << 20
_TOP_KEYS = {"description", "names", "learned", "modules"}
_RULE_KEYS = {"match", "mode", "bits", "group_size", "grid", "keep", "why"}


@dataclass(frozen=True)
class Rule:
    """What happens to the matrices that a pattern matches.

    Attributes:
        match: Pattern over module paths, such as "language_model.layers.*.mlp.down_proj"; "*" goes
            across dots.
        settings: Of the quantization; None keeps the matrix in floating point.
        grid: "q4_0": the matrix lies on that grid, and is taken over without loss.
        why: The reason, for the model card.
    """

    match: str
    settings: QuantizationSettings | None
    grid: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is stored.

    Attributes:
        name: Of the file, without ".toml".
        description: One line.
        rules: The first that matches a matrix decides; one that no rule matches stays as it is.
        names: Tensor names to write: those of mlx-community's checkpoints, or Google's.
        learned: How scales are learned from calibration prompts before rounding, if they are.
        text: The file's content, which a conversion that is resumed must have in common.
    """

    name: str
    description: str
    rules: tuple[Rule, ...]
    names: Names
    learned: Learned | None
    text: str

    def rule_of(self, path: str) -> Rule | None:
        """Return the first rule that matches a matrix, by its module's canonical path."""
        return next((rule for rule in self.rules if fnmatchcase(path, rule.match)), None)

    @property
    def is_quantizing(self) -> bool:
        """Whether any matrix is quantized."""
        return any(rule.settings for rule in self.rules)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_recipe(name: str | Path) -> Recipe:
    """Return a shipped recipe by its name, or one from a file.

    Raises:
        OptionError: There is none, or something in it is not allowed; the message names the key.
    """
    path = _FOLDER / f"{name}.toml" if str(name) in recipe_names() else Path(name).expanduser()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise OptionError(f"{path} is too large for a recipe, which is a page of TOML")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        near = difflib.get_close_matches(str(name).lower(), recipe_names(), 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise OptionError(
            f"there is no recipe {str(name)!r}; {meant}shipped are {', '.join(recipe_names())}; or "
            "pass the path of a .toml file"
        ) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{path} is not TOML: {error}") from None
    return _read_document(path, document, text)


def _read_document(path: Path, document: dict[str, Any], text: str) -> Recipe:
    _check_keys(f"{path}", document, _TOP_KEYS)
    rules = document.get("modules")
    if not isinstance(rules, list) or not rules or not all(isinstance(r, dict) for r in rules):
        raise OptionError(f"{path}: a recipe needs at least one [[modules]] table")
    names = _choice(f"{path}: names", document.get("names", "mlx"), ("mlx", "google"))
    learned = document.get("learned")
    if learned is not None:
        learned = _choice(f"{path}: learned", learned, ("awq",))
    description = document.get("description", "")
    if not isinstance(description, str):
        raise OptionError(f"{path}: description is {description!r}; allowed is a text")
    recipe = Recipe(
        name=path.stem,
        description=description,
        rules=tuple(_read_rule(f"{path}: modules[{k}]", rule) for k, rule in enumerate(rules)),
        names=names,
        learned=learned,
        text=text,
    )
    if recipe.names == "google" and recipe.is_quantizing:
        raise OptionError(
            f'{path}: names = "google" is for bfloat16 alone: nothing that reads Google\'s names '
            'reads quantized weights under them; use names = "mlx"'
        )
    return recipe


def _read_rule(where: str, values: dict[str, Any]) -> Rule:
    _check_keys(where, values, _RULE_KEYS)
    match, why = values.get("match"), values.get("why", "")
    if not isinstance(match, str) or not match:
        raise OptionError(f"{where}: match is {match!r}; allowed is a pattern of module paths")
    if not isinstance(why, str):
        raise OptionError(f"{where}: why is {why!r}; allowed is a text")
    keep = values.get("keep", False)
    if not isinstance(keep, bool):
        raise OptionError(f"{where}: keep is {keep!r}; allowed are true and false")
    quantizing = sorted(values.keys() & {"mode", "bits", "group_size", "grid"})
    if keep and quantizing:
        raise OptionError(f"{where}: keep and {', '.join(quantizing)} exclude each other")
    if keep:
        return Rule(match, None, why=why)
    if not quantizing:
        raise OptionError(f"{where}: say keep = true, or mode, bits, and group_size")
    grid = values.get("grid")
    if grid is not None:
        _choice(f"{where}: grid", grid, ("q4_0",))
        if others := [key for key in quantizing if key != "grid"]:
            raise OptionError(
                f"{where}: grid and {', '.join(others)} exclude each other: the grid says it all"
            )
        return Rule(match, QuantizationSettings(32, 4, "affine"), grid, why)
    mode = _choice(f"{where}: mode", values.get("mode", "affine"), tuple(QUANTIZATION_MODES))
    all_bits, group_sizes = QUANTIZATION_MODES[mode]
    bits = _choice(f"{where}: bits", values.get("bits", all_bits[0]), all_bits)
    group_size = _choice(
        f"{where}: group_size", values.get("group_size", group_sizes[0]), group_sizes
    )
    return Rule(match, QuantizationSettings(group_size, bits, mode), why=why)


def _choice(where: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or value not in allowed:
        shown = ", ".join(str(choice) for choice in sorted(allowed))
        raise OptionError(f"{where} is {value!r}; allowed are {shown}")
    return value


def _check_keys(where: str, values: dict[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(values.keys() - allowed):
        raise OptionError(
            f"{where} has unknown keys: {', '.join(unknown)}; known are "
            f"{', '.join(sorted(allowed))}"
        )
