"""Tokens into an answer, with a network that says what the test wants."""

from typing import Any

import numpy as np
import pytest
from scripted_model import ScriptedModel
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.stream import GenerationResult, stream_response
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.processing.tokenizer import Tokenizer

EOS = "<turn|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(write_tiny_checkpoint(tmp_path_factory.mktemp("tokenizer")))


def answer_to(tokenizer, said, prompt="<bos>hi", notes=(), **options):
    """Every response to a prompt when the network says a text."""
    model: Any = ScriptedModel(tokenizer.encode(said), tokenizer.vocab_size)
    ids = np.array(tokenizer.encode(prompt), np.int32)
    eos = (tokenizer.token_to_id(EOS), tokenizer.token_to_id("<|tool_response>"))
    return list(
        stream_response(
            ModelInputs(ids, notes=notes),
            model,
            tokenizer,
            eos_token_ids=eos,
            **{"max_tokens": 200, **options},
        )
    )


def test_an_answer_ends_at_the_end_of_its_turn(tokenizer):
    parts = answer_to(tokenizer, f"hi there{EOS}")
    result = GenerationResult.from_responses(parts)
    assert (result.text, result.thinking, result.finish_reason) == ("hi there", "", "stop")
    assert result.tokens == tuple(tokenizer.encode(f"hi there{EOS}"))
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert [part.generation_tokens for part in parts] == list(range(1, len(parts) + 1))
    assert result.prompt_tokens == len(tokenizer.encode("<bos>hi"))


def test_thinking_is_kept_apart(tokenizer):
    said = f"<|channel>thought\nlet me see<channel|>hi{EOS}"
    result = GenerationResult.from_responses(answer_to(tokenizer, said))
    assert (result.text, result.thinking) == ("hi", "let me see")


def test_a_thought_that_the_prompt_left_open_goes_on(tokenizer):
    prompt = "<bos><|turn>model\n<|channel>thought\n"
    parts = answer_to(tokenizer, f"more<channel|>done{EOS}", prompt)
    result = GenerationResult.from_responses(parts)
    assert (result.text, result.thinking) == ("done", "more")


def test_a_tool_call_is_parsed_and_is_the_reason_to_stop(tokenizer):
    said = '<|tool_call>call:look{at:<|"|>hi<|"|>}<tool_call|><|tool_response>'
    result = GenerationResult.from_responses(answer_to(tokenizer, said))
    assert result.finish_reason == "tool_calls"
    assert result.text == ""
    (call,) = result.tool_calls
    assert (call.name, call.arguments) == ("look", {"at": "hi"})


def test_a_call_that_was_cut_is_shown_with_a_note(tokenizer):
    parts = answer_to(tokenizer, "<|tool_call>call:look{at", max_tokens=8, notes=("resized",))
    result = GenerationResult.from_responses(parts)
    assert result.finish_reason == "length"
    assert result.text.startswith("<|tool_call>call:")
    assert result.notes[0] == "resized"
    assert "not understood" in result.notes[1]


def test_the_length_is_a_reason_of_its_own(tokenizer):
    result = GenerationResult.from_responses(answer_to(tokenizer, "abcdefgh", max_tokens=5))
    assert (result.text, result.finish_reason, len(result.tokens)) == ("abcde", "length", 5)


@pytest.mark.parametrize("stop", [["there"], ["xyz", "the"], [" t"]])
def test_a_stop_string_ends_the_answer_and_is_not_shown(tokenizer, stop):
    parts = answer_to(tokenizer, f"hi there friend{EOS}", stop=stop)
    result = GenerationResult.from_responses(parts)
    assert result.text.strip() == "hi"
    assert result.finish_reason == "stop"
    assert tokenizer.token_to_id(EOS) not in result.tokens


def test_a_stop_string_in_a_thought_stops_nothing(tokenizer):
    said = f"<|channel>thought\nthere<channel|>hi{EOS}"
    result = GenerationResult.from_responses(answer_to(tokenizer, said, stop=["there"]))
    assert (result.text, result.thinking) == ("hi", "there")


def test_text_held_back_for_a_stop_string_comes_at_the_end(tokenizer):
    result = GenerationResult.from_responses(answer_to(tokenizer, f"hi the{EOS}", stop=["there"]))
    assert result.text == "hi the"


def test_a_character_of_several_tokens_is_never_cut(tokenizer):
    parts = answer_to(tokenizer, f"hi 日本 🎉{EOS}")
    assert all("\ufffd" not in part.text for part in parts)
    assert "".join(part.text for part in parts) == "hi 日本 🎉"


