"""Which messages of the log are meant, and what they say: whoever wrote them, and whatever they wrote."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ContractError, Settings
from broker.cli.log import as_text, tell_reach
from broker.cli.replay import Asked
from broker.envelope import CONTENT_TYPE, NAMESPACE, as_uuid
from broker.eventlog import Entry, EventLog, Span
from broker.tools.log import Bounds, Wanted, check_limit, line, part
from broker.tools.replay import Outcome, Replay
from broker.transport import HeaderValue
from tests.logged import entry, handling, handlings
from tests.parcels import message

AT = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
STORY = UUID("01a21766-9f2d-7289-8cf3-cec00f2b5501")
EVENT = UUID("01a21766-9f2d-7289-8cf3-cec00f2b5502")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def event(*, ascii_only: bool = True, key: str = "parcel.weighed", **attributes: Any) -> Entry:
    """As others may write one, too."""
    document = {
        "specversion": "1.0", "id": str(EVENT), "source": "scales", "type": "Parcel Weighed", "subject": "1042",
        "time": AT.isoformat(), "correlationid": str(STORY), "data": {"grams": 3},
    } | attributes  # fmt: skip
    return entry(message(json.dumps(document, ensure_ascii=ascii_only).encode(), key=key, content_type=CONTENT_TYPE))


def binary(body: bytes = b'{"grams": 3}', **attributes: str) -> Entry:
    """An event with its attributes among the headers."""
    said = {"specversion": "1.0", "id": str(EVENT), "source": "scales", "type": "Parcel Weighed"} | attributes
    headers: dict[str, HeaderValue] = {f"cloudEvents:{name}": value for name, value in said.items()}
    return entry(message(body, content_type="application/json", headers=headers))


def handled(**changes: Any) -> Entry:
    return entry(handlings(handling(EVENT, STORY, AT, 0.0123, **changes)))


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        (Wanted(), True),
        (Wanted(patterns=("parcel.*",)), True),
        (Wanted(patterns=("van.*", "#.weighed")), True),
        (Wanted(patterns=("van.*",)), False),
        (Wanted(events=("parcel weighed",)), True),
        (Wanted(events=("PARCEL.WEIGHED",)), True),
        (Wanted(events=("Van Broke", "Parcel Weighed")), True),
        (Wanted(events=("Parcel",)), False),
        (Wanted(subject="1042"), True),
        (Wanted(subject="104"), False),
        (Wanted(subject=""), False),
        (Wanted(source="scales"), True),
        (Wanted(source="Scales"), False),
        (Wanted(correlation_id=STORY), True),
        (Wanted(correlation_id=EVENT), False),
        (Wanted(ids=frozenset({EVENT})), True),
        (Wanted(ids=frozenset({EVENT, STORY})), True),
        (Wanted(ids=frozenset({STORY})), False),
        (Wanted(subject="1042", source="van"), False),
    ],
)
def test_what_is_meant(wanted: Wanted, meant: bool) -> None:
    assert (wanted.line(event()) is not None) is meant
    by_headers = binary(subject="1042", correlationid=str(STORY).upper())
    assert (wanted.line(by_headers) is not None) is meant


@given(st.sampled_from(["subject", "source", "type"]), TEXTS, st.booleans())
def test_a_text_is_found_however_it_is_written(attribute: str, text: str, ascii_only: bool) -> None:
    wanted = {
        "subject": Wanted(subject=text), "source": Wanted(source=text), "type": Wanted(events=(text,))
    }[attribute]  # fmt: skip
    assert wanted.line(event(ascii_only=ascii_only, **{attribute: text})) is not None
    assert wanted.line(binary(b"{}", **{attribute: text})) is not None


@pytest.mark.parametrize(
    ("named", "published"), [("ß", "ß"), ("GROSS", "groß"), ("groß", "GROSS"), ("kelvin", "\u212aelvin")]
)
def test_a_name_is_found_in_capitals_and_small_letters_of_any_language(named: str, published: str) -> None:
    wanted = Wanted(events=(named,))
    for ascii_only in (True, False):
        assert wanted.line(event(ascii_only=ascii_only, type=published)) is not None
    assert wanted.line(binary(b"{}", type=published)) is not None


@pytest.mark.parametrize("written", [str(EVENT), str(EVENT).upper(), EVENT.hex, f"{{{EVENT}}}", EVENT.urn])
def test_an_id_is_found_however_it_is_written(written: str) -> None:
    assert Wanted(ids=frozenset({EVENT})).line(event(id=written)) is not None
    assert Wanted(correlation_id=EVENT).line(event(correlationid=written)) is not None


def test_an_id_that_is_no_uuid_is_found_by_the_one_that_stands_for_it() -> None:
    stands_for = as_uuid("order-1042", "elsewhere")
    assert stands_for.version == NAMESPACE.version == 5
    assert Wanted(ids=frozenset({stands_for})).line(event(id="order-1042", source="elsewhere")) is not None


def test_a_number_is_found_as_a_subject() -> None:
    assert Wanted(subject="1042").line(event(subject=1042)) is not None


@pytest.mark.parametrize(
    ("foreign", "why"),
    [
        (entry(message(b"hello")), "not a CloudEvent"),
        (entry(message(b"[" * 100_000)), "not a CloudEvent"),
        (entry(message(b"\xff\xfe")), "not a CloudEvent"),
        (binary(b"\xff"), "is not JSON"),
        (event(data_base64="!"), "not base64"),
        (event(data_base64="/w=="), "is not JSON"),
        (entry(None), "cannot be decoded"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_what_is_no_event_is_shown_as_such(foreign: Entry, why: str) -> None:
    it = Wanted().line(foreign)
    assert it is not None
    assert why in it.error
    assert why in as_text(it).plain
    assert why in json.loads(json.dumps(it.as_json()))["error"]
    assert Wanted(subject="1042").line(foreign) is None


def test_what_is_no_event_is_shown_with_its_bytes() -> None:
    headers: dict[str, HeaderValue] = {
        "n": 1,
        "at": AT,
        "raw": b"\xff",
        "word": b"ok",
        "x-stream-offset": 7,
        "no": None,
    }
    foreign = line(entry(message(b"\xff\0", headers=headers, content_type=None, type="Odd"))).as_json()
    assert foreign["body_base64"] == "/wA="
    assert foreign["headers"] == {"n": 1, "at": AT.isoformat(), "raw_base64": "/w==", "word": "ok", "no": None}
    assert (foreign["offset"], foreign["key"], foreign["properties"]["type"]) == (7, "parcel.weighed", "Odd")
    assert line(entry(message(b"hello"))).as_json()["body"] == "hello"


def test_as_json_an_event_has_all_that_the_log_keeps_of_it() -> None:
    said: dict[str, Any] = {"dataschema": "urn:x:parcel-weighed:v1", "traceparent": "00-1-2-01", "scale": "north"}
    structured, by_headers = line(event(**said)).as_json(), line(binary(**said)).as_json()
    assert json.loads(structured["body"]).items() >= said.items()
    assert by_headers["headers"].items() >= {f"cloudEvents:{name}": value for name, value in said.items()}.items()
    assert by_headers["body"] == '{"grams": 3}'
    for told in (structured, by_headers):
        assert (told["data"], told["id"], told["properties"]["exchange"]) == ({"grams": 3}, str(EVENT), "events")
    assert "body" not in line(handled()).as_json(), "it says no more than the handlings"


def test_properties_that_nothing_goes_by_are_shown_where_they_are() -> None:
    foreign = replace(
        message(b"{}"), properties={"reply_to": "there", "priority": 0, "expiration": None, "headers": {}}
    )
    told = line(entry(foreign)).as_json()["properties"]
    assert (told["reply_to"], told["priority"]) == ("there", 0)
    assert not {"expiration", "headers", "user_id"} & set(told)


@given(st.binary(max_size=60), st.dictionaries(TEXTS, TEXTS | st.binary(max_size=9), max_size=3), st.booleans())
def test_whatever_lies_there_can_be_shown(body: bytes, headers: dict[str, HeaderValue], handled: bool) -> None:
    exchange = "events.handled" if handled else "events"
    it = line(entry(message(body, exchange=exchange, headers=headers)))
    json.dumps(it.as_json())
    assert as_text(it).plain.isprintable()


def test_terminal_escapes_are_not_shown_as_they_are() -> None:
    shown = as_text(line(event(type="\x1b[2J", source="\x1b]0;owned\x07", data={"x": "\x1b[31m"}))).plain
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_handlings_are_told_in_words() -> None:
    shown = as_text(line(handled(outcome="dead", error="ValueError: \x1b[31mno tape", attempt=3))).plain
    assert "packing" in shown
    assert "dead after 0.012s, attempt 3: ValueError" in shown
    assert "\x1b" not in shown
    (told,) = line(handled()).as_json()["handlings"]
    assert (told["service"], told["outcome"], told["event_id"]) == ("packing", "handled", str(EVENT))
    assert Wanted().line(handled()) is None, "an event alone is meant"
    assert line(entry(message(b"[]", exchange="events.handled"))).error


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ContractError, match="both say where to begin"):
        Bounds(since=AT, offset=3)
    with pytest.raises(ContractError, match="--until is not after --since"):
        Bounds(since=AT, until=AT)
    with pytest.raises(ContractError, match="shows nothing"):
        check_limit(0)
    with pytest.raises(ContractError, match="is not a pattern"):
        Wanted(patterns=("Not A Pattern",))


class Log:
    """The event log, of which all before a number is gone; its messages come a minute apart."""

    def __init__(self, first: int, *, timeless: bool = False) -> None:
        self._span, self._timeless = Span(first, 100), timeless

    async def span(self) -> Span:
        return self._span

    async def place(self, at: datetime) -> int:
        return min(max(self._span.first, math.ceil((at - AT) / MINUTE)), self._span.end)

    async def time_at(self, number: int) -> datetime | None:
        return None if self._timeless else AT + number * MINUTE


@pytest.mark.parametrize("timeless", [False, True])
@pytest.mark.parametrize(
    ("first", "bounds", "begin", "truncated"),
    [
        (0, Bounds(), 0, False),
        (0, Bounds(since=AT - MINUTE), 0, False),
        (0, Bounds(offset=0), 0, False),
        (10, Bounds(), 10, True),
        (10, Bounds(until=AT + 20 * MINUTE), 10, True),
        (10, Bounds(since=AT), 10, True),
        (10, Bounds(since=AT + 11 * MINUTE), 11, False),
        (10, Bounds(since=AT + 1000 * MINUTE), 100, False),
        (10, Bounds(offset=0), 10, True),
        (10, Bounds(offset=10), 10, False),
        (10, Bounds(offset=11), 11, False),
    ],
)
async def test_a_log_that_does_not_reach_back_as_far_as_was_asked_says_so(
    first: int, bounds: Bounds, *, begin: int, truncated: bool, timeless: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await part(cast("EventLog", Log(first, timeless=timeless)), bounds)
    reaches = AT + first * MINUTE if truncated and not timeless else None
    assert (found.begin, found.truncated, found.reaches) == (begin, truncated, reaches)
    tell_reach(found)
    said = capsys.readouterr().err
    assert ("truncated" in said) is truncated
    assert (f"reaches back to {AT.astimezone():%Y-%m-%d}" in said) is (reaches is not None)


async def test_a_log_that_begins_when_was_asked_is_not_called_truncated() -> None:
    at = AT + 10 * MINUTE
    assert (await part(cast("EventLog", Log(10)), Bounds(since=at))).truncated is False


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ContractError, match="so more than 0"):
        Replay(Settings(), "packing", Wanted(), rate=rate)


def test_the_command_that_goes_on_says_all_that_was_said() -> None:
    outcome = Outcome(3, 99)
    outcome.next = 42
    assert Asked("packing", Wanted(), None, False, (), False).go_on(outcome) == (
        "broker replay packing --offset 42 --end 99"
    )
    wanted = Wanted(events=("Parcel Weighed",), subject="it's", correlation_id=STORY, ids=frozenset({EVENT}))
    assert Asked("packing", wanted, 2.5, True, ("shop",), True).go_on(outcome) == (
        "broker replay packing --offset 42 --end 99 --event 'Parcel Weighed' --subject 'it'\"'\"'s' "
        f"--correlation-id {STORY} --id {EVENT} --rate 2.5 --force --from shop --json"
    )
