import json

import pytest

from mlx_gemma4.cli.answer import Answer
from mlx_gemma4.generation.stream import GenerationResponse
from mlx_gemma4.messages import ToolCall


def respond(**said):
    account = {"prompt_tokens": 5, "prompt_tps": 10.0, "generation_tps": 2.0, "peak_memory": 0.5}
    return GenerationResponse(**{"generation_tokens": 1, "token": 7, **account, **said})


def test_words_go_to_stdout_and_thoughts_to_stderr(capsys):
    answer = Answer(is_thinking_shown=True)
    answer.follow([respond(thinking="hm"), respond(text="yes"), respond(finish_reason="stop")])
    assert capsys.readouterr() == ("yes\n", "hm\n")
    assert answer.result.thinking == "hm"
    assert "cut" not in answer.account


def test_thoughts_stay_hidden_unless_asked_for(capsys):
    Answer().follow([respond(thinking="hm"), respond(text="yes\n", finish_reason="stop")])
    assert capsys.readouterr() == ("yes\n", "")


def test_a_tool_call_is_a_line_of_json(capsys):
    call = ToolCall("get_time", {"city": "Oslo"})
    Answer().follow([respond(text="wait"), respond(tool_calls=(call,), finish_reason="tool_calls")])
    words, line = capsys.readouterr().out.splitlines()
    assert words == "wait"
    assert json.loads(line) == {"name": "get_time", "arguments": {"city": "Oslo"}, "id": None}


def test_an_interruption_keeps_what_was_said(capsys):
    def stream():
        yield respond(text="half")
        raise KeyboardInterrupt

    answer = Answer()
    answer.follow(stream())
    assert answer.is_interrupted
    assert capsys.readouterr().out == "half\n"
    assert answer.result.text == "half"
    assert "interrupted" in answer.account
    assert answer.as_document()["is_interrupted"] is True


def test_an_interruption_before_any_word_goes_on():
    def stream():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        Answer().follow(stream())


def test_a_document_holds_everything_and_shows_nothing(capsys):
    answer = Answer(is_shown=False)
    answer.follow([respond(text="yes", notes=("a note",), finish_reason="length")])
    document = json.loads(json.dumps(answer.as_document()))
    assert document["text"] == "yes"
    assert document["notes"] == ["a note"]
    assert document["finish_reason"] == "length"
    assert capsys.readouterr().out == ""
    assert "cut at the limit" in answer.account


def test_drafts_are_counted_in_the_account_and_the_document(capsys):
    answer = Answer(is_shown=False)
    drafts = {"speculate": "lookup", "draft_tokens": 9, "accepted_tokens": 7, "forwards": 3}
    answer.follow([respond(text="yes", from_draft=True, finish_reason="stop", **drafts)])
    assert "3 forwards, 7 of 9 draft tokens accepted; " in answer.account
    document = json.loads(json.dumps(answer.as_document()))
    assert {name: document[name] for name in drafts} == drafts
    plain = Answer(is_shown=False)
    plain.follow([respond(text="yes", finish_reason="stop")])
    assert "draft" not in plain.account
    assert plain.as_document()["speculate"] == "off"
