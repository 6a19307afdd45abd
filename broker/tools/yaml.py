"""JSON values as YAML: written only, so that nobody needs a library for it.

What YAML 1.1 and 1.2 read alike: block style, and double quotes as in JSON around every text that could be taken for
anything else than text. Texts of several lines stand as they are, for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.,/()'+-]*( [A-Za-z0-9_$.,/()'+-]+)*")
RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
"""Not text in one version of YAML or the other, in whatever case."""


def to_yaml(value: Any) -> str:
    """What ``json.dumps`` could write, as a YAML document; mappings keep their order.

    Raises:
        TypeError, ValueError: it cannot be JSON.
    """
    return "\n".join(_block(value, "")) + "\n"


def _block(value: Any, indent: str) -> Iterator[str]:
    """The lines of a value that begins on a line of its own."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _entry(f"{indent}{_text(key)}:", each, indent)
    elif isinstance(value, list | tuple) and value:
        for each in value:
            if isinstance(each, Mapping | list | tuple) and each:
                first, *others = _block(each, f"{indent}  ")
                yield f"{indent}- {first.lstrip(' ')}"
                yield from others
            else:
                yield from _entry(f"{indent}-", each, indent)
    else:
        yield f"{indent}{_scalar(value)}"


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    """The lines of a value that begins behind something."""
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from _block(value, f"{indent}  ")
    elif isinstance(value, str) and _readable(value):
        yield f"{head} |-"
        yield from (f"{indent}  {line}" if line else "" for line in value.split("\n"))
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    written = json.dumps(value, allow_nan=False)
    # YAML 1.1 takes 1e+22 for text
    return re.sub(r"^(-?\d+)e", r"\1.0e", written) if isinstance(value, float) else written


def _text(text: str) -> str:
    if PLAIN.fullmatch(text) and text.lower() not in RESERVED:
        return text
    return "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _readable(text: str) -> bool:
    """Whether it may stand as it is, over several lines."""
    return "\n" in text and text.replace("\n", "").isprintable() and text[0] not in "\n " and text[-1] != "\n"
