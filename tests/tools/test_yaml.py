"""What is written as YAML is read back as it was, by a reader of YAML 1.1, which takes more for something else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from broker.tools.yaml import to_yaml

# Half characters cannot be written at all.
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "no",
        "Null",
        "~",
        "1e3",
        "0x1f",
        "1:30",
        "- a",
        "a: b",
        "a #b",
        "a\n\n b\n",
        " a\nb",
        "a\n ",
        "\ufeff",
        "=",
        "<<",
        "é",
    ]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(SCALAR, lambda part: st.lists(part) | st.dictionaries(TEXT, part), max_leaves=20)


@given(VALUE)
def test_it_is_read_back_as_it_was(value: Any) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({}, "{}\n"),
        ({"a": [], "b": [1, {"c": None, "d": "x"}]}, "a: []\nb:\n  - 1\n  - c: null\n    d: x\n"),
        ({"text": "two\nlines"}, "text: |-\n  two\n  lines\n"),
        ({"$ref": "#/a"}, '$ref: "#/a"\n'),
        ({"version": "1.0", "on": True}, 'version: "1.0"\n"on": true\n'),
    ],
    ids=str,
)
def test_it_reads_well(value: Any, written: str) -> None:
    assert to_yaml(value) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": object()}], ids=str)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_yaml(value)
