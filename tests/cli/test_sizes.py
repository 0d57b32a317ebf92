"""Sizes as people write them."""

import pytest

from mlx_gemma4.cli.sizes import parse_memory, parse_seconds, parse_tokens
from mlx_gemma4.errors import OptionError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_tokens, "8000", 8000),
        (parse_tokens, "128k", 131_072),
        (parse_tokens, "1.5K", 1536),
        (parse_tokens, "1m", 1 << 20),
        (parse_memory, "16GB", 16 * 10**9),
        (parse_memory, "16 gib", 16 << 30),
        (parse_memory, "0.5TB", 5 * 10**11),
        (parse_seconds, "120s", 120),
        (parse_seconds, "120", 120),
        (parse_seconds, "2m", 120),
        (parse_seconds, "1.5h", 5400),
    ],
)
def test_sizes_are_read(parse, text, value):
    assert parse("--option", text) == value


@pytest.mark.parametrize("text", ["", "k", "0", "-3", "1e9", "12x", "1,5k", "nan", "9" * 40])
@pytest.mark.parametrize("parse", [parse_tokens, parse_memory, parse_seconds])
def test_what_is_none_is_refused_with_what_is_allowed(parse, text):
    with pytest.raises(OptionError, match=r"--option is .*; allowed is .* such as"):
        parse("--option", text)


def test_memory_needs_a_unit():
    with pytest.raises(OptionError, match="16GB"):
        parse_memory("--memory", "16")
