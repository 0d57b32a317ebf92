"""`generate --speculate`: the same answers, the account, and what is refused."""

import inspect
import json
import typing

import pytest

from mlx_gemma4.cli import main, options
from mlx_gemma4.cli.generate import generate
from mlx_gemma4.generation.lookup import MAX_DRAFT_TOKENS, MIN_DRAFT_TOKENS
from mlx_gemma4.generation.speculation import Speculate

PROMPT = "Say this again: tiger lemon cloud plane"
ASK = ["generate", "--model", "demo", PROMPT]


def test_the_answer_is_the_same_and_drafts_are_counted(capsys):
    documents = []
    for speculate in ("off", "lookup"):
        assert main([*ASK, "--speculate", speculate, "--json"]) == 0
        output, errors = capsys.readouterr()
        documents.append(json.loads(output))
        assert ("draft tokens accepted" in errors) is (speculate == "lookup")
    off, lookup = documents
    assert lookup["tokens"] == off["tokens"]
    assert (off["speculate"], lookup["speculate"]) == ("off", "lookup")
    assert off["forwards"] == off["generation_tokens"]
    assert lookup["draft_tokens"] >= lookup["accepted_tokens"] > 0
    assert lookup["forwards"] < off["forwards"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--speculate", "guess"], "--speculate is 'guess'; allowed are lookup, off"),
        (["--num-draft-tokens", "16"], "num_draft_tokens is 16; allowed is 2 to 15"),
        (["--num-draft-tokens", "1"], "num_draft_tokens is 1; allowed is 2 to 15"),
    ],
)
def test_a_wrong_value_is_refused_before_a_model_is_looked_for(arguments, says, capsys):
    assert main(["generate", "--model", "/nowhere/model", "hi", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert says in errors


def test_the_command_line_has_what_the_library_has():
    (choice, _) = typing.get_args(options.Speculate)
    assert choice == Speculate
    (_, option) = typing.get_args(options.NumDraftTokens)
    assert f"{MIN_DRAFT_TOKENS} to {MAX_DRAFT_TOKENS}" in option.help
    defaults = inspect.signature(generate).parameters
    assert defaults["num_draft_tokens"].default == MAX_DRAFT_TOKENS
