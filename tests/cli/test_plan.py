"""`mlx-gemma4 plan`: what it counts, what it suggests, and its exit codes."""

import json
import os
from pathlib import Path

import pytest
from random_checkpoint import SIZES, build_config, find_token_ids, write_checkpoint

from mlx_gemma4.cli import main
from mlx_gemma4.cli.plan import draw_bar
from mlx_gemma4.memory import MemoryLimit


@pytest.fixture
def config_12b(tmp_path: Path) -> Path:
    """Return a folder with the config.json of the 12B and nothing else."""
    ids = find_token_ids(None, 262_144)
    names = ("image_token_id", "audio_token_id", "video_token_id", "boi_token_id")
    names += ("eoi_token_id", "boa_token_id", "eoa_token_index")
    token_ids: dict[str, int | list[int]] = dict(zip(names, ids.values(), strict=False))
    config = build_config(SIZES["real"], "bfloat16", token_ids)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def plan(capsys, folder, *arguments):
    """Return the JSON document of a plan for a Mac."""
    line = ["plan", "--model", str(folder), "--memory", "24GB", *arguments, "--json"]
    assert main(line) == 0
    return json.loads(capsys.readouterr().out)


def test_a_config_alone_is_enough(config_12b, capsys):
    document = plan(capsys, config_12b)
    assert document["weights_bytes"] == pytest.approx(23.92e9, rel=0.001)
    assert document["context_tokens"] == 4096
    assert not document["fits"]
    assert document["longest_context"] == 0
    assert "no weights" in document["notes"][0]


def test_a_recipe_and_a_long_context_are_what_the_design_says(config_12b, capsys):
    short = plan(capsys, config_12b, "--recipe", "q4", "--context", "128k")
    whole = plan(capsys, config_12b, "--recipe", "q4", "--context", "256k")
    assert short["weights_bytes"] == pytest.approx(6.80e9, rel=0.001)
    assert whole["cache_bytes"] - short["cache_bytes"] == 131_072 * 10 * 1024
    assert whole["cache_bytes"] == (262_144 * 10 + 1040 * 320) * 1024
    assert whole["fits"]
    assert whole["suggestions"] == []
    parts = ("weights_bytes", "cache_bytes", "workspace_bytes", "drafter_bytes")
    assert whole["total_bytes"] == sum(whole[part] for part in parts)


def test_the_chunk_is_what_temporary_memory_allows(config_12b, capsys):
    steps = [
        plan(capsys, config_12b, "--recipe", "q4", "--context", context)["prefill_step_size"]
        for context in ("8k", "256k")
    ]
    assert steps[0] == 2048 > steps[1]
    fixed = plan(capsys, config_12b, "--prefill-step-size", "100")
    assert fixed["prefill_step_size"] == 100


def test_suggestions_come_with_what_gives_most_first(config_12b, capsys):
    document = plan(capsys, config_12b, "--context", "256k", "--prefill-step-size", "2048")
    suggestions = document["suggestions"]
    saved = [way["saved_bytes"] for way in suggestions]
    assert saved == sorted(saved, reverse=True)
    assert suggestions[0]["option"] == "--recipe q4"
    options = [way["option"].split()[0] for way in suggestions]
    assert "--recipe" in options
    assert options.count("--prefill-step-size") == 1  # the others would say the same
    for way in suggestions:
        assert way["fits"] == (way["total_bytes"] <= document["limit_bytes"])
        assert way["total_bytes"] + way["saved_bytes"] == document["total_bytes"]


def test_a_shorter_context_is_suggested_that_does_fit(config_12b, capsys):
    line = ("--recipe", "q4", "--memory", "12GB", "--kv-bits", "16", "--context")
    document = plan(capsys, config_12b, *line, "256k")
    longest = document["longest_context"]
    assert 4096 < longest < 262_144
    assert f"--context {longest}" in {way["option"] for way in document["suggestions"]}
    # For the chunk that was chosen for the longer one: this one's may be longer.
    step = ("--prefill-step-size", str(document["prefill_step_size"]))
    assert plan(capsys, config_12b, *line, str(longest), *step)["fits"]
    assert not plan(capsys, config_12b, *line, str(longest + 256), *step)["fits"]


