"""write_card(): a header that the Hub reads, and no figure that is not in the record."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from recorded_checkpoint import MODULES, Q4, build_record, write_recorded

from mlx_gemma4.convert.card import read_record, write_card
from mlx_gemma4.errors import CheckpointError

FIGURES = {
    "positions": 1234,
    "mean_kl": 0.01234,
    "kl_999": 0.98765,
    "max_kl": 3.25,
    "top1_agreement": 0.9712,
    "perplexity": 9.125,
    "reference_perplexity": 8.875,
}
QUALITY = {"kinds": {"all": FIGURES, "text": FIGURES | {"mean_kl": 0.5}}, "prompts": 41}


def header_of(card: str) -> dict[str, Any]:
    """Return the header as the Hub's own library reads it."""
    return ModelCard(card).data.to_dict()


def rows_of(card: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first heading this is; an escaped bar is no border."""
    lines = card.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in [lines[start], *lines[start + 2 :]]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_the_header_has_what_the_hub_wants(tmp_path: Path) -> None:
    card = write_card(write_recorded(tmp_path))
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card
    assert header_of(card) == {
        "license": "apache-2.0",
        "license_link": "https://ai.google.dev/gemma/docs/gemma_4_license",
        "library_name": "mlx",
        "pipeline_tag": "any-to-any",
        "base_model": "google/gemma-4-12B-it",
        "base_model_relation": "quantized",
        "tags": ["mlx", "gemma4", "mlx-gemma4", "quantized", "4-bit", "8-bit"],
    }
    assert "[google/gemma-4-12B-it](https://huggingface.co/google/gemma-4-12B-it)" in card


def test_the_table_is_the_record(tmp_path: Path) -> None:
    rows = rows_of(write_card(write_recorded(tmp_path)), "modules")
    assert rows == [
        ["modules", "stored as", "number", "weights", "size", "bits per weight"],
        [
            "`language_model.embed_tokens`",
            "8-bit in groups of 64",
            "1",
            "1,006,632,960",
            "1.1 GB",
            "8.50",
        ],
        [
            "`language_model.layers.*.mlp.down_proj`",
            "4-bit in groups of 64",
            "48",
            "2,831,155,200",
            "1.6 GB",
            "4.50",
        ],
        ["norms, biases, and tables", "bfloat16", "337", "741,168", "1.5 MB", "16.00"],
    ]


def test_how_it_was_made(tmp_path: Path) -> None:
    card = write_card(write_recorded(tmp_path))
    assert "\nmlx-gemma4 convert google/gemma-4-12B-it --recipe mixed-4-8\n" in card
    assert "mlx-gemma4 0.1.0" in card
    assert "`0123456789ab`" in card
    assert "* 8-bit in groups of 64: The embedding is the output head too.\n" in card
    assert "* 4-bit in groups of 64: The rest.\n" in card
    assert "| bits per weight, over everything | 5.55 |" in card
    assert "| size | 2.7 GB |" in card
    assert "| weights | 3,838,529,328 |" in card
    assert "calibration" not in card
    learned = write_card(write_recorded(tmp_path, learned="awq"))
    assert "learned from calibration prompts before rounding (awq)" in learned


def test_quality_is_the_report(tmp_path: Path) -> None:
    card = write_card(write_recorded(tmp_path), quality=QUALITY)
    figures = ["0.98765", "3.25000", "97.12 %", "9.125", "8.875"]
    assert rows_of(card, "prompts")[1:] == [
        ["text", "1,234", "0.50000", *figures],
        ["all", "1,234", "0.01234", *figures],
    ]
    assert "on 41 prompts" in card
    assert "not measured" not in card


def test_a_figure_that_the_report_lacks_is_said_to_be_missing(tmp_path: Path) -> None:
    kinds = {"all": FIGURES | {"perplexity": None}}
    card = write_card(write_recorded(tmp_path), quality={"kinds": kinds})
    assert rows_of(card, "prompts")[1][-2:] == ["not measured", "8.875"]


def test_without_a_report_there_is_no_figure_but_the_command(tmp_path: Path) -> None:
    card = write_card(write_recorded(tmp_path))
    quality = card.partition("## Quality")[2].partition("## How to run it")[0]
    assert "Quality was not measured." in quality
    assert "mlx-gemma4 evaluate MODEL --against google/gemma-4-12B-it" in quality
    assert not re.search(r"\d+\.\d+", quality)


def test_how_to_run(tmp_path: Path) -> None:
    card = write_card(write_recorded(tmp_path))
    assert "It takes text, pictures, clips and sounds, and answers in text." in card
    for command in ("mlx-gemma4 generate", "mlx_vlm.generate", "mlx_lm.generate"):
        assert f"\n{command} --model MODEL " in card
    (tmp_path / "config.json").write_text('{"vision_config": null}', encoding="utf-8")
    text_alone = write_card(tmp_path)
    assert "It takes text, and answers in text." in text_alone
    assert "--image" not in text_alone


def test_googles_names_are_for_transformers(tmp_path: Path) -> None:
    plain = [row | {"settings": None, "dtype": "BF16"} for row in MODULES]
    write_recorded(tmp_path, prefix="model.language_model.", modules=plain, recipe="bf16")
    card = write_card(tmp_path)
    header = header_of(card)
    assert header["library_name"] == "transformers"
    assert "quantized" not in header["tags"]
    assert "base_model_relation" not in header
    assert "from transformers import" in card
    assert "mlx_lm" not in card


def test_a_drafter_is_called_one(tmp_path: Path) -> None:
    write_recorded(tmp_path, prefix="model.")
    (tmp_path / "config.json").write_text('{"model_type": "gemma4_unified_assistant"}')
    card = write_card(tmp_path)
    assert "This is a drafter" in card
    assert "How to run it" not in card
    assert header_of(card)["pipeline_tag"] == "text-generation"
    assert header_of(card)["library_name"] == "mlx"


@pytest.mark.parametrize("source", ["demo", "{}/gemma-4-12B-it", "./gemma-4-12B-it"])
def test_a_folder_is_no_base_model_and_its_path_is_not_told(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "private" / "gemma-4-12B-it"
    folder.mkdir(parents=True)
    named = source.format(folder.parent)
    card = write_card(write_recorded(tmp_path / "out", source=named), source_folder=folder)
    assert "base_model" not in header_of(card)
    assert "private" not in card
    assert f"mlx-gemma4 convert {Path(named).name} --recipe" in card


def test_a_folder_with_a_name_as_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "google" / "gemma-4-12B-it"
    folder.mkdir(parents=True)
    card = write_card(write_recorded(tmp_path / "out"), source_folder=folder)
    assert "base_model" not in header_of(card)
    # The Hub's cache is elsewhere, whatever lies here.
    card = write_card(tmp_path / "out", source_folder=tmp_path / "cache")
    assert header_of(card)["base_model"] == "google/gemma-4-12B-it"


def test_the_license_is_the_sources(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: https://example.org\n"
        "pipeline_tag: image-text-to-text\ntags:\n- x\nbase_model: somebody/else\n---\n# Mine\n"
    )
    card = write_card(write_recorded(tmp_path / "out"), source_folder=source)
    header = header_of(card)
    assert [header[key] for key in ("license", "license_name", "license_link")] == [
        "other",
        "mine",
        "https://example.org",
    ]
    assert header["pipeline_tag"] == "image-text-to-text"
    assert header["base_model"] == "google/gemma-4-12B-it"
    assert "source's model card names, `other`" in card


@pytest.mark.parametrize(
    "readme",
    ["no header", "---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: [a]\n---\n", "\xff"],
)
def test_a_source_card_that_says_nothing_of_licenses(readme: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text(readme, encoding="latin-1")
    card = write_card(write_recorded(tmp_path / "out"), source_folder=tmp_path / "source")
    assert header_of(card)["license"] == "apache-2.0"
    assert "no model card here that names another license" in card


HOSTILE = "a\"b\\c'd: [e](f) <script>|`x``y`*_#\n---\nlicense: mit\n{{ 7*7 }}\u202e\x85\x00$HOME"


def test_texts_of_strangers_stay_texts(tmp_path: Path) -> None:
    rows = [row | {"why": HOSTILE, "modules": f"a.{HOSTILE}", "dtype": HOSTILE} for row in MODULES]
    write_recorded(
        tmp_path,
        source=HOSTILE,
        recipe=HOSTILE,
        recipe_description=HOSTILE,
        version=HOSTILE,
        recipe_sha256=HOSTILE,
        modules=rows,
    )
    source = tmp_path / "source"
    source.mkdir()
    header = {"license": HOSTILE, "pipeline_tag": HOSTILE, "license_link": HOSTILE}
    (source / "README.md").write_text(f"---\n{json.dumps(header)}\n---\n", encoding="utf-8")
    card = write_card(tmp_path, source_folder=source, quality={"kinds": {HOSTILE: FIGURES}})
    top = header_of(card)
    assert top["license"] == top["pipeline_tag"]
    assert top["license"].startswith(
        "a\"b\\c'd: [e](f) <script>|`x``y`*_# --- license: mit {{ 7*7 }}?"
    )
    assert top["library_name"] == "mlx"
    assert card.count("\n---\n") == 1
    assert "49" not in card
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", card)
    # The Markdown parser that comes with rich sees texts, code, and tables, and nothing else.
    tokens = MarkdownIt("commonmark").enable("table").parse(card.partition("\n---\n")[2])
    tokens += [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in tokens}
    assert not [
        kind for kind in kinds if kind.startswith(("html", "link", "em", "strong", "image"))
    ]
    shown = "".join(token.content for token in tokens if token.type in ("text", "code_inline"))
    assert shown.count("<script>|`x``y`*_#") >= 10
    assert next(token.tag for token in tokens if token.type == "heading_open") == "h1"
    assert "hr" not in {token.tag for token in tokens}
    assert all(len(row) == 6 for row in rows_of(card, "modules"))
    assert len(rows_of(card, "modules")) == 4
    assert all(len(row) == 8 for row in rows_of(card, "prompts"))


def test_a_record_is_read(tmp_path: Path) -> None:
    record = read_record(write_recorded(tmp_path))
    assert record.recipe == "mixed-4-8"
    assert record.bits_per_weight == 5.5512
    assert record.groups[1].settings is not None
    assert vars(record.groups[1].settings) == Q4
    assert not record.is_in_google_names


def test_a_record_of_an_older_version_lacks_the_table(tmp_path: Path) -> None:
    card = write_card(write_recorded(tmp_path, modules=None))
    assert "## What is stored how" not in card
    assert "5.55" in card


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (None, "was not made by mlx-gemma4 convert"),
        ({"metadata": {"total_size": 1}, "weight_map": {}}, "was not made by mlx-gemma4 convert"),
        ({"metadata": {"conversion": {}}}, "is damaged"),
        ({"metadata": {"conversion": build_record()}}, "is damaged .*total_size"),
        (
            {"metadata": {"total_size": 1, "total_parameters": 1}
             | {"conversion": build_record(modules=[{"modules": 1}])}},
            "is damaged",
        ),
        (
            {"metadata": {"total_size": "x", "total_parameters": 1}
             | {"conversion": build_record()}},
            "is damaged",
        ),
    ],
)  # fmt: skip
def test_what_convert_did_not_make_has_no_record(index: Any, says: str, tmp_path: Path) -> None:
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=says):
        read_record(tmp_path)
