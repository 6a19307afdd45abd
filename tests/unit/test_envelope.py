"""Events as CloudEvents, and whatever else may come off the wire."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from broker import Envelope, Event, Malformed, UnknownEvent
from broker.envelope import CONTENT_TYPE, Story, as_uuid, caused_id, decode, decode_as, encode
from tests.parcels import ParcelSent, ParcelWeighed, Size, weighed

AT = datetime(2026, 7, 1, 12, 30, 0, 123456, tzinfo=UTC)
ID, CORRELATION, CAUSE = UUID(int=1), UUID(int=2), UUID(int=3)
CENTURIES = st.timedeltas(timedelta(days=-700_000), timedelta(days=2_900_000))
INDIA = timezone(timedelta(hours=5, minutes=30))
PARCEL = UUID("11111111-2222-3333-4444-555555555555")


def encoded(event: Event, **story: Any) -> bytes:
    told = Story(**({"correlation_id": CORRELATION} | story))
    return encode(event, event_id=ID, source="scales", time=AT, story=told)[0]


def decoded(body: bytes) -> Envelope:
    return decode(body, key="parcel.weighed", content_type=CONTENT_TYPE, headers={})


def structured(**attributes: Any) -> bytes:
    """A valid structured event but for what is said; None leaves an attribute out."""
    whole = {
        "specversion": "1.0",
        "id": str(ID),
        "source": "scales",
        "type": "Parcel Weighed",
        "data": {"parcel_id": str(PARCEL), "grams": 5},
    } | attributes
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


# -- out -----------------------------------------------------------------------------------------------------------


def test_the_wire_format_word_for_word() -> None:
    event = ParcelWeighed(parcel_id=PARCEL, grams=5, size=Size(width=1, height=2))
    assert json.loads(encoded(event, causation_id=CAUSE, traceparent="00-ab-cd-01")) == {
        "specversion": "1.0",
        "id": str(ID),
        "source": "scales",
        "type": "Parcel Weighed",
        "time": "2026-07-01T12:30:00.123456Z",
        "subject": str(PARCEL),
        "datacontenttype": "application/json",
        "dataschema": "urn:event:parcel.weighed:1",
        "correlationid": str(CORRELATION),
        "causationid": str(CAUSE),
        "traceparent": "00-ab-cd-01",
        "data": {"parcel_id": str(PARCEL), "grams": 5, "size": {"width": 1, "height": 2}},
    }
    assert CONTENT_TYPE == "application/cloudevents+json; charset=utf-8"


class Quiet(Event, name="Quiet Hour Began", key="quiet.began", subject="room"):
    room: str | None = None


@pytest.mark.parametrize("room", [None, ""])
def test_what_an_event_does_not_have_is_left_out(room: str | None) -> None:
    assert set(json.loads(encoded(Quiet(room=room)))) == {
        *["specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "correlationid", "data"]
    }


# -- round trip ----------------------------------------------------------------------------------------------------


class Part(BaseModel):
    text: str
    more: list[Part] = []


class AllSorts(Event, name="All Sorts Happened", key="all.sorts", version=3):
    text: str
    number: int
    ratio: float
    money: Decimal
    when: datetime
    day: date
    took: timedelta
    raw: bytes = Field(json_schema_extra={"format": "binary"})
    parts: tuple[Part, ...]
    mapping: dict[str, int | None]
    aliased: str = Field(alias="aliasedName")
    flag: bool | None = None


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PARTS = st.recursive(
    st.builds(Part, text=TEXT), lambda inner: st.builds(Part, text=TEXT, more=st.lists(inner, max_size=2))
)
ALL_SORTS = st.builds(
    AllSorts,
    text=TEXT,
    number=st.integers(-(10**30), 10**30),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    money=st.decimals(-(10**9), 10**9, places=2),
    when=st.datetimes(timezones=st.just(UTC)),
    day=st.dates(),
    took=st.timedeltas(timedelta(days=-999), timedelta(days=999)),
    raw=TEXT.map(str.encode),
    parts=st.lists(PARTS, max_size=3).map(tuple),
    mapping=st.dictionaries(TEXT, st.none() | st.integers(-9, 9), max_size=3),
    aliasedName=TEXT,
    flag=st.none() | st.booleans(),
)
SOURCES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(
    event=ALL_SORTS,
    event_id=st.uuids(),
    source=SOURCES,
    time=st.builds(lambda since, zone: (AT + since).astimezone(zone), CENTURIES, st.sampled_from([UTC, INDIA])),
    story=st.builds(
        Story, correlation_id=st.uuids(), causation_id=st.none() | st.uuids(), traceparent=st.none() | TEXT
    ),
)
def test_what_was_encoded_decodes_as_the_same(
    event: AllSorts, event_id: UUID, source: str, time: datetime, story: Story
) -> None:
    body, _ = encode(event, event_id=event_id, source=source, time=time, story=story)
    envelope = decode(body, key="all.sorts", content_type=CONTENT_TYPE, headers={})
    assert envelope.decode(AllSorts) == event
    assert (envelope.id, envelope.source, envelope.time, envelope.story) == (event_id, source, time, story)
    assert (envelope.name, envelope.key, envelope.version) == ("All Sorts Happened", "all.sorts", 3)
    assert envelope.subject is None
    assert envelope.data == json.loads(body)["data"]


# -- in ------------------------------------------------------------------------------------------------------------


def test_an_event_from_elsewhere_needs_little() -> None:
    envelope = decoded(structured())
    assert (envelope.name, envelope.version, envelope.subject) == ("Parcel Weighed", None, None)
    assert envelope.story == Story(correlation_id=ID)
    assert abs(envelope.time - datetime.now(UTC)) < timedelta(minutes=1)
    assert envelope.decode() == ParcelWeighed(parcel_id=PARCEL, grams=5)


def test_extra_attributes_and_extra_fields_are_ignored() -> None:
    data = {"parcel_id": str(PARCEL), "new": 1, "size": {"width": 1, "height": 2, "depth": 3}}
    event = decoded(structured(partitionkey="x", data=data)).decode(ParcelWeighed)
    assert event == ParcelWeighed(parcel_id=PARCEL, size=Size(width=1, height=2))


def test_times_become_utc() -> None:
    assert decoded(structured(time="2026-07-01T14:30:00+02:00")).time == datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
    assert decoded(structured(time="2026-07-01T14:30:00+02:00")).time.tzinfo is UTC


def test_foreign_ids_are_represented_stably() -> None:
    first, again = decoded(structured(id="order-7")), decoded(structured(id="order-7"))
    other = decoded(structured(id="order-7", source="elsewhere"))
    assert first.id == again.id != other.id
    assert as_uuid(str(PARCEL), "whoever") == PARCEL
    told = decoded(structured(correlationid="story-1", causationid="cause-1")).story
    assert told == Story(as_uuid("story-1"), as_uuid("cause-1"))


@pytest.mark.parametrize(
    ("schema", "version"),
    [
        ("urn:event:parcel.weighed:1", 1),
        ("urn:event:other.key:12", 12),
        ("https://example.com/schema.json", None),
        ("urn:event:parcel.weighed:0", None),
        ("urn:event:parcel.weighed:01", None),
        ("urn:event:parcel.weighed:99999999999999999999", None),
        ("urn:event::1", None),
        (None, None),
    ],
)
def test_the_version_is_in_the_schema(schema: str | None, version: int | None) -> None:
    assert decoded(structured(dataschema=schema)).version == version


def test_data_may_be_base64() -> None:
    body = structured(data=None, data_base64=base64.b64encode(b'{"parcel_id": "%s"}' % str(PARCEL).encode()).decode())
    assert decoded(body).decode(ParcelWeighed) == ParcelWeighed(parcel_id=PARCEL)
    assert decoded(body).data == {"parcel_id": str(PARCEL)}


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_", "ce-"])
def test_binary_mode(prefix: str) -> None:
    attributes = {
        "specversion": "1.0",
        "id": str(ID),
        "source": "scales",
        "type": "Parcel Weighed",
        "time": "2026-07-01T12:30:00Z",
        "dataschema": "urn:event:parcel.weighed:1",
        "correlationid": str(CORRELATION),
    }
    headers: dict[str, object] = {prefix + name: value for name, value in attributes.items()} | {"other": 1}
    body = json.dumps({"parcel_id": str(PARCEL)}).encode()
    envelope = decode(body, key="parcel.weighed", content_type="application/json", headers=headers)
    assert envelope.decode(ParcelWeighed) == ParcelWeighed(parcel_id=PARCEL)
    assert (envelope.id, envelope.version, envelope.story) == (ID, 1, Story(CORRELATION))
    assert envelope.data == {"parcel_id": str(PARCEL)}


def test_what_is_written_as_usual_is_read_in_one_pass() -> None:
    event = ParcelWeighed(parcel_id=PARCEL, grams=5)
    body = encoded(event, causation_id=CAUSE)
    both = decode_as(ParcelWeighed, body, key="parcel.weighed", content_type=CONTENT_TYPE)
    assert both == (decoded(body), event)


@pytest.mark.parametrize(
    "unusual",
    [
        {"type": "Parcel Sent"},
        {"dataschema": "urn:event:parcel.weighed:2"},
        {"datacontenttype": "text/json"},
        {"datacontenttype": None},
        {"data_base64": "e30="},
        {"data": {"grams": "much"}},
        {"specversion": "2.0"},
    ],
    ids=str,
)
def test_what_is_unusual_or_wrong_is_read_in_two_passes(unusual: dict[str, Any]) -> None:
    usual = {"dataschema": "urn:event:parcel.weighed:1", "datacontenttype": "application/json"}
    body = structured(**usual)
    assert decode_as(ParcelWeighed, body, key="parcel.weighed", content_type=CONTENT_TYPE) is not None
    body = structured(**(usual | unusual))
    assert decode_as(ParcelWeighed, body, key="parcel.weighed", content_type=CONTENT_TYPE) is None
    assert decode_as(ParcelWeighed, body, key="parcel.weighed", content_type="application/json") is None


NOT_JSON = [b"", b"\xff", b"<parcel/>", b"{", b"[" * 100_000]


@pytest.mark.parametrize("body", NOT_JSON)
def test_data_that_is_not_json_is_malformed_wherever_it_is_read(body: bytes) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "scales", "ce-type": "Parcel Weighed"}
    binary = decode(body, key="parcel.weighed", content_type=None, headers=headers)
    inline = decoded(structured(data=None, data_base64=base64.b64encode(body).decode()))
    for envelope in (binary, inline):
        with pytest.raises(Malformed):
            envelope.decode(ParcelWeighed)
        with pytest.raises(Malformed):
            _ = envelope.data


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"\x00\xff not json",
    "not UTF-8": b'{"specversion":"1.0","id":"\xff"}',
    "an array": b"[]",
    "a number": b"1",
    "a batch": b"[" + structured() + b"]",
    "no version": structured(specversion=None),
    "another version": structured(specversion="0.3"),
    "no id": structured(id=None),
    "empty id": structured(id=""),
    "no source": structured(source=None),
    "no type": structured(type=None),
    "a naive time": structured(time="2026-07-01T12:30:00"),
    "no time": structured(time="yesterday"),
    "a time before time": structured(time="0001-01-01T00:00:00+14:00"),
    "a time after time": structured(time="9999-12-31T23:59:59-14:00"),
    "XML": structured(datacontenttype="application/xml"),
    "bad base64": structured(data=None, data_base64="%%%"),
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a huge number": b'{"specversion":"1.0","id":' + b"9" * 10_000 + b"}",
    "a lone surrogate": b'{"specversion":"1.0","id":"\\ud800","source":"a","type":"b"}',
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_not_an_event_is_malformed(what: str) -> None:
    with pytest.raises(Malformed):
        decoded(MALFORMED[what])


DOES_NOT_FIT: dict[str, bytes] = {
    "no data": structured(data=None),
    "null": b'{"specversion":"1.0","id":"1","source":"a","type":"Parcel Weighed","data":null}',
    "a list": structured(data=[]),
    "a missing field": structured(data={"grams": 1}),
    "a wrong field": structured(data={"parcel_id": "x"}),
}


@pytest.mark.parametrize("what", DOES_NOT_FIT)
def test_a_payload_that_does_not_fit_is_malformed(what: str) -> None:
    with pytest.raises(Malformed):
        decoded(DOES_NOT_FIT[what]).decode(ParcelWeighed)


def test_why_does_not_tell_the_payload() -> None:
    with pytest.raises(Malformed) as caught:
        decoded(structured(data={"parcel_id": "hunter2", "grams": "hunter2"})).decode(ParcelWeighed)
    assert "hunter2" not in str(caught.value)
    assert "parcel_id" in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
)
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "specversion": JSON | st.just("1.0"),
        "id": JSON | st.just("1"),
        "source": JSON | st.just("s"),
        "type": JSON | st.just("Parcel Weighed"),
        "time": JSON | st.datetimes().map(lambda it: it.replace(tzinfo=timezone(timedelta(hours=14))).isoformat()),
        "datacontenttype": JSON | st.just("application/json"),
        "dataschema": JSON,
        "correlationid": JSON,
        "causationid": JSON,
        "data": JSON,
        "data_base64": JSON,
    },
)
NAMES = st.sampled_from(["ce-id", "cloudEvents:type", "cloudEvents_time", "ce-specversion", "ce-source", "x"])
VALUES = st.none() | st.text(max_size=20) | st.binary(max_size=20) | st.integers() | st.floats()
HEADERS = st.dictionaries(NAMES | st.text(max_size=5), VALUES | st.datetimes(timezones=st.just(UTC)))
MEDIA = [CONTENT_TYPE, "application/json", "text/plain", "application/cloudevents-batch+json"]
TYPES = st.none() | st.sampled_from(MEDIA) | st.text(max_size=10)


@given(
    body=st.binary(max_size=200) | JSON.map(json.dumps).map(str.encode) | ATTRIBUTES.map(json.dumps).map(str.encode),
    key=st.text(max_size=10),
    content_type=TYPES,
    headers=HEADERS,
)
def test_whatever_comes_is_an_event_or_malformed(
    body: bytes, key: str, content_type: str | None, headers: dict[str, object]
) -> None:
    try:
        envelope = decode(body, key=key, content_type=content_type, headers=headers)
        _ = envelope.data
        envelope.decode(ParcelWeighed)
    except Malformed:
        return
    assert envelope.id


@given(data=JSON)
def test_whatever_the_data_is_it_fits_or_is_malformed(data: Any) -> None:
    envelope = decoded(structured(data=data))
    with suppress(Malformed):
        assert isinstance(envelope.decode(ParcelWeighed), ParcelWeighed)


# -- which class ---------------------------------------------------------------------------------------------------


def test_decode_finds_the_declared_class() -> None:
    event = weighed()
    assert type(decoded(encoded(event)).decode()) is ParcelWeighed
    with pytest.raises(UnknownEvent, match="Did you mean 'Parcel Weighed'"):
        decoded(structured(type="Parcel Wieghed")).decode()


def test_decode_into_another_class_is_up_to_the_caller() -> None:
    assert decoded(structured()).decode(ParcelSent) == ParcelSent(parcel_id=PARCEL)


# -- ids -----------------------------------------------------------------------------------------------------------


def test_what_a_handler_publishes_has_ids_that_stay() -> None:
    cause = decoded(structured())
    ids = {caused_id(cause, service, position) for service in ("packing", "crm") for position in (0, 1)}
    assert len(ids) == 4
    assert all(it.version == 5 for it in ids)
    assert caused_id(decoded(structured()), "packing", 0) in ids
    assert caused_id(decoded(structured(source="elsewhere")), "packing", 0) not in ids
    assert caused_id(decoded(structured(id=str(uuid4()))), "packing", 0) not in ids
