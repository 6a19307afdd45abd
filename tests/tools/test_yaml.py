"""What is written as YAML is read back as it was, by a reader of YAML 1.1, which takes more for something else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from broker.tools.asyncapi import written

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
        "a\x85\nb",
    ]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(SCALAR, lambda part: st.lists(part) | st.dictionaries(TEXT, part), max_leaves=20)


@given(VALUE)
def test_it_is_read_back_as_it_was(value: Any) -> None:
    assert yaml.safe_load(written({"value": value}, "yaml")) == {"value": value}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"text": "two\nlines"}, b"text: |-\n  two\n  lines\n"),
        ({"version": "1.0", "on": "1e3"}, b"version: '1.0'\n'on': '1e3'\n"),
        ({"z": [same := {"a": 1}, same]}, b"z:\n- a: 1\n- a: 1\n"),
    ],
    ids=str,
)
def test_it_reads_well(value: Any, shown: bytes) -> None:
    assert written(value, "yaml") == shown