def test_bits_are_those_that_generate_would_choose(config_12b, capsys):
    line = ("--recipe", "q4", "--memory", "12GB", "--context")
    short = plan(capsys, config_12b, *line, "8k")
    assert (short["kv_bits"], short["fits"]) == (16, True)
    assert short["longest_context"] < short["longest_context_int8"]
    long = plan(capsys, config_12b, *line, "256k")
    assert (long["kv_bits"], long["fits"], long["suggestions"]) == (8, True, [])
    asked = plan(capsys, config_12b, *line, "256k", "--kv-bits", "8")
    assert asked == long
    kept = plan(capsys, config_12b, *line, "256k", "--kv-bits", "16")
    assert (kept["kv_bits"], kept["fits"]) == (16, False)
    options = {way["option"]: way["fits"] for way in kept["suggestions"]}
    assert options["--kv-bits 8"]


def test_the_table_says_which_bits_they_are(config_12b, capsys):
    line = ["plan", "--model", str(config_12b), "--recipe", "q4", "--memory", "12GB"]
    assert main([*line, "--context", "256k"]) == 0
    shown = capsys.readouterr().out
    assert "262,144 tokens, --kv-bits 8" in shown
    assert "fits with --kv-bits 8, which is chosen, and not with 16; a context of up to" in shown
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "4,096 tokens, --kv-bits 16" in shown
    assert "fits; a context of up to " in shown
    assert " with --kv-bits 8" in shown.splitlines()[-1]


