"""A story, told from what a reading of the log has found: what is in it, in which order, and what is still open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.envelope import Envelope, Story
from broker.tools.status import ServiceStatus
from broker.tools.story import Found, Subscriptions, elapsed, how_it_ended, later, tell, what_is_open
from broker.tools.story import Story as Told
from tests.stories import FIRST, NOON, Tale, event_id, order, standing, troubled


def endings(told: Told) -> list[tuple[str, str, str]]:
    """Each event, service, and how it stands."""
    return [(step.name, it.service, it.ending) for step, it in told.deliveries()]


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_a_moment_beyond_what_python_knows_is_its_last() -> None:
    assert later(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), 5) == datetime.max.replace(tzinfo=UTC)
    assert later(datetime(2026, 7, 1, tzinfo=UTC), 5) == datetime(2026, 7, 1, 0, 0, 5, tzinfo=UTC)


def test_an_order_of_the_shop_is_exactly_the_designs_sequence() -> None:
    told = order().told()
    assert [str(arrow) for arrow in told.arrows()] == [
        "order ─ New Order Placed → packing",
        "order ─ New Order Placed → crm",
        "order ─ New Order Placed → reporting",
        "packing ─ Order Packed → order",
        "packing ─ Order Packed → crm",
        "packing ─ Order Packed → reporting",
        "packing ─ Order Packed → dispatch",
        "dispatch ─ Order Dispatched → order",
        "dispatch ─ Order Dispatched → crm",
        "dispatch ─ Order Dispatched → reporting",
    ]
    assert {ending for _, _, ending in endings(told)} == {"handled"}
    assert told.lifelines == ("order", "packing", "dispatch", "crm", "reporting"), "publishers first"
    assert (told.title, told.subject, told.begun, told.notes) == ("New Order Placed", "1042", NOON, ())
    assert told.ended == NOON + timedelta(seconds=0.062)


def test_what_goes_wrong_is_told_of_each_service() -> None:
    told = troubled().told(standing(), at=100)
    assert endings(told) == [
        ("New Order Placed", "packing", "handled"),
        ("New Order Placed", "crm", "dead"),
        ("New Order Placed", "reporting", "duplicate"),
        ("New Order Placed", "audit", "unrecorded"),
        ("Order Packed", "crm", "retrying"),
        ("Order Packed", "reporting", "handled"),
        ("Order Packed", "audit", "unrecorded"),
        ("Order Packed", "dispatch", "waiting"),
    ]
    packing, crm, reporting = told.steps[0].deliveries[:3]
    assert [how_it_ended(it, brief=True) for it in packing.attempts] == [
        "failed, again in 1s",
        "attempt 2: failed, again in 30s",
        "attempt 3: handled",
    ]
    assert [how_it_ended(it) for it in crm.attempts] == ["dead letter after 10 ms"]
    assert [how_it_ended(it) for it in reporting.attempts] == ["handled in 10 ms", "duplicate, no second effect"]
    retrying, dispatch = told.steps[1].deliveries[0], told.steps[1].deliveries[3]
    assert retrying.due == NOON + timedelta(seconds=631.31)
    assert what_is_open(retrying) == "waiting: in its retry queue, due 12:10:31 UTC"
    assert what_is_open(dispatch) == "waiting: 3 in its queue, no consumer"


def test_the_rows_of_an_event_are_as_it_happened_and_what_is_open_stands_last() -> None:
    told = troubled().told(standing(), at=100)
    assert [(it.service, attempt.handling.attempt if attempt else None) for it, attempt in told.steps[0].rows] == [
        ("packing", 1),
        ("crm", 1),
        ("reporting", 1),
        ("reporting", 1),
        ("packing", 2),
        ("packing", 3),
        ("audit", None),
    ]


def test_times_are_counted_from_the_cause() -> None:
    told = troubled().told(standing(), at=100)
    packing = told.steps[0].deliveries[0]
    assert [elapsed(attempt.after) for attempt in packing.attempts] == ["10 ms", "1.01 s", "30.16 s"]
    assert told.steps[0].after is None
    assert told.steps[1].after == timedelta(seconds=31.21)


def test_an_event_published_twice_under_its_id_is_one() -> None:
    told = order().event().told()
    assert [step.times for step in told.steps] == [2, 1, 1]


def test_a_handling_that_the_log_holds_twice_is_one() -> None:
    tale = Tale().event().handling("crm", at=1).handling("crm", at=1)
    assert len(tale.told().steps[0].deliveries[0].attempts) == 1


def test_a_dead_letter_that_was_sent_back_and_handled_is_handled() -> None:
    tale = Tale().event()
    tale.handling("crm", at=0.5, outcome="retrying", delay="1s").handling("crm", at=2, outcome="dead", attempt=2)
    tale.handling("crm", at=600)
    (crm,) = tale.told().steps[0].deliveries
    assert crm.ending == "handled"
    assert [it.handling.attempt for it in crm.attempts] == [1, 2, 1]


# -- cause first, then time ------------------------------------------------------------------------------------------


def test_a_clock_that_is_behind_puts_no_effect_before_its_cause() -> None:
    """Packing's clock is an hour behind."""
    tale = Tale().event()
    tale.handling("packing", at=-3599.9).handling("crm", at=0.2)
    tale.event("packed", at=-3599.89, cause="first", name="Order Packed", source="packing", key="order.packed")
    tale.handling("crm", "packed", at=0.3, name="Order Packed")
    told = tale.told()
    assert [step.name for step in told.steps] == ["New Order Placed", "Order Packed"]
    first, packed = told.steps
    assert [(it.service, it.attempts[0].began, it.attempts[0].moved) for it in first.deliveries] == [
        ("packing", NOON, True),
        ("crm", NOON + timedelta(seconds=0.2), False),
    ]
    assert (packed.at, packed.moved) == (NOON, True)
    assert told.notes[0].startswith("The clocks of its hosts differ")


