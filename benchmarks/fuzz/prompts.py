"""Targets that read words: templates, conversations, and answers."""

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz.case import Files, Target, write_files
from fuzz.checkpoints import MIB, demo_file
from fuzz.mutation import mutate_bytes, mutate_json, mutate_text
from mlx_gemma4.config import Config
from mlx_gemma4.generation.detokenizer import Detokenizer
from mlx_gemma4.messages import parse_messages, parse_tools
from mlx_gemma4.processing.chat_template import ChatTemplate
from mlx_gemma4.processing.output_parser import OutputParser
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.processing.template_budget import MAX_MADE

_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQ"
    "AAAABJRU5ErkJggg=="
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "enum": ["a", "b"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "where": {"type": "object", "properties": {"x": {"type": "number"}}},
                },
                "required": ["place"],
            },
        },
    }
]
_CALL = {"name": "get_weather", "arguments": '{"place": "a", "days": [1, 2]}'}
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I ask.",
        "tool_calls": [{"id": "1", "type": "function", "function": _CALL}],
    },
    {"role": "tool", "tool_call_id": "1", "content": '{"sun": true}'},
    {
        "role": "assistant",
        "content": "Sunny.",
        "tool_responses": [{"name": "get_weather", "response": {"sun": [1, 2.5, None]}}],
    },
    {"role": "user", "content": "And tomorrow?"},
]
_LOOK = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": _PICTURE, "detail": "auto"}},
            {"type": "image", "base64": _PICTURE.partition(",")[2]},
            {"type": "input_text", "text": "What is this?"},
        ],
    }
]
MESSAGE_WORDS = ("user", "tool", "model", "image", "audio", "input_audio", "video_url", "base64")
MESSAGE_WORDS += ("<|image|>", "<|turn>", "<bos>", "data:,", "data:a;base64,AA==", "file:///x")
MESSAGE_WORDS += ("https://a.b/c", "~nobody/x", "type", "text", "content", "arguments", "url")


@cache
def read_conversations() -> tuple[Files, ...]:
    """Return conversations with tools, pictures, and thoughts."""
    tools = json.dumps(_TOOLS).encode()
    return tuple(
        {"messages.json": json.dumps(messages).encode(), "tools.json": tools}
        for messages in (_TALK, _LOOK, _TALK + _LOOK)
    )


def mutate_conversation(rng: Random, real: Sequence[Files]) -> Files:
    """Change the messages, or the tools."""
    files = rng.choice(real)
    name = rng.choice(("messages.json", "messages.json", "tools.json"))
    return {**files, name: mutate_json(rng, json.loads(files[name]), MESSAGE_WORDS)}


@cache
def _processor() -> Processor:
    """Return the bundled checkpoint's processor, its template with tools and thinking."""
    folder = Path(sys.modules["mlx_gemma4"].__path__[0]) / "demo"
    return Processor.from_folder(folder, Config.from_folder(folder))


def run_conversation(files: Files, folder: Path) -> None:
    """Make the model's inputs of a conversation, and cut them as prefill does."""
    try:
        messages, tools = (json.loads(files[f"{name}.json"]) for name in ("messages", "tools"))
    except (ValueError, RecursionError):
        return  # what a caller gives is parsed already
    inputs = _processor()(messages, tools=tools)
    inputs.chunks(7)


@cache
def read_templates() -> tuple[Files, ...]:
    """Return the bundled template, in a file of its own and in one of JSON."""
    source = demo_file("chat_template.jinja")
    return ({"chat_template.jinja": source},)


_TEMPLATE_WORDS = ("{%", "%}", "{{", "}}", "{#", "-%}", "{%-", "if", "else", "endif", "for", "in")
_TEMPLATE_WORDS += ("endfor", "set", "macro", "endmacro", "call", "filter", "endfilter", "loop")
_TEMPLATE_WORDS += ("namespace", "range", "99999", "10**9", "|", "~", "+", "*", "%", "is", "not")
_TEMPLATE_WORDS += ("messages", "message", "tools", "dict", "tojson", "indent", "center", "format")
_TEMPLATE_WORDS += ("join", "list", "map", "sort", "batch", "slice", "replace", "wordwrap", "xml")
_TEMPLATE_WORDS += ("attr", "__class__", "cycler", "joiner", "lipsum", "include", "import", "'x'")
_TEMPLATE_WORDS += ("raise_exception", "strftime_now", "recursive", "break", "continue", "(", ")")
_TEMPLATE_WORDS += ("[", "]", ".", "'", '"', "\\", "\ud800", "generation", "None", "1.5", "-1", ":")
# Each fills memory or takes forever in a sandbox without bounds.
_GREEDY = (
    "{{ 'a'|center(10**9) }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ ('a' * 99999)|indent(99999) }}",
    "{{ messages|tojson(indent=10**8) }}",
    "{{ lipsum(n=10**6) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "{{ range(99999)|batch(1, 10**7)|list }}",
    "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "{{ ['a' * 999999] * 9999 | join }}",
    "{{ (range(99999)|list) | slice(10**9) | list }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ ('a' * 999 + 'b').split('a') | map('center', 10**7) | list }}",
    "{{ range(99999) | sum | string | wordwrap(1) }}",
)


