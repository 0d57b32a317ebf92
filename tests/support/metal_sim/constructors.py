"""Constructors of vectors, and casts: calls of metal_sim::construct, which knows vectors."""

import re

from metal_sim.tokens import (
    blank,
    closing,
    closing_angle,
    following,
    is_word,
    preceding,
    token_at,
)

SCALARS = ("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong")
FLOATS = ("half", "bfloat", "float")
VECTORS = {f"{scalar}{n}" for scalar in [*SCALARS, *FLOATS, "bfloat16_t"] for n in (2, 3, 4)}
VECTOR_PATTERN = rf"(?:metal::)?(?:vec\s*<[^;]*>|(?:{'|'.join([*SCALARS, *FLOATS])})[234])"
NARROW_FLOATS = {"half", "bfloat", "float16_t", "bfloat16_t"}


def name_constructors(tokens: list[str]) -> None:
    """Turn `float4(a, b)`, `T(x)` and static_cast into functions that know Metal's vectors."""
    text = "".join(tokens)
    vectors = VECTORS | set(
        re.findall(r"\busing\s+(\w+)\s*=\s*(?:typename\s+)?" + VECTOR_PATTERN, text)
    )
    vectors |= set(re.findall(r"\btypedef\s+" + VECTOR_PATTERN + r"\s+(\w+)\s*;", text))
    type_parameters = set(re.findall(r"\b(?:typename|class)\s+(\w+)\s*[,>=]", text))
    named = vectors | type_parameters | NARROW_FLOATS

    for i, token in enumerate(tokens):
        after = following(tokens, i)
        if token in named and token_at(tokens, after) == "(" and is_value(tokens, i, after):
            tokens[i] = f"::metal_sim::construct<{token}>"
        elif token == "vec" and token_at(tokens, after) == "<":
            name_vec_constructor(tokens, i, after)
        elif token == "static_cast" and token_at(tokens, after) == "<":
            end = closing_angle(tokens, after)
            kind = "".join(tokens[after + 1 : end]).strip() if end > 0 else ""
            if re.fullmatch(r"(?:metal::)?(?:[A-Za-z_]\w*|vec\s*<.*>)", kind, re.S):
                tokens[i] = "::metal_sim::construct"


def is_value(tokens: list[str], i: int, opening: int) -> bool:
    """Whether a type at `i` and its parenthesis make a value, and declare nothing."""
    before = token_at(tokens, preceding(tokens, i))
    if before in ("::", "~") or (before not in ("return", "case") and is_word(before)):
        return False
    # `T (&x)[4]` and `T (*f)(int)` declare x and f.
    is_declarator = token_at(tokens, following(tokens, opening)) in ("&", "*")
    return not (
        is_declarator
        and token_at(tokens, following(tokens, closing(tokens, opening))) in ("[", "(")
    )


def name_vec_constructor(tokens: list[str], i: int, after: int) -> None:
    """Turn `vec<T, n>(...)`, with or without `metal::`, into a call of construct."""
    end = closing_angle(tokens, after)
    if end < 0 or token_at(tokens, following(tokens, end)) != "(":
        return
    first = i
    if token_at(tokens, preceding(tokens, i)) == "::":
        first = preceding(tokens, preceding(tokens, i))
    if not is_value(tokens, first, following(tokens, end)):
        return
    for j in range(first, i):
        tokens[j] = blank([tokens[j]])
    tokens[i] = "::metal_sim::construct<metal::vec"
    tokens[end] += ">"
