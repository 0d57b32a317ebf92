"""What the compiler says, and where in a kernel's text something lies."""

import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from metal_sim.messages import Message
from metal_sim.tokens import tokenize

FILE_NAME = "kernel.metal"
DIAGNOSTIC = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):\d+: (?P<kind>fatal error|error|warning): (?P<text>.*)$"
)
# Words of C++ that Metal does not have.
FORBIDDEN = {
    *("catch", "delete", "double", "dynamic_cast", "goto", "new", "throw", "try", "typeid"),
    *("thread_local", "virtual"),
}


def forbidden_words(expanded: str) -> list[Message]:
    """Return a message for every word that Metal does not have."""
    messages = []
    line = 1
    for token in tokenize(expanded):
        if marker := re.match(r'#\s*(\d+) "', token):
            line = int(marker[1]) - 1  # of the next line, whose end of line is yet to come
        if token in FORBIDDEN:
            messages.append(Message("strict", f"Metal has no `{token}`", line))
        line += token.count("\n")
    return messages


def compiler_messages(output: str) -> list[Message]:
    """Return the compiler's errors, and the warnings that are errors in Metal."""
    messages = []
    for found in map(DIAGNOSTIC.match, output.splitlines()):
        if found is None or not is_metal_error(found["kind"], found["text"]):
            continue
        in_kernel = found["file"] == FILE_NAME
        place = "" if in_kernel else f" ({found['file']}:{found['line']})"
        line = int(found["line"]) if in_kernel else None
        messages.append(Message("compile", re.sub(r" \[-W.*\]$", "", found["text"]) + place, line))
    return messages[:12]


def is_metal_error(kind: str, text: str) -> bool:
    """Whether a diagnostic is an error in Metal: float does not become bfloat by itself."""
    if kind != "warning":
        return True
    narrows = re.search(r"loses floating-point precision: .* to '(bfloat|__bf16)", text) is not None
    return narrows or "uninitialized when used" in text or "is used uninitialized" in text


def with_source(messages: Sequence[Message], text: str) -> list[Message]:
    """Return messages with the lines that they are about."""
    lines = text.split("\n")
    return [
        Message(m.check, m.text, m.line, lines[m.line - 1].strip(), m.is_error)
        if m.line and m.line <= len(lines)
        else m
        for m in messages
    ]


@cache
def locate(path: Path, code_offset: int) -> int | None:
    """Return the line of the kernel's text that an instruction of its library was made from."""
    # The offset is where a call returns to; the byte before it belongs to the call.
    command = ["addr2line", "-i", "-e", str(path), hex(code_offset - 1)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for frame in output.splitlines():
        if found := re.match(rf"(?:.*/)?{re.escape(FILE_NAME)}:(\d+)", frame):
            return int(found[1])
    return None
