"""The books of the fault matrix can tell: each thing that must not happen is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.faults.ledger import Books

EVENTS = frozenset(range(6))
BALANCED = Books(
    attempted=EVENTS | {6, 7},
    confirmed=EVENTS,
    refused=frozenset({6}),
    handled=Counter([0, 1, 2, 3, 7]),
    waiting=frozenset({4}),
    dead=frozenset({5}),
    logged=EVENTS | {7},
)


def test_balanced_books_pass() -> None:
    BALANCED.check()
    assert (BALANCED.lost, BALANCED.twice) == (0, 0)


def test_a_lost_event_is_found() -> None:
    books = replace(BALANCED, handled=Counter([0, 1, 2]))
    assert books.lost == 1
    with pytest.raises(AssertionError, match=r"1 lost: \[3\]"):
        books.check()


def test_what_an_operator_removed_is_counted_and_no_more() -> None:
    books = replace(BALANCED, handled=Counter([0, 1]), removed=2)
    books.check()
    with pytest.raises(AssertionError, match=r"lost: \[2, 3\]"):
        replace(books, removed=1).check()


def test_a_false_confirm_is_found() -> None:
    with pytest.raises(AssertionError, match=r"1 falsely confirmed: \[3\]"):
        replace(BALANCED, logged=BALANCED.logged - {3}).check()
    nowhere = replace(BALANCED, handled=Counter([0, 1, 2]), logged=BALANCED.logged - {3})
    with pytest.raises(AssertionError, match=r"1 lost: \[3\]; 1 falsely confirmed: \[3\]"):
        nowhere.check()


def test_an_event_said_to_be_not_stored_must_not_be() -> None:
    with pytest.raises(AssertionError, match=r"1 falsely refused: \[6\]"):
        replace(BALANCED, logged=BALANCED.logged | {6}).check()


def test_an_event_that_nobody_published_is_found() -> None:
    with pytest.raises(AssertionError, match=r"1 from nowhere: \[99\]"):
        replace(BALANCED, handled=BALANCED.handled + Counter([99])).check()


def test_duplicates_are_counted() -> None:
    books = replace(BALANCED, handled=BALANCED.handled + Counter([0, 0, 1]))
    books.check()
    assert books.twice == 2


def test_two_doors_are_seen() -> None:
    assert replace(BALANCED, dead=frozenset({3, 5})).by_two_doors == {3}
