"""Metal Shading Language, preprocessed, into C++ that clang accepts.

The text stays what it is, line by line, but for what C++ has no word for: threadgroup variables,
attributes, constructors of vectors, address spaces behind a method.  For the strict pass, which
only checks types, address spaces stay; for code that runs, they are gone, and with them every
declaration that differs from another by nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from metal_sim.constructors import name_constructors
from metal_sim.overloads import ADDRESS_SPACES, drop_twins
from metal_sim.signatures import KernelParameter, find_kernels
from metal_sim.threadgroup_variables import place_threadgroup_variables
from metal_sim.tokens import (
    blank,
    closing,
    following,
    is_word,
    preceding,
    token_at,
    tokenize,
)

DOUBLE_LITERAL = re.compile(r"(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+")
QUALIFIERS_BEFORE_SPACE = {"const", "noexcept", "volatile"}
AFTER_METHOD = {"{", ":", ";", "=", "->", *QUALIFIERS_BEFORE_SPACE}


@dataclass(frozen=True)
class Rewritten:
    """C++ text, and the parameters of the kernels in it by the kernels' names."""

    text: str
    kernels: Mapping[str, tuple[KernelParameter, ...]]


def rewrite(
    text: str, *, strict: bool, function_constants: Mapping[int, int | bool] | None = None
) -> Rewritten:
    """Return C++ for preprocessed Metal text."""
    tokens = tokenize(text)
    kernels = find_kernels(tokens)
    if not strict:
        tokens = drop_instantiations(tokens)
    tokens = drop_attributes(tokens, function_constants or {})
    make_literals_float(tokens)
    drop_method_spaces(tokens)
    if strict:
        point_to_arrays(tokens)
    tokens = place_threadgroup_variables(tokens)
    name_constructors(tokens)
    tokens = drop_twins(tokens, frozenset() if strict else ADDRESS_SPACES)
    return Rewritten("".join(tokens), kernels)


def drop_instantiations(tokens: list[str]) -> list[str]:
    """Drop `template f<float>...;`: what is called is instantiated anyhow, the rest costs time."""
    kept = []
    i = 0
    while i < len(tokens):
        before = token_at(tokens, preceding(tokens, i))
        after = token_at(tokens, following(tokens, i))
        if tokens[i] == "template" and after != "<" and before in ("", ";", "}", "{", ")"):
            end = tokens.index(";", i)
            kept.append(blank(tokens[i:end]))
            i = end + 1
            continue
        kept.append(tokens[i])
        i += 1
    return kept


def drop_attributes(tokens: list[str], constants: Mapping[int, int | bool]) -> list[str]:
    """Drop every [[attribute]]; a function constant becomes a constant."""
    kept = []
    i = 0
    while i < len(tokens):
        if not (tokens[i] == "[" and token_at(tokens, i + 1) == "["):
            kept.append(tokens[i])
            i += 1
            continue
        end = closing(tokens, i)
        found = re.match(r"\s*function_constant\((\w+)\)", "".join(tokens[i + 2 : end - 1]))
        if found and token_at(tokens, following(tokens, end)) == ";":
            kept.append(f" = {int(constants.get(int(found[1]), 0))}")
        kept.append(blank(tokens[i:end]))
        i = end + 1
    return [token for token in kept if token]


def make_literals_float(tokens: list[str]) -> None:
    """Add the suffix of a float: Metal has no double, and `0.5` is a float as it stands."""
    for i, token in enumerate(tokens):
        if DOUBLE_LITERAL.fullmatch(token):
            tokens[i] += "f"


def drop_method_spaces(tokens: list[str]) -> None:
    """Drop the address space behind a method: `void next() thread {`."""
    for i, token in enumerate(tokens):
        if token not in ADDRESS_SPACES:
            continue
        before = preceding(tokens, i)
        while token_at(tokens, before) in QUALIFIERS_BEFORE_SPACE:
            before = preceding(tokens, before)
        after = token_at(tokens, following(tokens, i))
        if token_at(tokens, before) == ")" and after in AFTER_METHOD:
            tokens[i] = f"/*{token}*/"


def point_to_arrays(tokens: list[str]) -> None:
    """Turn parameters such as `constant int x[2]` into pointers: clang wants that said."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token == "(") - (token == ")")
        if token not in ADDRESS_SPACES or depth == 0:
            continue
        bracket = i + 1
        while token_at(tokens, bracket) not in ("[", ",", ")", "(", ";", ""):
            bracket += 1
        end = closing(tokens, bracket) if token_at(tokens, bracket) == "[" else -1
        name = preceding(tokens, bracket)
        if end < 0 or not is_word(tokens[name]):
            continue
        tokens[name] = f"(*{tokens[name]})"
        for j in range(bracket, end + 1):
            tokens[j] = blank([tokens[j]])
