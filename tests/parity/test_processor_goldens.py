"""Chat template, token ids, and prompts with media against what transformers made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from prompt_cases import (
    MEDIA_CASES,
    NESTED,
    TEMPLATE_CASES,
    TEXTS,
    Case,
    compress,
    draw_picture,
    draw_sound,
    fill,
    write_clip,
)

from mlx_gemma4.config import Config
from mlx_gemma4.generation.detokenizer import Detokenizer
from mlx_gemma4.messages import Message, ToolCall, parse_messages, parse_tools
from mlx_gemma4.processing.output_parser import Channel, OutputParser
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.processing.tokenizer import Tokenizer

pytestmark = pytest.mark.google_files

FOLDER = Path(__file__).parent.parent / "data" / "processor"


def golden(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def processor(google_checkpoint: Path) -> Processor:
    return Processor.from_folder(google_checkpoint, Config.from_folder(google_checkpoint))


@pytest.fixture(scope="module")
def tokenizer(processor: Processor) -> Tokenizer:
    return processor.tokenizer


@pytest.mark.parametrize("case", TEMPLATE_CASES, ids=lambda case: case.name)
def test_template_writes_what_transformers_writes(processor: Processor, case: Case) -> None:
    assert processor.chat_template is not None
    text = processor.chat_template.render(
        parse_messages(case.messages),
        tools=parse_tools(case.tools),
        thinking=case.thinking,
        add_generation_prompt=case.add_generation_prompt,
    )
    assert text == golden("chat_template")[case.name]


@pytest.mark.parametrize("case", MEDIA_CASES, ids=lambda case: case.name)
def test_prompt_has_the_ids_of_transformers(
    processor: Processor, case: Case, tmp_path: Path
) -> None:
    def make(words: str) -> Any:
        if words.startswith("picture"):
            return draw_picture(words)
        return draw_sound(words) if words.startswith("sound") else write_clip(words, tmp_path)

    if any("clip" in str(message) for message in case.messages):
        pytest.importorskip("av", reason="PyAV not installed: pip install 'mlx-gemma4[media]'")
    inputs = processor(
        fill(case.messages, make), tools=case.tools, thinking=case.thinking, **case.options
    )
    assert compress(inputs.input_ids.tolist()) == golden("prompts")[case.name]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_become_the_ids_of_transformers(tokenizer: Tokenizer, name: str) -> None:
    assert tokenizer.encode(TEXTS[name]) == golden("texts")[name]


@pytest.mark.parametrize("name", TEXTS)
def test_ids_stream_back_as_the_text(tokenizer: Tokenizer, name: str) -> None:
    ids = golden("texts")[name]
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    pieces = [detokenizer.add(token_id) for token_id in ids]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == TEXTS[name]
    if name != "control":  # which itself holds U+FFFD
        assert not any("\ufffd" in piece for piece in pieces)


def test_capital_of_france(processor: Processor) -> None:
    """The ids that a public run of the real checkpoint logged."""
    inputs = processor("What is the capital of France? Answer in one word.")
    assert inputs.input_ids.tolist() == [
        *(2, 105, 2364, 107, 3689, 563, 506, 5279, 529, 7001, 236881, 25685, 528, 886, 3658),
        *(236761, 106, 107, 105, 4368, 107, 100, 45518, 107, 101),
    ]


def test_the_tokenizer_has_the_ids_of_the_config(
    tokenizer: Tokenizer, google_checkpoint: Path
) -> None:
    config = Config.from_folder(google_checkpoint)
    named = {
        "image_token": config.image_token_id,
        "boi_token": config.boi_token_id,
        "eoi_token": config.eoi_token_id,
        "audio_token": config.audio_token_id,
        "boa_token": config.boa_token_id,
        "eoa_token": config.eoa_token_index,
        "video_token": config.video_token_id,
    }
    assert {name: tokenizer.special_id(name) for name in named} == named
    assert tokenizer.vocab_size == config.text_config.vocab_size
    assert len(tokenizer.byte_ids) == 256
    assert len(tokenizer.special_ids) == 24


def test_a_call_that_the_template_writes_is_read_back(processor: Processor) -> None:
    assert processor.chat_template is not None
    call = ToolCall(
        "plan.trip", {"m": NESTED, "text": 'a, {b}: "c"\n', "empty": "", "l": [[1], {}]}
    )
    text = processor.chat_template.render((Message("assistant", tool_calls=(call,)),))
    start, end = text.index("<|tool_call>"), text.index("<tool_call|>") + len("<tool_call|>")
    parser = OutputParser(processor.tokenizer, Detokenizer)
    for token_id in processor.tokenizer.encode(text[start:end]):
        parser.add(token_id)
    assert parser.output.tool_calls == (call,)
    assert parser.output.answer == ""


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("one question", Channel.ANSWER),
        ("thinking", Channel.ANSWER),
        ("answered", Channel.ANSWER),
        ("answered, thinking", Channel.THINKING),  # the template opens the channel itself
    ],
)
def test_where_output_begins(tokenizer: Tokenizer, name: str, channel: Channel) -> None:
    prompt_ids = tokenizer.encode(golden("chat_template")[name])
    assert OutputParser(tokenizer, Detokenizer, prompt_ids).channel is channel
