"""Threadgroup variables: `threadgroup T x[n];`, a declaration that C++ has no word for.

It becomes a reference into the runtime's arena, to an array of the same type and address space.
"""

import re

from metal_sim.tokens import (
    blank,
    closing,
    closing_angle,
    following,
    is_code,
    preceding,
    token_at,
    top_level,
)


def place_threadgroup_variables(tokens: list[str]) -> list[str]:
    """Turn `threadgroup T x[n];` inside a function into a reference into the runtime's arena."""
    kept = []
    count = depth = i = 0
    while i < len(tokens):
        token = tokens[i]
        depth += (token == "{") - (token == "}")
        end = end_of_threadgroup_variables(tokens, i) if depth > 0 else -1
        if end < 0:
            kept.append(token)
            i += 1
            continue
        if token_at(kept, preceding(kept, len(kept))) == "static":
            del kept[preceding(kept, len(kept)) :]
        kind, declarators = split_declaration(tokens, i + 1, end)
        for name, dimensions in declarators:
            alias = f"ThreadgroupVariable{count}"
            kept.append(
                f"typedef {kind} {alias}{dimensions}; "
                f"threadgroup {alias}& {name} = *(threadgroup {alias}*)"
                f'metal_sim_threadgroup_variable({count}, sizeof({alias}), "{name}");'
            )
            count += 1
        kept.append(blank(tokens[i:end]))
        i = end + 1
    return [token for token in kept if token]


def end_of_threadgroup_variables(tokens: list[str], i: int) -> int:
    """Return where a declaration of threadgroup variables at `i` ends; -1 if it is none."""
    if tokens[i] != "threadgroup":
        return -1
    before = token_at(tokens, preceding(tokens, i))
    if before not in ("", ";", "{", "}", ")", ":", "static"):
        return -1
    j = i + 1
    while j < len(tokens):
        token = tokens[j]
        if token == "<":
            j = max(j, closing_angle(tokens, j))
        elif token in ("*", "&", "&&", "(", "{", "}"):
            # A pointer or reference to what exists, or a function; alignas(...) is neither.
            if not (token == "(" and token_at(tokens, preceding(tokens, j)) == "alignas"):
                return -1
            j = closing(tokens, j)
        elif token in ("[", ",", ";", "="):
            return top_level(tokens, j, len(tokens), ";")
        j += 1
    return -1


def split_declaration(tokens: list[str], start: int, end: int) -> tuple[str, list[tuple[str, str]]]:
    """Return the type of a declaration, and name and dimensions of everything that it declares."""
    j = start
    while tokens[j] not in ("[", ",", ";", "="):
        j = closing_angle(tokens, j) if tokens[j] == "<" and closing_angle(tokens, j) > 0 else j
        j = closing(tokens, j) if tokens[j] == "(" else j
        j += 1
    name = preceding(tokens, j)
    kind = "".join(token for token in tokens[start:name] if is_code(token) or token.isspace())
    kind = " ".join(re.sub(r"\balignas\s*\([^)]*\)", "", kind).split())
    declarators = []
    while name < end:
        comma = top_level(tokens, name, end, ",")
        equals = top_level(tokens, name, comma, "=")  # an initializer has no effect in Metal
        dimensions = "".join(token for token in tokens[name + 1 : equals] if is_code(token))
        declarators.append((tokens[name], dimensions))
        name = following(tokens, comma)
    return kind, declarators
