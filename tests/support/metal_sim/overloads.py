"""Declarations that differ from an earlier one by address spaces alone are dropped.

`complex_t() thread` and `complex_t() threadgroup` are two constructors in Metal and one in C++;
`f(device T*)` and `f(constant T*)` are two functions until address spaces are gone.
"""

from collections.abc import Set as AbstractSet

from metal_sim.tokens import (
    blank,
    closing,
    closing_angle,
    following,
    is_code,
    preceding,
    token_at,
)

ADDRESS_SPACES = {"thread", "threadgroup", "device", "constant"}
RECORDS = {"struct", "class", "union"}


def drop_twins(tokens: list[str], insignificant: AbstractSet[str]) -> list[str]:
    """Return tokens in which every definition stands once in its scope.

    Args:
        tokens: Address spaces of methods are comments already, which never tell two apart.
        insignificant: Words that do not tell two definitions apart either.
    """
    kept: list[str] = []
    scopes: list[dict[str, str]] = [{}]
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token == "}" and len(scopes) > 1:
            scopes.pop()
        if not is_code(token) or token in ("}", ";"):
            kept.append(token)
            i += 1
            continue
        head = Head(tokens, i, insignificant)
        if head.end >= len(tokens):
            kept += tokens[i:]
            break
        if head.opens in ("}", ":"):  # a stray brace, or `public:`
            i, start = head.end + (head.opens == ":"), i
            kept += tokens[start:i]
            continue
        stop = head.end + 1 if head.opens == ";" else closing(tokens, head.end) + 1
        if head.is_definition and scopes[-1].get(head.key, head.text) != head.text:
            if head.is_record and token_at(tokens, following(tokens, stop - 1)) == ";":
                stop = following(tokens, stop - 1) + 1
            kept.append(blank(tokens[i:stop]))
        else:
            scopes[-1].setdefault(head.key, head.text)
            if head.is_scope:
                stop = head.end + 1
                scopes.append({})
            kept += tokens[i:stop]
        i = stop
    return [token for token in kept if token]


class Head:
    """What stands before the brace or semicolon of a declaration that starts at `start`."""

    def __init__(self, tokens: list[str], start: int, insignificant: AbstractSet[str]):
        self.tokens = tokens
        self.has_parameters = self.has_equals = False
        self.colon = -1
        self.end = self._find_end(start)
        self.opens = token_at(tokens, self.end)
        first = start
        while token_at(tokens, first) == "template":
            first = following(tokens, closing_angle(tokens, following(tokens, first)))
        self.is_record = token_at(tokens, first) in RECORDS
        is_namespace = token_at(tokens, first) in ("namespace", "extern")
        stop = self.colon if self.colon >= 0 and self.has_parameters else self.end
        words = [token for token in tokens[start:stop] if is_code(token)]
        self.text = " ".join(words)
        words = [w for w in words if w not in insignificant and not w.startswith("/*")]
        self.key = " ".join(words)
        has_body = self.opens == "{" and not is_namespace
        self.is_definition = has_body and (self.has_parameters or self.is_record)
        self.is_scope = self.opens == "{" and (
            is_namespace or (self.is_record and not self.has_equals)
        )

    def _find_end(self, start: int) -> int:
        tokens = self.tokens
        depth = 0
        i = start
        while i < len(tokens):
            token = tokens[i]
            after = following(tokens, i)
            if token == "template" and depth == 0 and token_at(tokens, after) == "<":
                i = closing_angle(tokens, after) + 1
                continue
            if token in ("(", "["):
                depth += 1
                self.has_parameters |= token == "("
            elif token in (")", "]"):
                depth -= 1
            elif depth == 0 and token == ":" and self.colon < 0:
                if token_at(tokens, preceding(tokens, i)) in ("public", "private", "protected"):
                    return i
                self.colon = i
            elif depth == 0 and token == "=":
                self.has_equals = True
            elif depth == 0 and token == "{" and self._is_initializer(i):
                i = closing(tokens, i)
            elif depth == 0 and token in (";", "{", "}"):
                return i
            i += 1
        return len(tokens)

    def _is_initializer(self, i: int) -> bool:
        """Whether a brace belongs to `member{value}` in a constructor's list."""
        before = token_at(self.tokens, preceding(self.tokens, i))
        return self.colon >= 0 and self.has_parameters and before not in (")", "}")
