"""Recipes: every shipped one is read and explained; a mistake is named."""

from pathlib import Path

import pytest

from mlx_gemma4.config import QuantizationSettings
from mlx_gemma4.convert.recipe import read_recipe, recipe_names
from mlx_gemma4.errors import OptionError

RULE = '[[modules]]\nmatch = "*"\nkeep = true\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_describes_itself_and_explains_every_rule(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert all(len(rule.why) > 10 for rule in recipe.rules)
    assert recipe.rules[-1].match == "*"


def test_the_recipes_of_the_issue_are_shipped() -> None:
    wanted = {"q4", "q8", "bf16", "mixed-4-8", "mxfp4", "nvfp4", "mxfp8", "qat-q4_0"}
    assert wanted <= set(recipe_names())


def test_no_shipped_recipe_quantizes_a_front_end() -> None:
    for name in recipe_names():
        for path in (
            "vision_embedder.patch_dense",
            "embed_vision.embedding_projection",
            "embed_audio.embedding_projection",
        ):
            rule = read_recipe(name).rule_of(path)
            assert rule is not None
            assert rule.settings is None, (name, path)


def test_the_first_match_wins(tmp_path: Path) -> None:
    text = (
        '[[modules]]\nmatch = "*.v_proj"\nbits = 8\n'
        '[[modules]]\nmatch = "language_model.*"\nmode = "affine"\nbits = 3\ngroup_size = 32\n'
    )
    recipe = read_recipe(write(tmp_path, text + RULE))
    value = recipe.rule_of("language_model.layers.3.self_attn.v_proj")
    other = recipe.rule_of("language_model.layers.3.self_attn.q_proj")
    front = recipe.rule_of("embed_audio.embedding_projection")
    assert value is not None
    assert value.settings == QuantizationSettings(64, 8, "affine")
    assert other is not None
    assert other.settings == QuantizationSettings(32, 3, "affine")
    assert front is not None
    assert front.settings is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1\n" + RULE, "unknown keys: colour; known are description"),
        ('[[modules]]\nmatch = "*"\nbit = 4\n', "unknown keys: bit; known are bits"),
        ('[[modules]]\nmatch = "*"\nbits = 7\n', "bits is 7; allowed are 2, 3, 4, 5, 6, 8"),
        ('[[modules]]\nmatch = "*"\nbits = true\n', "bits is True"),
        ('[[modules]]\nmatch = "*"\nmode = "mxfp4"\nbits = 8\n', "bits is 8; allowed are 4"),
        ('[[modules]]\nmatch = "*"\ngroup_size = 48\nbits = 4\n', "group_size is 48"),
        ('[[modules]]\nmatch = "*"\nmode = "q4"\n', "mode is 'q4'; allowed are affine, mxfp4"),
        ('[[modules]]\nmatch = "*"\nkeep = true\nbits = 4\n', "keep and bits exclude each other"),
        ('[[modules]]\nmatch = "*"\ngrid = "q4_0"\nbits = 4\n', "grid and bits exclude"),
        ('[[modules]]\nmatch = "*"\ngrid = "q5_0"\n', "grid is 'q5_0'; allowed are q4_0"),
        ('[[modules]]\nmatch = "*"\n', "say keep = true, or mode"),
        ("[[modules]]\nbits = 4\n", "match is None"),
        ('names = "google"\n[[modules]]\nmatch = "*"\nbits = 4\n', "bfloat16 alone"),
        ('names = "gguf"\n' + RULE, "names is 'gguf'; allowed are google, mlx"),
        ("description = 3\n" + RULE, "description is 3"),
        ('description = "no rule"\n', "at least one [[modules]] table"),
        ("modules = 4\n", "at least one [[modules]] table"),
        ("this is no TOML", "is not TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as error:
        read_recipe(write(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value).strip() or "TOML" in message


@pytest.mark.parametrize("name", ["q5", "no/such.toml", "", "x" * 5000, "a\0b"])
def test_an_unknown_recipe_lists_those_that_there_are(name: str) -> None:
    with pytest.raises(OptionError, match=r"shipped are bf16, .*q4.* or pass the path"):
        read_recipe(name)
