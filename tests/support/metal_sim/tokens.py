"""C++ text as tokens, and how to find one's way in them.

Tokens keep every character, white space and line markers included, so that joining them gives the
text again and every line keeps its number.
"""

import re

TOKEN = re.compile(
    r"""
    \s+
  | \#[^\n]*                                        # line markers and pragmas
  | "(?:\\.|[^"\\])*"
  | '(?:\\.|[^'\\])*'
  | (?:0[xX][0-9a-fA-F]+ | (?:\d[\w.]*|\.\d+) (?:(?<=[eE])[+-]\d+)?) \w*
  | [A-Za-z_]\w*
  | ::|->\*?|<<=|<<|\+\+|--|[-+*/%&|^=!<>]=|&&|\|\|  # no `>>`: it may close two lists
  | .
    """,
    re.S | re.X,
)
OPENING = {"(": ")", "[": "]", "{": "}"}
CLOSING = set(OPENING.values())


def tokenize(text: str) -> list[str]:
    """Return the tokens of a text without comments."""
    return TOKEN.findall(text)


def is_code(token: str) -> bool:
    """Whether a token is more than white space or a directive."""
    return bool(token) and not (token[0].isspace() or token[0] == "#")


def is_word(token: str) -> bool:
    """Whether a token is a name or a keyword."""
    return token[:1].isalpha() or token[:1] == "_"


def blank(tokens: list[str]) -> str:
    """Return what has to stay of dropped tokens, so that lines keep their numbers."""
    return "".join(t if t.startswith("#") else "\n" * t.count("\n") for t in tokens)


def following(tokens: list[str], i: int) -> int:
    """Return the index of the next token of code after `i`; len(tokens) if there is none."""
    i += 1
    while i < len(tokens) and not is_code(tokens[i]):
        i += 1
    return i


def preceding(tokens: list[str], i: int) -> int:
    """Return the index of the last token of code before `i`; -1 if there is none."""
    i -= 1
    while i >= 0 and not is_code(tokens[i]):
        i -= 1
    return i


def token_at(tokens: list[str], i: int) -> str:
    """Return a token, or "" beyond either end."""
    return tokens[i] if 0 <= i < len(tokens) else ""


def closing(tokens: list[str], i: int) -> int:
    """Return the index of the bracket that closes the one at `i`; -1 if nothing does."""
    depth = 0
    for j in range(i, len(tokens)):
        if tokens[j] in OPENING:
            depth += 1
        elif tokens[j] in CLOSING:
            depth -= 1
            if depth == 0:
                return j
    return -1


def closing_angle(tokens: list[str], i: int) -> int:
    """Return the index of the `>` that closes the `<` at `i`; -1 if it is a comparison."""
    depth = 0
    j = i
    while 0 <= j < len(tokens):
        token = tokens[j]
        if token in OPENING and token != "{":
            j = closing(tokens, j)
            if j < 0:
                return -1
        elif token == "<":
            depth += 1
        elif token == ">":
            depth -= 1
            if depth == 0:
                return j
        elif token in CLOSING or token in (";", "{"):
            return -1
        j += 1
    return -1


def top_level(tokens: list[str], i: int, stop: int, wanted: str) -> int:
    """Return where `wanted` first stands outside of brackets in tokens[i:stop]; `stop` if not."""
    depth = 0
    for j in range(i, stop):
        if depth == 0 and tokens[j] == wanted:
            return j
        if tokens[j] in OPENING:
            depth += 1
        elif tokens[j] in CLOSING:
            depth -= 1
    return stop
