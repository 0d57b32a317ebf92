import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from tiny_tokenizer import TEMPLATE

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.messages import Message, ToolCall, parse_messages
from mlx_gemma4.processing import template_budget
from mlx_gemma4.processing.chat_template import ChatTemplate
from mlx_gemma4.processing.template_budget import MAX_MADE

VARIABLES = {"bos_token": "<bos>"}
HI = parse_messages("Hi")


def render(source: str, messages: tuple[Message, ...] = HI) -> str:
    return ChatTemplate(source).render(messages)


def test_a_template_of_the_same_grammar() -> None:
    template = ChatTemplate(TEMPLATE, VARIABLES)
    assert template.render(HI) == (
        "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    )
    assert template.render(HI, thinking=True) == (
        "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    )
    assert template.render(HI, add_generation_prompt=False) == "<bos><|turn>user\nHi<turn|>\n"
    image = parse_messages([{"role": "user", "content": [{"type": "image"}, "Hi"]}])
    assert "<|image|>Hi<turn|>" in template.render(image)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),  # trim_blocks, lstrip_blocks
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        ("{{ [1, 2] | tojson(indent='.') }}", "[\n.1,\n.2\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}b{{ messages | length }}{% endgeneration %}c", "ab1c"),
        ("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}", "2"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys(['b'], 2).b }}", "12"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 'ab' * 3 }}{{ 3 * 4 }}{{ 2 ** 5 }}", "ababab1232"),
        ("{{ messages[0].nothing }}", ""),
    ],
)
def test_what_templates_rely_on(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ [0] * 99999999 }}",
        "{{ 2 ** 9999999 }}",
        "{{ dict.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ range(999999) | list }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}aaaa{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ nothing.at.all }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content | nofilter }}",
        "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    ],
)
def test_harm_and_defects_are_errors_without_traceback(source: str) -> None:
    with pytest.raises((InputError, CheckpointError)):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' | center(n) }}",
        "{{ 'a'.ljust(n) }}",
        "{{ 'a'.join(range(999) | map('string')) | replace('a', 'b' * 99999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ 'a' * 999999 | indent(999999) }}",
        "{{ range(99999) | batch(1, n) | list }}",
        "{{ ['a' * 999999] * 9999 | join }}",
        "{% set l = ['a' * 999999] * 9999 %}{{ l }}",
        "{% set l = ['a' * 999999] * 9999 %}{{ 'a' ~ l }}",
        "{{ lipsum(99) }}",
        "{% set m.s = 'a' %}{% for i in range(99) %}{% set m.s = m.s ~ m.s %}{% endfor %}",
        "{% set m.s = [1] %}{% for i in range(99) %}{% set m.s = m.s + m.s %}{% endfor %}",
        "{% set m.s = 7 %}{% for i in range(99) %}{% set m.s = m.s * m.s %}{% endfor %}",
        "{% set s %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}{% endset %}",
    ],
)
def test_nothing_fills_the_memory(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"refuses the conversation"):
            render("{% set n, m = 999999999, namespace() %}" + source)
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_MADE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    ],
)
def test_nothing_takes_forever(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.05)
    with pytest.raises(InputError, match=r"it takes longer than 0\.0"):
        render(source)


def test_loops_and_filters_are_jinjas_own() -> None:
    """Bounds change nothing that is within them."""
    source = (
        "{% for x in [3, 1] %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ loop.last }} {% endfor %}"
        "{% for k, v in {'a': 1} | dictsort %}{{ k ~ v ~ none }}{% else %}none{% endfor %}"
        "{% for x in nothing %}{% else %}|empty|{% endfor %}"
        "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
        "{{ '%05.1f' % 2.25 }}{{ '{:>4}'.format(1) }}{{ 'a' * 3 + 'b' }}{{ 2 ** 9 }}{{ [1] + [2] }}"
        "{% set n = namespace(a=1) %}{{ n.a }}{{ n.b is defined }}"
        "{{ [1, 2] | map('string') | join('-') }}{{ range(7) | batch(3, 0) | list | length }}"
    )
    assert render(source) == Environment().from_string(source).render()


def test_the_templates_own_message_is_shown() -> None:
    with pytest.raises(InputError, match=r"chat_template.*Roles must alternate!"):
        render("{{ raise_exception('Roles must alternate!') }}")


def test_a_broken_template_is_the_checkpoints_fault() -> None:
    with pytest.raises(CheckpointError, match="broken at line 2"):
        render("\n{% nonsense %}")


def test_what_a_template_does_not_know_is_an_error() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    with pytest.raises(InputError, match="knows no thinking"):
        template.render(HI, thinking=True)
    with pytest.raises(InputError, match="knows no tools"):
        template.render(HI, tools=[{"type": "function", "function": {"name": "f"}}])


def test_messages_as_templates_see_them() -> None:
    messages = (
        Message("user", "Hi"),
        Message("assistant", reasoning="hm", tool_calls=(ToolCall("f", {"b": [1, None]}, id="7"),)),
        Message("tool", "ok", tool_call_id="7", name="f"),
    )
    user, assistant, tool = json.loads(render("{{ messages | tojson }}", messages))
    assert user == {"role": "user", "content": "Hi"}
    assert assistant == {
        "role": "assistant",
        "reasoning": "hm",
        "reasoning_content": "hm",
        "thinking": "hm",
        "tool_calls": [
            {
                "type": "function",
                "id": "7",
                "function": {"name": "f", "arguments": {"b": [1, None]}},
            }
        ],
    }
    assert tool == {"role": "tool", "content": "ok", "tool_call_id": "7", "name": "f"}


def test_where_the_template_is_found(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text("{}")
    assert ChatTemplate.from_folder(tmp_path) is None
    named: list[Any] = [{"name": ["x"], "template": "T"}, {"name": "default", "template": "D"}]
    for file, content, text in (
        (settings, json.dumps({"chat_template": named}), "D"),
        (settings, json.dumps({"chat_template": "C"}), "C"),
        (tmp_path / "chat_template.json", json.dumps({"chat_template": "J"}), "J"),
        (tmp_path / "chat_template.jinja", "{{ bos_token }}", "<bos>"),
    ):
        file.write_text(content)
        template = ChatTemplate.from_folder(tmp_path, VARIABLES)
        assert template is not None
        assert template.render(HI) == text


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*chat_template.json"):
        ChatTemplate.from_folder(tmp_path)
    os.truncate(tmp_path / "chat_template.json", 1 << 25)
    with pytest.raises(CheckpointError, match=r"json has 33,554,432 bytes; at most 16,777,216"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot read"):
        ChatTemplate.from_folder(tmp_path)
    os.truncate(tmp_path / "chat_template.jinja", 1 << 25)
    with pytest.raises(CheckpointError, match=r"jinja has 33,554,432 bytes; at most 1,048,576"):
        ChatTemplate.from_folder(tmp_path)
