"""The soak's plan is repeatable, and its report tells what is wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.ledger import Books
from tests.soak.plan import KINDS, Fault, plan
from tests.soak.report import Happened, Outcome, recovery

KILLED = Fault("kill", "crm", 5)


def test_a_seed_makes_one_plan_and_each_kind_comes_before_any_comes_again() -> None:
    assert plan(7, 30) == plan(7, 30)
    assert plan(7, 30) != plan(8, 30)
    assert Counter(fault.kind for fault in plan(7, 30)) == dict.fromkeys(KINDS, 3)


@pytest.mark.parametrize(
    ("times", "took"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 1),  # never silent
        ([1, 2, 8, 9], 4),  # silent since before its end at 4
        ([1, 2, 3, 4, 5, 9], 4),  # silent at once after its end
        ([1, 2, 3, 4, 5, 6, 7, 9.9], 1),  # silent much later: of another reason
        ([], 6),  # silent to the end
    ],
)
def test_recovery_is_the_silence_that_a_fault_leaves(times: list[float], took: float) -> None:
    assert recovery(times, Happened(KILLED, 2, 4), until=10) == took


def test_the_report_tells_what_is_wrong() -> None:
    sound = Books(
        attempted=frozenset({1, 2}), confirmed=frozenset({1, 2}), handled=Counter([1, 2]), logged=frozenset({1, 2})
    )
    lossy = Books(
        attempted=frozenset({1, 2}), confirmed=frozenset({1, 2}), handled=Counter([1]), logged=frozenset({1, 2})
    )
    faults = [(Happened(KILLED, 2, 4), 3.0), (Happened(KILLED, 20, 22), 11.0)]
    outcome = Outcome(7, "4.0.5", "uvloop", 1, {"crm": sound, "packing": lossy}, 0, faults)
    assert outcome.wrong == ["packing: 1 lost: [2]", "crm killed (-9): all worked again only after 11.0 s"]
    assert outcome.series == "4.0"
    assert "RabbitMQ 4.0.5, uvloop, seed 7: 2 events × 2 subscribers, 2 faults" in outcome.text()
    assert Outcome(7, "4.0.5", "uvloop", 1, {"crm": sound}, 0, faults[:1]).wrong == []