def test_clocks_that_differ_a_little_are_not_worth_a_word() -> None:
    told = Tale(packing=["#"]).event().handling("packing", at=-0.05).told()
    assert told.steps[0].deliveries[0].attempts[0].began == NOON
    assert told.notes == ()


def test_attempts_stand_by_their_numbers_whatever_their_clocks_say() -> None:
    tale = Tale().event()
    tale.handling("crm", at=5, outcome="retrying", delay="1s").handling("crm", at=1, attempt=2)
    (crm,) = tale.told().steps[0].deliveries
    assert [(it.handling.attempt, it.began) for it in crm.attempts] == [
        (1, NOON + timedelta(seconds=5)),
        (2, NOON + timedelta(seconds=5.01)),
    ]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_events_that_cause_each_other_in_a_circle_are_told_all_the_same(length: int) -> None:
    tale = Tale()
    for position in range(length):
        tale.event(f"event {position}", at=position, cause=f"event {(position + 1) % length}")
    assert len(tale.told().steps) == length


def test_a_long_chain_of_causes() -> None:
    tale = Tale().event("event 0")
    for position in range(1, 3000):
        tale.event(f"event {position}", at=-position, cause=f"event {position - 1}")
    told = tale.told()
    assert [step.id for step in told.steps] == [event_id(f"event {position}") for position in range(3000)]


events = st.lists(st.tuples(st.integers(0, 30), st.floats(-100, 100, allow_nan=False)), min_size=1, max_size=30)
"""Of each event: which event caused it, and its clock."""


@given(events=events, handlings=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.floats(-100, 100))))
def test_nothing_ever_stands_before_its_cause(
    events: list[tuple[int, float]], handlings: list[tuple[int, int, float]]
) -> None:
    tale = Tale(a=["#"], b=["#"])
    for position, (cause, at) in enumerate(events):
        tale.event(str(position), at=at, cause=str(cause), source="abcd"[position % 4])
    for which, service, at in handlings:
        tale.handling("abcd"[service], str(which), at=at)
    told = tale.told()
    assert {step.id for step in told.steps} == tale.found.events.keys() | tale.found.handlings.keys(), (
        "nothing is left out"
    )
    places = [step.id for step in told.steps]
    for step in told.steps:
        if step.after is not None:
            assert step.cause is not None
            assert places.index(step.cause) < places.index(step.id)
            assert step.after >= timedelta(0)
        for delivered in step.deliveries:
            times = [step.at, *(time for it in delivered.attempts for time in (it.began, it.ended))]
            assert times == sorted(times)


# -- what is still open, or not in the log ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ending", "words"),
    [
        (None, "waiting", "waiting: not handled, or not recorded"),
        (ServiceStatus("crm", ready=3, consumers=2), "waiting", "waiting: 3 in its queue"),
        (ServiceStatus("crm", unacked=1, consumers=1), "waiting", "waiting: 1 in hand"),
        (ServiceStatus("crm", ready=3), "waiting", "waiting: 3 in its queue, no consumer"),
        (
            ServiceStatus("crm", ready=1, consumers=1, paused="until 12:00:10 UTC: it is down"),
            "waiting",
            "waiting: 1 in its queue, paused until 12:00:10 UTC: it is down",
        ),
        (
            ServiceStatus("crm", consumers=1),
            "unrecorded",
            "no record: its queue is empty: not recorded, or subscribed later",
        ),
    ],
)
def test_why_there_is_no_record(status: ServiceStatus | None, ending: str, words: str) -> None:
    (crm,) = Tale(crm=["#"]).event().told({"crm": status} if status else None).steps[0].deliveries
    assert (crm.ending, what_is_open(crm)) == (ending, words)


