import json
from pathlib import Path

import pytest
from tiny_tokenizer import TEMPLATE

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.messages import Message, ToolCall, parse_messages
from mlx_gemma4.processing.chat_template import ChatTemplate

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
    ],
)
def test_harm_and_defects_are_errors_without_traceback(source: str) -> None:
    with pytest.raises((InputError, CheckpointError)):
        render(source)


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
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
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
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot read"):
        ChatTemplate.from_folder(tmp_path)
