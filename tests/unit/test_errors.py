"""The tree of errors, as the drawing says."""

from __future__ import annotations

import inspect
import re

import pytest

import broker
from broker import errors
from broker.errors import BrokerError, NotConfirmed, PublishFailed, PublishRefused, TooLarge, Unroutable, near_miss
from broker.events import uuid7

LINE = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?:\s{2,}|$)")

EXIT_CODES = {
    "ConnectionFailed": 3,
    "AccessRefused": 4,
    "TopologyConflict": 5,
    "PublishFailed": 6,
    "NotConfirmed": 6,
    "PublishRefused": 6,
    "Unroutable": 6,
    "TooLarge": 6,
    "DatabaseUnusable": 7,
    "ContractError": 2,
    "UnknownEvent": 2,
}


def drawn() -> dict[str, str | None]:
    """Each class of the drawing with the class above it."""
    drawing = inspect.getdoc(errors)
    assert drawing is not None
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in drawing.split("::", 1)[1].split("Every class", maxsplit=1)[0].splitlines():
        match = LINE.match(line.removeprefix("    "))
        if match:
            depth = len(match["indent"]) // 4
            parents[match["name"]] = above[depth - 1] if depth else None
            above[depth:] = [match["name"]]
    return parents


def classes() -> dict[str, type[BaseException]]:
    return {name: it for name, it in vars(errors).items() if inspect.isclass(it) and issubclass(it, errors.BrokerError)}


def test_the_drawing_names_every_class_and_its_parent() -> None:
    assert drawn() == {
        name: None if it is BrokerError else it.__base__.__name__  # type: ignore[union-attr]
        for name, it in classes().items()
    }


def test_the_tree_is_the_one_that_was_promised() -> None:
    assert set(drawn()) == set(
        "BrokerError ConnectionFailed AccessRefused TopologyConflict PublishFailed NotConfirmed PublishRefused "  # noqa: SIM905
        "Unroutable TooLarge DatabaseUnusable ContractError UnknownEvent Malformed Unhandled Reject".split()
    )
    for name in drawn():
        assert getattr(broker, name) is getattr(errors, name), f"{name} is public"


@pytest.mark.parametrize("name", sorted(classes()))
def test_each_class_is_documented_and_has_an_exit_code(name: str) -> None:
    it = classes()[name]
    assert it.__doc__
    assert it.exit_code == EXIT_CODES.get(name, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "stored"),
    [(NotConfirmed, "unknown"), (PublishRefused, "unknown"), (Unroutable, "no"), (TooLarge, "no")],
)
def test_a_failed_publish_tells_the_event_and_whether_it_is_stored(error: type[PublishFailed], stored: str) -> None:
    event_id = uuid7()
    assert (error("why", event_id).event_id, error.stored) == (event_id, stored)
    assert error("why").event_id is None


def test_near_misses_become_a_question() -> None:
    assert near_miss("order.plcaed", ["order.placed", "van.broke"]) == " Did you mean 'order.placed'?"
    assert near_miss("xyz", ["order.placed"]) == ""
    assert near_miss("xyz", []) == ""
