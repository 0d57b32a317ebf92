from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.generation.detokenizer import Detokenizer
from mlx_gemma4.messages import ToolCall
from mlx_gemma4.processing.output_parser import Channel, OutputParser, OutputPart, ParsedOutput
from mlx_gemma4.processing.tokenizer import Tokenizer

THOUGHT = "<|channel>thought\n"
CALL = '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>'


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tiny_checkpoint(tmp_path))


def parse(tokenizer: Tokenizer, output: str, prompt: str = "") -> ParsedOutput:
    parser = OutputParser(tokenizer, Detokenizer, tokenizer.encode(prompt))
    parts: list[OutputPart] = []
    for token_id in tokenizer.encode(output):
        parts += parser.add(token_id)
    parts += parser.finish()
    assert parser.finish() == ()
    answer = "".join(part.text for part in parts if part.channel is Channel.ANSWER)
    thinking = "".join(part.text for part in parts if part.channel is Channel.THINKING)
    assert answer == parser.output.answer  # what was streamed is what is said in the end
    assert thinking.strip("\n") == parser.output.thinking
    return parser.output


@pytest.mark.parametrize(
    ("output", "thinking", "answer"),
    [
        ("hi there", "", "hi there"),
        (THOUGHT + "let me see\n<channel|>hi", "let me see", "hi"),
        (THOUGHT + "<channel|>hi", "", "hi"),
        ("<|channel>thought<channel|>hi", "", "hi"),
        ("<|channel>thoughts of mine<channel|>hi", "thoughts of mine", "hi"),
        ("<|channel>hm<channel|>hi", "hm", "hi"),
        (THOUGHT + "never closed", "never closed", ""),
        ("<|channel>thou", "thou", ""),
        ("a" + THOUGHT + "b\n<channel|>c" + THOUGHT + "d\n<channel|>e", "b\nd", "ace"),
        ("<channel|>hi", "", "hi"),
        ("hi<turn|>", "", "hi"),
        ("channel|thought", "", "channel|thought"),
        (THOUGHT + "é🚀\n<channel|>🚀", "é🚀", "🚀"),
        ("", "", ""),
    ],
)
def test_thinking_and_answer(tokenizer: Tokenizer, output: str, thinking: str, answer: str) -> None:
    assert parse(tokenizer, output) == ParsedOutput(thinking, answer, (), ())


@pytest.mark.parametrize(
    ("prompt", "output", "thinking", "answer"),
    [
        ("<|turn>model\n" + THOUGHT + "<channel|>", "hi", "", "hi"),
        ("<|turn>model\n" + THOUGHT, "so\n<channel|>hi", "so", "hi"),
        ("<|turn>model\n<|channel>", "thought\nso\n<channel|>hi", "so", "hi"),
        ("<|turn>model\n<|channel>tho", "ught\nso\n<channel|>hi", "so", "hi"),
        ("<|turn>model\n" + THOUGHT + "first", " then\n<channel|>hi", " then", "hi"),
        (THOUGHT + "old<turn|>\n<|turn>model\n", "hi", "", "hi"),  # an earlier turn's affair
        ("<|turn>model\n" + CALL + "<|tool_response>r<tool_response|>", "hi", "", "hi"),
    ],
)
def test_it_starts_where_the_prompt_ended(
    tokenizer: Tokenizer, prompt: str, output: str, thinking: str, answer: str
) -> None:
    assert parse(tokenizer, output, prompt) == ParsedOutput(thinking, answer, (), ())


def test_tool_calls(tokenizer: Tokenizer) -> None:
    output = parse(tokenizer, THOUGHT + "i look\n<channel|>wait" + CALL + CALL + "done")
    call = ToolCall("f", {"a": "x"})
    assert output == ParsedOutput("i look", "waitdone", (call, call), ())
    assert parse(tokenizer, "f{b:2}<tool_call|>", "<|tool_call>call:") == ParsedOutput(
        "", "", (ToolCall("f", {"b": 2}),), ()
    )


def test_a_call_is_given_whole_and_thinking_ends_with_it(tokenizer: Tokenizer) -> None:
    parser = OutputParser(tokenizer, Detokenizer)
    parts = [parser.add(token_id) for token_id in tokenizer.encode(THOUGHT + "so" + CALL)]
    assert parts[-1] == (
        OutputPart(Channel.TOOL_CALL, 'call:f{a:<|"|>x<|"|>}', (ToolCall("f", {"a": "x"}),)),
    )
    assert parser.channel is Channel.ANSWER
    assert parser.output.thinking == "so"


@pytest.mark.parametrize(
    ("output", "answer", "note"),
    [
        ("a<|tool_call>no call<tool_call|>b", "a<|tool_call>no call<tool_call|>b", "character"),
        ("<|tool_call><tool_call|>", "<|tool_call><tool_call|>", "should be a call"),
        ("<|tool_call>call:f{a:1}", "<|tool_call>call:f{a:1}", "not finished"),
        (
            "<|tool_call>call:f<|tool_call>call:g{}<tool_call|>",
            "<|tool_call>call:f",
            "not finished",
        ),
    ],
)
def test_nothing_is_lost(tokenizer: Tokenizer, output: str, answer: str, note: str) -> None:
    parsed = parse(tokenizer, output)
    assert parsed.answer == answer
    assert len(parsed.notes) == 1
    assert note in parsed.notes[0]


def test_text_comes_as_soon_as_it_is_certain(tokenizer: Tokenizer) -> None:
    parser = OutputParser(tokenizer, Detokenizer)

    def add(text: str) -> Sequence[tuple[Channel, str]]:
        parts = [part for token_id in tokenizer.encode(text) for part in parser.add(token_id)]
        return [(part.channel, part.text) for part in parts]

    assert add("h") == [(Channel.ANSWER, "h")]
    assert add("<|channel>thought") == []
    assert add("\n") == []
    assert add("h") == [(Channel.THINKING, "h")]
    assert parser.channel is Channel.THINKING
    assert add("<channel|>") == []
    assert add("h") == [(Channel.ANSWER, "h")]
    assert add("<|tool_call>call:f{") == []
    assert parser.channel is Channel.TOOL_CALL
    assert add("}<tool_call|>") == [(Channel.TOOL_CALL, "call:f{}")]