def test_media_are_part_of_the_context(config_12b, capsys):
    text = plan(capsys, config_12b, "--recipe", "q4")
    media = ("--image", "3", "--image-tokens", "1120", "--audio", "120s", "--video", "1")
    document = plan(capsys, config_12b, "--recipe", "q4", *media)
    sound, frames = 120 * 25, 32
    assert document["media_tokens"] == 3 * 1122 + sound + 2 + frames * 72
    assert document["context_tokens"] == document["media_tokens"] + 1024
    assert document["cache_bytes"] > text["cache_bytes"]
    # No chunk is shorter than a picture.
    small = ("--prefill-step-size", "64")
    short = plan(capsys, config_12b, "--recipe", "q4", "--context", "16k", *small)
    pictures = plan(capsys, config_12b, "--recipe", "q4", "--context", "16k", *small, *media)
    assert pictures["workspace_bytes"] > 1.5 * short["workspace_bytes"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--context", "300k"], "--context is 307,200 tokens; allowed is from 1 to"),
        (["--context", "100", "--image", "1"], "allowed is from the 282 tokens of the media"),
        (["--context", "many"], "--context is 'many'; allowed is a number of tokens"),
        (["--memory", "16"], "--memory is '16'; allowed is a size"),
        (["--audio", "long"], "--audio is 'long'; allowed is a time"),
        (["--recipe", "q44"], "there is no recipe 'q44'; did you mean q4"),
    ],
)
def test_mistakes_are_explained(config_12b, capsys, arguments, reason):
    assert main(["plan", "--model", str(config_12b), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert reason in shown.err


def test_media_without_a_front_end_are_refused(config_12b, capsys):
    config = json.loads((config_12b / "config.json").read_text())
    del config["audio_config"]
    (config_12b / "config.json").write_text(json.dumps(config))
    assert main(["plan", "--model", str(config_12b), "--audio", "3s"]) == 2
    assert "--audio: this checkpoint has no front end" in capsys.readouterr().err


def test_stored_weights_are_counted_as_they_are(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "tiny", has_tokenizer=False, dtype="bfloat16")
    document = plan(capsys, folder)
    size = os.path.getsize(folder / "model.safetensors")
    assert document["weights_bytes"] == pytest.approx(size, rel=0.01)
    assert document["notes"] == []
    assert document["stored_as"].startswith("not quantized")


def test_a_quantized_config_is_counted_by_its_bits(config_12b, capsys):
    config = json.loads((config_12b / "config.json").read_text())
    config["quantization"] = {
        "group_size": 64,
        "bits": 4,
        "language_model.model.embed_tokens": {"group_size": 64, "bits": 8},
    }
    (config_12b / "config.json").write_text(json.dumps(config))
    document = plan(capsys, config_12b)
    embedding = 262_144 * 3840 // 2  # 4 bits more of each weight
    assert document["weights_bytes"] == pytest.approx(6.804e9 + embedding, rel=0.001)
    assert main(["plan", "--model", str(config_12b), "--recipe", "q4"]) == 2
    assert "quantized already" in capsys.readouterr().err


def test_what_does_not_fit_is_no_error(config_12b, capsys):
    assert main(["plan", "--model", str(config_12b), "--memory", "16GB"]) == 0
    shown = capsys.readouterr()
    assert "does not fit; what would help:" in shown.out
    assert "missing" in shown.out
    assert "--recipe q4" in shown.out
    assert "|" in shown.out  # the limit, in the bar
    assert shown.out.isascii()
    assert "no weights" in shown.err


def test_what_fits_is_said(config_12b, capsys):
    assert main(["plan", "--model", str(config_12b), "--recipe", "q4", "--memory", "32GB"]) == 0
    shown = capsys.readouterr().out
    assert "fits; a context of up to 262,144 tokens does, all that the model has" in shown
    for label in ("weights", "cache", "prefill", "in all", "limit", "left"):
        assert f"\n{label}" in f"\n{shown}"


def test_without_memory_it_is_this_machine(config_12b, capsys, monkeypatch):
    limit = MemoryLimit(7 * 10**9, "this machine can hold")
    monkeypatch.setattr("mlx_gemma4.memory.machine_limit", lambda: limit)
    assert main(["plan", "--model", str(config_12b), "--recipe", "q4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["limit_bytes"], document["limit_source"]) == (7 * 10**9, limit.source)


def test_a_bar_is_as_long_as_its_parts():
    parts = [("weights", 50), ("cache", 25)]
    assert draw_bar(parts, 100, has_colours=False).plain.startswith(
        "[" + "w" * 30 + "c" * 15 + "." * 15 + "]"
    )
    over = draw_bar([("weights", 90), ("cache", 30)], 60, has_colours=False).plain
    assert over.startswith("[" + "w" * 30 + "|" + "w" * 14 + "c" * 15 + "]")
    assert "█" in draw_bar(parts, 100, has_colours=True).plain
    assert draw_bar([], 0, has_colours=False).plain == "[" + "." * 60 + "]  "


def test_a_drafter_is_counted_by_its_config(config_12b, tmp_path, capsys):
    drafter = tmp_path / "drafter"
    drafter.mkdir()
    text = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    text |= {"layer_types": ["full_attention"], "global_head_dim": 32, "vocab_size": 500}
    document = {"model_type": "gemma4_unified_assistant", "backbone_hidden_size": 96}
    (drafter / "config.json").write_text(json.dumps(document | {"text_config": text}))
    counted = 500 * 64 + 64 + 64 * 2 * 96 + 96 * 64  # table, norm, projections
    counted += 1 + 4 * 64 + 2 * 64 * 64 + 32 + 3 * 128 * 64  # one layer
    found = plan(capsys, config_12b, "--recipe", "q4", "--draft-model", str(drafter))
    assert found["drafter_bytes"] == 2 * counted


def test_a_model_is_no_drafter(config_12b, capsys):
    line = ["plan", "--model", str(config_12b), "--draft-model", str(config_12b)]
    assert main(line) == 2
    assert "is no drafter" in capsys.readouterr().err


@pytest.mark.google_files
def test_googles_own_config(google_checkpoint, capsys):
    document = plan(capsys, google_checkpoint, "--recipe", "q4", "--context", "256k")
    assert document["weights_bytes"] == 6_803_751_008
    assert document["cache_bytes"] == (262_144 * 10 + 1040 * 320) * 1024