def mutate_template(rng: Random, real: Sequence[Files]) -> Files:
    """Change the template's text; now and then something greedy gets into it."""
    text = rng.choice(real)["chat_template.jinja"].decode()
    if rng.random() < 0.05:
        at = text.find("\n", rng.randrange(len(text))) + 1
        greedy = mutate_text(rng, rng.choice(_GREEDY), _GREEDY, _TEMPLATE_WORDS)
        text = text[:at] + rng.choice((greedy, rng.choice(_GREEDY))) + text[at:]
    if rng.random() < 0.9:
        text = mutate_text(rng, text, (text, *_GREEDY), _TEMPLATE_WORDS)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        content = mutate_bytes(rng, content)
    if rng.random() < 0.1:
        form: Any = text if rng.random() < 0.5 else [{"name": "default", "template": text}]
        return {"chat_template.json": mutate_json(rng, {"chat_template": form})}
    return {"chat_template.jinja": content}


def run_template(files: Files, folder: Path) -> None:
    """Render a conversation as the processor does."""
    variables = {"bos_token": "<bos>", "eos_token": "<eos>"}
    template = ChatTemplate.from_folder(write_files(files, folder), variables)
    if template is None:
        return
    if len(template.source) % 3:
        tools = parse_tools(_TOOLS) if "tools" in template.variables else None
        template.render(parse_messages(_TALK), tools=tools)
    else:
        template.render(parse_messages(_LOOK), thinking="enable_thinking" in template.variables)


_ANSWERS = (
    '<|channel>thought\nHm.<channel|>It is <b>.<|tool_call>call:f{a:<|"|>x, }<|"|>,b:[1,2.5e3,-0],'
    "c:{d:true,e:null}}<tool_call|><turn|>",
    '<|tool_call>{"name": "f", "arguments": {"a": "\\u00e9\\n", "b": [[]]}}<tool_call|>',
    "<|tool_call>call:f(a='it\\'s', b=007, c=(1))<tool_call|>Done",
)


@cache
def read_answers() -> tuple[Files, ...]:
    """Return answers with thoughts and tool calls."""
    return tuple({"answer.txt": answer.encode()} for answer in _ANSWERS)


def mutate_answer(rng: Random, real: Sequence[Files]) -> Files:
    """Change an answer's marks, words, and bytes."""
    text = rng.choice(real)["answer.txt"].decode()
    words = ("{", "}", "[", "]", "(", ")", ",", ":", "=", "'", '"', "\\", '<|"|>', "<|tool_call>")
    words += ("<tool_call|>", "<|channel>", "<channel|>", "thought\n", "call:", "1e999", "9" * 5000)
    words += ("[" * 5000, "{a:" * 5000, "'" * 3000, '"\\' * 3000, "\\u12", "a b", " " * 5000)
    text = mutate_text(rng, text, _ANSWERS, words)
    content = text.encode()
    return {"answer.txt": mutate_bytes(rng, content) if rng.random() < 0.2 else content}


def run_answer(files: Files, folder: Path) -> None:
    """Sort an answer's ids into channels."""
    tokenizer = _processor().tokenizer
    text = files["answer.txt"].decode("utf-8", "replace")[: 1 << 18]  # the longest context
    parser = OutputParser(tokenizer, Detokenizer)
    for token_id in tokenizer.encode(text):
        parser.add(token_id)
    parser.finish()
    _ = parser.output


# All that a template may make, if it keeps it: references of lists, and characters beyond Latin.
_TEMPLATE_BYTES = 8 * MAX_MADE
# Patches of as many soft tokens as the bundled checkpoint has positions, one by one and joined.
_CONTEXT_BYTES = 2 * 8192 * 4 * 6912 + 256 * MIB

TARGETS = (
    Target("template", read_templates, mutate_template, run_template, _TEMPLATE_BYTES),
    Target("messages", read_conversations, mutate_conversation, run_conversation, _CONTEXT_BYTES),
    Target("answer", read_answers, mutate_answer, run_answer, 256 * MIB),
)