def test_what_has_just_been_published_is_not_called_lost() -> None:
    (crm,) = Tale(crm=["#"]).event().told({"crm": ServiceStatus("crm", consumers=1)}, at=2).steps[0].deliveries
    assert what_is_open(crm) == "waiting: not recorded yet"


def test_a_queue_of_somebody_else_is_no_service_that_waits() -> None:
    tale = Tale()
    tale.expected = Subscriptions("RabbitMQ's bindings", {"audit": ["#"]}, silent=frozenset({"audit"}))
    (audit,) = tale.event().told().steps[0].deliveries
    assert (audit.ending, audit.open) == ("unrecorded", False)


@pytest.mark.parametrize(
    ("status", "note"),
    [
        (None, "due again, and nothing is recorded since"),
        (ServiceStatus("crm", ready=1), "due again, and nothing is recorded since"),
        (ServiceStatus("crm"), "left its retry queue, and nothing is recorded since"),
    ],
)
def test_a_retry_that_is_overdue(status: ServiceStatus | None, note: str) -> None:
    tale = Tale().event().handling("crm", outcome="retrying", delay="1s", error="ValueError: no")
    (crm,) = tale.told({"crm": status} if status else None).steps[0].deliveries
    assert (crm.ending, crm.note) == ("retrying", note)


def test_a_retry_whose_delay_cannot_be_read() -> None:
    (crm,) = Tale().event().handling("crm", outcome="retrying", delay="soon").told().steps[0].deliveries
    assert (crm.note, crm.due) == ("in its retry queue", None)


def test_a_beginning_that_the_log_does_not_hold_any_more() -> None:
    tale = Tale(crm=["#"]).handling("crm", at=1)
    tale.event("packed", at=2, cause="first", name="Order Packed", source="packing", key="order.packed")
    tale.found.first = NOON + timedelta(seconds=1.5)
    told = tale.told()
    assert [(step.name, step.publisher, step.times) for step in told.steps] == [
        ("New Order Placed", None, 0),
        ("Order Packed", "packing", 1),
    ]
    assert told.lifelines == ("", "packing", "crm")
    assert told.notes[0] == "Its beginning is not in the event log, which reaches back to 2026-07-01 12:00:01 UTC only."


def test_a_story_whose_id_somebody_chose_lacks_no_beginning() -> None:
    tale = Tale(crm=["#"]).event("a request", name="Order Cancelled")
    assert tale.told().notes == ()


def test_when_nobody_knows_who_has_subscribed() -> None:
    (note,) = Tale().event().told().notes
    assert note.startswith("Who else has subscribed is not known")


def test_who_has_subscribed_by_which_pattern() -> None:
    expected = Subscriptions(
        "x", {"crm": ["order.*"], "packing": ["order.placed"], "all": ["#"], "other": ["parcel.#"]}
    )
    assert expected.of("order.placed") == ["crm", "packing", "all"]
    assert expected.of("order.packed") == ["crm", "all"]


# -- for programs ----------------------------------------------------------------------------------------------------


def test_a_story_for_programs() -> None:
    told: dict[str, Any] = troubled().told(standing(), at=100).as_json()
    first, packed = told["events"]
    assert (told["correlation_id"], told["begun"], told["settled"]) == (str(FIRST), NOON.isoformat(), False)
    assert told["expected_from"] == "RabbitMQ's bindings"
    assert (first["id"], first["source"], first["data"], first["published"]) == (
        str(FIRST),
        "order",
        {"order_id": "1042"},
        1,
    )
    assert packed["causation_id"] == str(FIRST)
    assert first["subscribers"][0]["attempts"][0] == {
        "outcome": "retrying",
        "attempt": 1,
        "started": "2026-07-01T12:00:00.010000Z",
        "took": 0.01,
        "handler": "handle",
        "error": "CartonMissing: no carton is large enough for a grand piano",
        "delay": "1s",
    }
    assert packed["subscribers"][0]["due"] == "2026-07-01T12:10:31.310000+00:00"
    assert order().told().as_json()["settled"] is True


def test_a_payload_that_cannot_be_read_is_none() -> None:
    found = Found(FIRST)
    found.add(Envelope("A", "a", FIRST, NOON, "x", None, None, Story(FIRST), b"\xff not JSON", False))
    told = tell(found, Subscriptions(), None, NOON)
    assert told.as_json()["events"][0]["data"] is None
    assert told.position(FIRST) == 0
    assert told.position(uuid4()) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 ms"),
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (59.99, "59.99 s"),
        (59.996, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.6, "1 h 0 min"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_for_people(seconds: float, said: str) -> None:
    assert elapsed(timedelta(seconds=seconds)) == said