def test_a_prompt_cache_and_an_account(tokenizer):
    parts = answer_to(tokenizer, f"hi{EOS}")
    last = parts[-1]
    assert last.prompt_tps > 0
    assert last.peak_memory >= 0
    assert last.logprobs is not None
    assert last.token == tokenizer.token_to_id(EOS)


def test_a_result_needs_a_response():
    with pytest.raises(ValueError, match="no response"):
        GenerationResult.from_responses([])


QUOTED = "one two three four five six seven eight nine ten"


def test_a_quotation_takes_few_forward_passes(tokenizer):
    said = f"{QUOTED}{EOS}"
    prompt = f"<bos>{QUOTED} and again "
    plain = GenerationResult.from_responses(answer_to(tokenizer, said, prompt))
    parts = answer_to(tokenizer, said, prompt, speculate="lookup")
    result = GenerationResult.from_responses(parts)
    assert (result.tokens, result.text, result.finish_reason) == (plain.tokens, QUOTED, "stop")
    assert (plain.speculate, plain.draft_tokens, plain.accepted_tokens) == ("off", 0, 0)
    assert plain.forwards == plain.generation_tokens
    assert result.speculate == "lookup"
    assert result.accepted_tokens == sum(part.from_draft for part in parts)
    assert result.draft_tokens >= result.accepted_tokens > 30
    assert result.forwards < result.generation_tokens / 4
    assert [part.generation_tokens for part in parts] == list(range(1, len(parts) + 1))


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 12, 30])
@pytest.mark.parametrize("ends", ["max_tokens", "stop", "eos"])
def test_an_answer_ends_within_a_draft_as_it_does_without(tokenizer, length, ends):
    said = QUOTED if ends != "eos" else f"{QUOTED[:length]}{EOS}{QUOTED}"
    options: dict[str, Any] = {}
    if ends == "max_tokens":
        options["max_tokens"] = length
    if ends == "stop":
        options["stop"] = [QUOTED[length : length + 4]]
    model: Any = ScriptedModel(tokenizer.encode(said), tokenizer.vocab_size)
    ids = np.array(tokenizer.encode(f"<bos>{said} and again "), np.int32)
    found = []
    for speculate in ("off", "lookup"):
        cache = model.make_cache()
        responses = stream_response(
            ModelInputs(ids),
            model,
            tokenizer,
            eos_token_ids=[tokenizer.token_to_id(EOS)],
            prompt_cache=cache,
            speculate=speculate,
            **{"max_tokens": 60, **options},
        )
        result = GenerationResult.from_responses(responses)
        assert result.speculate == speculate
        found.append((result.tokens, result.text, result.finish_reason, cache[0].offset))
    assert found[0] == found[1]


def test_a_pass_whose_tokens_are_cut_counts_too(tokenizer):
    parts = answer_to(tokenizer, QUOTED, f"<bos>{QUOTED} and ", speculate="lookup", stop=["six"])
    last = parts[-1]
    assert last.from_draft
    plain_tokens = sum(not part.from_draft for part in parts)
    assert last.forwards == plain_tokens + 1


def test_a_sampler_without_rewind_turns_drafts_off_with_a_note(tokenizer):
    def sampler(logprobs):
        return logprobs.argmax(axis=-1)

    options: dict[str, Any] = {"speculate": "lookup", "sampler": sampler}
    parts = answer_to(tokenizer, f"{QUOTED}{EOS}", f"<bos>{QUOTED} and ", **options)
    result = GenerationResult.from_responses(parts)
    assert (result.text, result.speculate, result.draft_tokens) == (QUOTED, "off", 0)
    (note,) = result.notes
    assert "prompt lookup is off: the sampler has no rewind()" in note
    quiet = answer_to(tokenizer, f"hi{EOS}", sampler=sampler)
    assert quiet[-1].notes == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculate": "draft"}, '"draft"; allowed are lookup and off'),
        ({"speculate": "lookup", "num_draft_tokens": 16}, "num_draft_tokens is 16; allowed is 2"),
        ({"num_draft_tokens": 0}, "num_draft_tokens is 0; allowed is 2 to 15"),
    ],
)
def test_a_wrong_option_is_refused(tokenizer, options, message):
    with pytest.raises(OptionError, match=message):
        answer_to(tokenizer, "hi", **options)
