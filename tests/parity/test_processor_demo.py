"""The demo checkpoint speaks Gemma's own grammar: its template against the same goldens."""

import json
from pathlib import Path

import pytest
from prompt_cases import TEMPLATE_CASES, Case

from mlx_gemma4.messages import parse_messages, parse_tools
from mlx_gemma4.processing.chat_template import ChatTemplate

GOLDENS = Path(__file__).parent.parent / "data" / "processor" / "chat_template.json"


@pytest.fixture(scope="module")
def template(repository: Path) -> ChatTemplate:
    source = repository / "benchmarks" / "demo" / "chat_template.jinja"
    return ChatTemplate(source.read_text(encoding="utf-8"), {"bos_token": "<bos>"})


@pytest.mark.parametrize("case", TEMPLATE_CASES, ids=lambda case: case.name)
def test_template_writes_what_googles_writes(template: ChatTemplate, case: Case) -> None:
    text = template.render(
        parse_messages(case.messages),
        tools=parse_tools(case.tools),
        thinking=case.thinking,
        add_generation_prompt=case.add_generation_prompt,
    )
    assert text == json.loads(GOLDENS.read_text(encoding="utf-8"))[case.name]
