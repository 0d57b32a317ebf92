"""Chat template, tokenizer, and prompts against transformers itself.

The committed goldens say the same for a fixed set of cases; here ids are drawn at random too.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prompt_cases import (
    MEDIA_CASES,
    TEMPLATE_CASES,
    TEXTS,
    Case,
    draw_picture,
    draw_sound,
    fill,
    write_clip,
)
from transformers_processor import make_reference_folder, reference_chat, reference_ids

from mlx_gemma4.config import Config
from mlx_gemma4.generation.detokenizer import Detokenizer
from mlx_gemma4.messages import parse_messages, parse_tools
from mlx_gemma4.processing.processor import Processor

pytestmark = [pytest.mark.parity, pytest.mark.google_files]

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None,
    reason="transformers needs torchvision for pictures; the goldens stand in",
)


@pytest.fixture(scope="module")
def processor(google_checkpoint: Path) -> Processor:
    return Processor.from_folder(google_checkpoint, Config.from_folder(google_checkpoint))


@pytest.fixture(scope="module")
def reference_folder(google_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_reference_folder(google_checkpoint, tmp_path_factory.mktemp("reference")))


@pytest.fixture(scope="module")
def reference_tokenizer(reference_folder: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(reference_folder)


@pytest.fixture(scope="module")
def reference_processor(reference_folder: str) -> Any:
    import transformers

    return transformers.AutoProcessor.from_pretrained(reference_folder)


@pytest.mark.parametrize("case", TEMPLATE_CASES, ids=lambda case: case.name)
def test_template(
    processor: Processor, reference_folder: str, reference_tokenizer: Any, case: Case
) -> None:
    assert processor.chat_template is not None
    reference_tokenizer.chat_template = processor.chat_template.source
    text = processor.chat_template.render(
        parse_messages(case.messages),
        tools=parse_tools(case.tools),
        thinking=case.thinking,
        add_generation_prompt=case.add_generation_prompt,
    )
    assert text == reference_chat(reference_tokenizer, case)


@needs_torchvision
@pytest.mark.parametrize("case", MEDIA_CASES, ids=lambda case: case.name)
def test_prompt(processor: Processor, reference_processor: Any, case: Case, tmp_path: Path) -> None:
    def make(words: str) -> Any:
        if words.startswith("picture"):
            return draw_picture(words)
        return draw_sound(words) if words.startswith("sound") else write_clip(words, tmp_path)

    inputs = processor(
        fill(case.messages, make), tools=case.tools, thinking=case.thinking, **case.options
    )
    assert inputs.input_ids.tolist() == reference_ids(reference_processor, case)


@pytest.mark.parametrize("name", TEXTS)
def test_tokenizer(processor: Processor, reference_tokenizer: Any, name: str) -> None:
    ids = processor.tokenizer.encode(TEXTS[name])
    assert ids == reference_tokenizer.encode(TEXTS[name])
    assert processor.tokenizer.decode(ids) == reference_tokenizer.decode(
        ids, skip_special_tokens=True
    )


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_streamed_text_of_random_ids(
    processor: Processor,
    reference_tokenizer: Any,
    rng: np.random.Generator,
    skip_special_tokens: bool,
) -> None:
    """Byte tokens and special tokens often, so that broken characters and odd borders occur."""
    tokenizer = processor.tokenizer
    often = np.array([*sorted(tokenizer.byte_ids), *sorted(tokenizer.special_ids)])
    for _ in range(50):
        anything = rng.integers(0, tokenizer.vocab_size, 200)
        ids = np.where(rng.random(200) < 0.6, rng.choice(often, 200), anything).tolist()
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        text = "".join([*map(detokenizer.add, ids), detokenizer.finish()])
        assert text == reference_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
