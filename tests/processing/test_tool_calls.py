from typing import Any

import pytest

from mlx_gemma4.messages import ToolCall
from mlx_gemma4.processing.tool_calls import parse_tool_calls


def arguments(text: str) -> dict[str, Any]:
    (call,) = parse_tool_calls("call:f" + text)
    assert call.name == "f"
    return dict(call.arguments)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{}", {}),
        ('{k:<|"|>s<|"|>}', {"k": "s"}),
        ("{n:2,x:-1.5e3,b:true,c:false,z:null}", dict(n=2, x=-1500.0, b=True, c=False, z=None)),
        ('{l:[1,<|"|>a<|"|>,[]],o:{p:{q:1}}}', {"l": [1, "a", []], "o": {"p": {"q": 1}}}),
        ('{k:<|"|>a, {b}: [c] "d"\ncall:g{}<|"|>,n:1}', {"k": 'a, {b}: [c] "d"\ncall:g{}', "n": 1}),
        ('{k:<|"|><|"|>}', {"k": ""}),
        ('{<|"|>a key<|"|>:1}', {"a key": 1}),
        (' { a : 1 , b : <|"|>x<|"|> } ', {"a": 1, "b": "x"}),
        ('{"a": "x\\n\\"y\\"", "b": [true, null]}', {"a": 'x\n"y"', "b": [True, None]}),  # JSON
        ("{a:'it\\'s',b:1}", {"a": "it\\'s", "b": 1}),
        ('(a=1, b=<|"|>x<|"|>)', {"a": 1, "b": "x"}),
        ("{city:New York,zip:00420}", {"city": "New York", "zip": "00420"}),
        ("{code:g(x, [1, 2]),n:1}", {"code": "g(x, [1, 2])", "n": 1}),
        ("{a:None,b:True}", {"a": None, "b": True}),
        ("{a:1,}", {"a": 1}),
        ("{a:{b:1", {"a": {"b": 1}}),  # the block's end closes it
        ('{город:<|"|>Париж<|"|>}', {"город": "Париж"}),
        ("", {}),
    ],
)
def test_arguments(text: str, values: dict[str, Any]) -> None:
    assert arguments(text) == values


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("call:a{x:1}call:b{y:2}", [("a", {"x": 1}), ("b", {"y": 2})]),
        ("call:a{x:1}, call:b{}", [("a", {"x": 1}), ("b", {})]),
        (" call : a.b-c/d {x:1}\n", [("a.b-c/d", {"x": 1})]),
        ("get_weather{city:1}", [("get_weather", {"city": 1})]),
        ("call{x:1}", [("call", {"x": 1})]),
        ("caller{x:1}", [("caller", {"x": 1})]),
        ('{"name": "a", "arguments": {"x": 1}}', [("a", {"x": 1})]),
        ('{"name": "a", "parameters": {}}', [("a", {})]),
    ],
)
def test_calls(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert parse_tool_calls(text) == tuple(ToolCall(name, values) for name, values in calls)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I would call a tool",
        "call:",
        "call:f{a}",
        "call:f{a:}",
        "call:f{a:1 b:2",
        'call:f{a:<|"|>never closed}',
        'call:f{a:<|"|>x<|"|> y}',
        'call:f{a:x<|"|>y<|"|>}',
        "call:f{a:(1}",
        "call:f{a:1]}",
        "call:f{a:1}}",
        "call:f{:1}",
        '{"arguments": {}}',
        "call:f" + "{a:" * 100 + "1",
        "call:f{a:" + "9" * 5000 + "}",
        'call:f{a:"\\x"}',
    ],
)
def test_what_is_not_certain_is_no_call(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_tool_calls(text)
