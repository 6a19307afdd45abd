"""Copies within a service: what they carry, what they leave behind, and who is believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.copies import (
    ERROR_MOST,
    TRACEBACK_MOST,
    Failure,
    brought_forward,
    copy,
    history,
    is_again,
    redriven,
    replayed,
)
from broker.errors import Reject
from broker.rabbitmq.plain import properties_of
from broker.transport import Death, HeaderValue, Message
from tests.parcels import message

AT = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
FIT_FOR_A_COPY = 16 * 1024

VALUES: st.SearchStrategy[HeaderValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=3000),
    st.binary(max_size=3000),
    st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda name: len(name.encode()) < 128)
HEADERS = st.dictionaries(
    NAMES | st.sampled_from(["x-death", "x-delivery-count", "broker-attempt"]), VALUES, max_size=40
)


def failure(error: Exception | None = None, *, attempt: int = 1, key: str = "parcel.weighed") -> Failure:
    return Failure("packing", "pack", error or ValueError("no tape"), attempt, key, AT)


def wire_size(copied: Message) -> int:
    """Bytes of all properties of a message, headers among them, as they are sent."""
    return len(properties_of(copied).marshal())


def test_a_copy_goes_through_the_services_own_exchange_and_says_why() -> None:
    original = message(b"body", headers={"tenant": "a"}, type="Parcel Weighed", correlation_id="c", app_id="scales")
    copied = copy(original, failure(attempt=2), "packing.retry.30s")
    assert (copied.exchange, copied.key) == ("packing", "packing.retry.30s")
    assert copied.headers == {
        "broker-key": "parcel.weighed",
        "broker-attempt": 2,
        "broker-service": "packing",
        "broker-handler": "pack",
        "broker-error": "ValueError: no tape",
        "broker-traceback": "ValueError: no tape\n",
        "broker-failed-at": "2026-07-01T12:30:00+00:00",
        "tenant": "a",
    }
    assert (copied.body, copied.content_type) == (original.body, original.content_type)
    assert (copied.type, copied.correlation_id, copied.app_id) == ("Parcel Weighed", "c", "scales")


def test_rabbitmqs_traces_and_older_failures_are_not_carried_on() -> None:
    traces = (
        "x-death x-first-death-queue x-first-death-reason x-first-death-exchange x-last-death-queue x-delivery-count "
        "x-acquired-count broker-redriven broker-error"
    )
    headers: dict[str, HeaderValue] = dict.fromkeys(traces.split(), "old")
    copied = copy(message(headers=headers | {"x-mine": 1}), failure(), "packing.dead")
    assert copied.headers["x-mine"] == 1
    assert copied.headers["broker-error"] == "ValueError: no tape"
    assert "old" not in copied.headers.values()


def test_numbers_that_rabbitmq_would_close_the_connection_for_are_left_out() -> None:
    headers: dict[str, HeaderValue] = {"nan": float("nan"), "inf": float("inf"), "minus": float("-inf"), "one": 1.0}
    assert {"nan", "inf", "minus"}.isdisjoint(copy(message(headers=headers), failure(), "packing.dead").headers)
    assert copy(message(headers=headers), failure(), "packing.dead").headers["one"] == 1.0


def test_a_long_error_is_cut() -> None:
    reason = copy(message(), failure(ValueError("x" * 100_000)), "packing.dead").headers["broker-error"]
    assert isinstance(reason, str)
    assert len(reason) == ERROR_MOST
    assert reason.startswith("ValueError: xxx")


def test_a_copy_says_where_the_error_was_raised_and_keeps_the_end_of_a_long_traceback() -> None:
    def deep(level: int) -> None:
        if level == 0:
            raise ValueError("at the bottom")
        deep(level - 1)

    def traced(level: int, error: type[Exception] = ValueError) -> HeaderValue:
        try:
            deep(level)
        except ValueError as raised:
            return copy(message(), failure(raised), "packing.dead").headers["broker-traceback"]
        raise AssertionError

    short, long = str(traced(1)), str(traced(500))
    assert short.startswith("Traceback")
    assert __file__ in short
    assert len(long) <= TRACEBACK_MOST
    assert long.rstrip().endswith("ValueError: at the bottom")


def test_our_own_errors_say_it_all() -> None:
    assert "broker-traceback" not in copy(message(), failure(Reject("stolen")), "packing.dead").headers


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "\U0001f4e6" * 5000, ""])
def test_an_error_of_any_text_can_be_sent(text: str) -> None:
    assert wire_size(copy(message(), failure(ValueError(text)), "packing.dead")) <= FIT_FOR_A_COPY


@given(headers=HEADERS, text=st.text(max_size=10_000))
def test_all_headers_of_a_copy_fit(headers: dict[str, HeaderValue], text: str) -> None:
    copied = copy(message(headers=headers), failure(ValueError(text)), "packing.dead")
    assert wire_size(copied) <= FIT_FOR_A_COPY


@given(error=st.text(max_size=10_000), many=st.integers(0, 500))
def test_even_a_hostile_number_of_headers_fits(error: str, many: int) -> None:
    headers: dict[str, HeaderValue] = {f"header-{n}": "€" * 300 for n in range(many)}
    copied = copy(message(headers=headers), failure(ValueError(error)), "packing.dead")
    assert wire_size(copied) <= FIT_FOR_A_COPY
    assert copied.headers["broker-attempt"] == 1


# -- history -------------------------------------------------------------------------------------------------------


def own(headers: dict[str, HeaderValue]) -> Message:
    return message(exchange="packing", key="packing", headers=headers)


def test_a_first_delivery() -> None:
    assert history(message(key="parcel.sent"), "packing") == ("parcel.sent", 1)


def test_a_copy_remembers_its_key_and_attempts() -> None:
    copied = copy(message(key="parcel.sent"), failure(attempt=2, key="parcel.sent"), "packing.retry.30s")
    back = own(dict(copied.headers))
    assert history(back, "packing") == ("parcel.sent", 3)


def test_anybodys_headers_are_not_believed() -> None:
    lies: dict[str, HeaderValue] = {"broker-key": "van.broke", "broker-attempt": 99}
    assert history(message(headers=lies), "packing") == ("parcel.weighed", 1)
    assert history(message(headers=lies, exchange="crm"), "packing") == ("parcel.weighed", 1)


@pytest.mark.parametrize("attempt", [None, "2", b"2", -1, 10**6, 2.0, 2**63])
def test_nonsense_in_our_own_headers_counts_from_one(attempt: HeaderValue) -> None:
    assert history(own({"broker-key": b"x", "broker-attempt": attempt}), "packing") == ("packing", 1)
    assert history(own({}), "packing") == ("packing", 1)


def test_what_rabbitmq_dead_lettered_by_itself_remembers_its_key() -> None:
    moved = Message(exchange="packing", key="packing.dead", body=b"", death=Death("rejected", "parcel.sent"))
    assert history(moved, "packing") == ("parcel.sent", 1)


def test_what_is_redriven_begins_anew_under_its_own_key() -> None:
    dead = copy(
        message(key="parcel.sent", headers={"tenant": "a"}), failure(attempt=4, key="parcel.sent"), "packing.dead"
    )
    again = redriven(replace(dead, headers={**dead.headers, "x-delivery-count": 7}), "packing")
    assert (again.exchange, again.key, again.body) == ("packing", "packing", dead.body)
    assert dict(again.headers) == {"broker-key": "parcel.sent", "broker-attempt": 0, "tenant": "a"}
    assert history(again, "packing") == ("parcel.sent", 1)


def test_what_is_brought_forward_keeps_its_attempts() -> None:
    waiting = copy(message(key="parcel.sent"), failure(attempt=2, key="parcel.sent"), "packing.retry.30s")
    now = brought_forward(replace(waiting, headers={**waiting.headers, "x-delivery-count": 7}), "packing")
    assert (now.exchange, now.key) == ("packing", "packing")
    assert history(now, "packing") == ("parcel.sent", 3)
    assert "x-delivery-count" not in now.headers


def test_a_replayed_event_is_as_if_just_published() -> None:
    lying = message(b"body", headers={"tenant": "a", "broker-attempt": 7, "broker-again": True, "x-stream-offset": 3})
    it = replayed(lying, "packing", again=False)
    assert (it.exchange, it.key, it.body, it.content_type) == ("packing", "packing", b"body", lying.content_type)
    assert it.headers == {"broker-key": "parcel.weighed", "broker-attempt": 0, "tenant": "a"}
    assert history(it, "packing") == ("parcel.weighed", 1)


def test_only_the_service_itself_has_an_event_handled_again() -> None:
    """Its copies keep that, whatever becomes of them."""
    forced = replayed(message(), "packing", again=True)
    assert is_again(forced, "packing")
    for it in (
        copy(forced, failure(), "packing.retry.30s"),
        redriven(forced, "packing"),
        brought_forward(forced, "packing"),
    ):
        assert is_again(it, "packing")
    assert not is_again(forced, "crm")
    strange = message(headers={"broker-again": True})
    assert not is_again(strange, "packing")
    for it in (copy(strange, failure(), "packing.retry.30s"), redriven(strange, "packing")):
        assert not is_again(it, "packing")
