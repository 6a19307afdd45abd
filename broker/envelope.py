"""Event ⇄ CloudEvents bytes. Pure: no I/O, no clock but the caller's.

Out: structured CloudEvents 1.0 JSON, readable in RabbitMQ's management UI and by any CloudEvents SDK. In: that, and
binary mode (attributes in headers, the data as the body).

Rules:

- The business event name (``type``) identifies an event; the routing key only routes it.
- ``dataschema`` is ``urn:event:<key>:<version>``. Without one of that form, the event is read as the declared version.
- An id that is not a UUID, as other systems may choose, is represented by the uuid5 of its source and itself.
- Nothing that came off the wire is trusted: whatever is wrong with it raises `Malformed`, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, overload
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from broker.errors import Malformed, UnknownEvent, near_miss
from broker.events import Event, closest_version, declared, subject_of, text_of

STRUCTURED = "application/cloudevents+json"
CONTENT_TYPE = f"{STRUCTURED}; charset=utf-8"
SCHEMA = re.compile(r"urn:event:(?P<key>.+):(?P<version>[1-9][0-9]{0,8})")
BINARY_PREFIXES = ("cloudEvents:", "cloudEvents_", "ce-")
NAMESPACE = uuid5(NAMESPACE_URL, "urn:business-events")

E = TypeVar("E", bound=Event)


class Story(NamedTuple):
    """The place of an event in a story.

    Attributes:
        correlation_id: the whole story: the id of its first event.
        causation_id: the event that caused this one; None for the first.
        traceparent: W3C trace context, carried on as it came.
    """

    correlation_id: UUID
    causation_id: UUID | None = None
    traceparent: str | None = None


def encode(event: Event, *, event_id: UUID, source: str, time: datetime, story: Story) -> tuple[bytes, str]:
    """An event as structured CloudEvents JSON; and its correlation id as it stands there."""
    text, subject = text_of(event_id), subject_of(event)
    correlation = text if story.correlation_id is event_id else text_of(story.correlation_id)
    differs: dict[str, Any] = {"id": text, "time": _utc(time)}
    if subject is not None:
        differs["subject"] = subject
    differs["correlationid"] = correlation
    if story.causation_id is not None:
        differs["causationid"] = story.causation_id
    if story.traceparent is not None:
        differs["traceparent"] = story.traceparent
    data = event.__pydantic_serializer__.to_json(event, by_alias=True)
    return b'%b,%b,"data":%b}' % (_same_for_all(type(event), source), to_json(differs)[1:-1], data), correlation


@lru_cache(maxsize=1000)
def _same_for_all(event: type[Event], source: str) -> bytes:
    """How every event of a class from one source begins."""
    contract = event.__contract__
    same = {
        "specversion": "1.0",
        "type": contract.name,
        "source": source,
        "datacontenttype": "application/json",
        "dataschema": contract.schema,
    }
    return to_json(same)[:-1]


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo is UTC else time.astimezone(UTC)


UUID_FIRST = Field(union_mode="left_to_right")  # pydantic makes one in less time than `as_uuid`


class Attributes(BaseModel):
    """The CloudEvents attributes that we read. Unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    specversion: Literal["1.0"]
    id: Annotated[UUID | Annotated[str, Field(min_length=1)], UUID_FIRST]
    source: str = Field(min_length=1)
    type: str = Field(min_length=1)
    time: AwareDatetime | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    correlationid: Annotated[UUID | str | None, UUID_FIRST] = None
    causationid: Annotated[UUID | str | None, UUID_FIRST] = None
    traceparent: str | None = None
    data_base64: str | None = None


class Structured(BaseModel, Generic[E]):
    """The one part of a structured event that depends on its type."""

    data: E


class Whole(Attributes, Generic[E]):
    """A structured event of a known type."""

    data: E


@dataclass(slots=True)
class Envelope:
    """An event as it came, before anybody says which class it is. What a handler of a pattern receives.

    Nobody changes one. (A frozen dataclass would say so itself, and costs each delivery as much as its validation.)

    Attributes:
        name: the business event name.
        key: the routing key it was published with.
        id: the event's id, the same in every copy and redelivery.
        time: when it was published, UTC.
        source: the service that published it.
        subject: the entity it is about, if it says so.
        version: of its contract, if it says so.
        story: what it belongs to, and what caused it.
    """

    name: str
    key: str
    id: UUID
    time: datetime
    source: str
    subject: str | None
    version: int | None
    story: Story
    _body: bytes
    _structured: bool

    @property
    def data(self) -> Any:
        """The payload, as plain JSON values.

        Raises:
            Malformed: it is not JSON. Only data in base64 and the body of a binary event may turn out so.
        """
        try:
            value = from_json(self._body)
        except ValueError as error:
            raise Malformed(f"the data of {self.name!r} {self.id} is not JSON: {error}") from None
        return value.get("data") if self._structured else value

    @property
    def digest(self) -> bytes:
        """Eight bytes that tell whether two deliveries under one id say the same, however it was written."""
        try:
            said = json.dumps(self.data, sort_keys=True).encode()
        except (Malformed, ValueError, RecursionError):
            said = self._body
        return hashlib.sha256(self.name.encode("utf-8", "replace") + b"\0" + said).digest()[:8]

    @overload
    def decode(self) -> Event: ...
    @overload
    def decode(self, event: type[E]) -> E: ...
    def decode(self, event: type[Event] | None = None) -> Event:
        """The payload as an event: of the given class, else of the one declared for its name and version.

        Raises:
            Malformed: the payload does not fit the class.
            UnknownEvent: no class was given, and this process has imported none of that name.
        """
        return read(self, event or self._declared())

    def _declared(self) -> type[Event]:
        """The class that this process declares for the name; with several definitions, the one imported first."""
        events = [event for event in declared() if event.__contract__.name == self.name]
        if not events:
            hint = near_miss(self.name, {event.__contract__.name for event in declared()})
            raise UnknownEvent(f"No event named {self.name!r} is imported here.{hint} Pass its class to decode().")
        return closest_version({event.__contract__.version: event for event in reversed(events)}, self.version)


def read(envelope: Envelope, event: type[E]) -> E:
    """The payload of an envelope as an event of a class, in one pass over the bytes. Unknown fields are ignored.

    Raises:
        Malformed: it does not fit.
    """
    try:
        if envelope._structured:
            return Structured[event].model_validate_json(envelope._body, extra="ignore").data  # type: ignore[valid-type]
        return event.model_validate_json(envelope._body, extra="ignore")
    except (ValidationError, RecursionError) as error:
        raise Malformed(f"{envelope.name!r} {envelope.id} does not fit {event.__name__}: {reason(error)}") from None


def decode(body: bytes, *, key: str, content_type: str | None, headers: Mapping[str, object]) -> Envelope:
    """Read the envelope of a message, structured or binary.

    Raises:
        Malformed: it is neither; the message says what is wrong, without the payload.
    """
    binary = {} if (content_type or "").startswith(STRUCTURED) else binary_attributes(headers)
    try:
        if binary:
            attributes = Attributes.model_validate({"datacontenttype": content_type, **binary})
        else:
            attributes = Attributes.model_validate_json(body)
    except (ValidationError, RecursionError) as error:
        raise Malformed(f"not a CloudEvent: {reason(error)}") from None
    if not is_json(attributes.datacontenttype):
        raise Malformed(f"its data is {attributes.datacontenttype!r}, not JSON")
    structured = not binary
    if attributes.data_base64 is not None:
        structured = False
        try:
            body = base64.b64decode(attributes.data_base64, validate=True)
        except (binascii.Error, ValueError):
            raise Malformed("its data_base64 is not base64") from None
    return envelope(attributes, key, body, structured=structured)


def decode_as(event: type[E], body: bytes, *, key: str, content_type: str | None) -> tuple[Envelope, E] | None:
    """Envelope and payload in one pass over the bytes, where all is as this event's publishers write it.

    None where anything is otherwise: `decode` and `read` then tell what it is, or what is wrong.
    """
    if content_type is None or not content_type.startswith(STRUCTURED):
        return None
    try:
        whole = _whole(event).model_validate_json(body, extra="ignore")
    except (ValidationError, RecursionError):
        return None
    contract = event.__contract__
    usual = (contract.name, contract.schema, "application/json", None)
    if (whole.type, whole.dataschema, whole.datacontenttype, whole.data_base64) != usual:
        return None
    return envelope(whole, key, body, structured=True), whole.data


@lru_cache(maxsize=1000)
def _whole(event: type[E]) -> type[Whole[E]]:
    return Whole[event]  # type: ignore[valid-type]  # made once: pydantic builds a validator


def envelope(attributes: Attributes, key: str, body: bytes, *, structured: bool) -> Envelope:
    """Attributes in our terms."""
    event_id = as_uuid(attributes.id, attributes.source)
    try:
        time = _utc(attributes.time or datetime.now(UTC))
    except OverflowError:
        raise Malformed("its time is before the year 1 or after 9999, UTC") from None
    schema = SCHEMA.fullmatch(attributes.dataschema or "")
    return Envelope(
        name=attributes.type,
        key=key,
        id=event_id,
        time=time,
        source=attributes.source,
        subject=attributes.subject,
        version=int(schema["version"]) if schema else None,
        story=Story(
            correlation_id=as_uuid(attributes.correlationid) if attributes.correlationid else event_id,
            causation_id=as_uuid(attributes.causationid) if attributes.causationid else None,
            traceparent=attributes.traceparent,
        ),
        _body=body,
        _structured=structured,
    )


def binary_attributes(headers: Mapping[str, object]) -> dict[str, str]:
    """The attributes of a binary-mode event, or nothing."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        for prefix in BINARY_PREFIXES:
            if isinstance(name, str) and name.startswith(prefix):
                text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                found.setdefault(name.removeprefix(prefix).lower(), text)
    return found


def is_json(content_type: str | None) -> bool:
    """Whether data of that media type is JSON; unsaid, it is."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def as_uuid(text: UUID | str, source: str = "") -> UUID:
    """An id as a UUID: itself, or its stable representation."""
    if isinstance(text, UUID):
        return text
    try:
        return UUID(text)
    except ValueError:
        return uuid5(NAMESPACE, f"{source}\n{text}")


def caused_id(cause: Envelope, service: str, position: int) -> UUID:
    """The id of the event at a position among those a service publishes when it handles another.

    A redelivered handler publishes the same ids again, so that inboxes downstream recognise them.
    """
    return uuid5(NAMESPACE, f"{cause.source}\n{cause.id}\n{service}\n{position}")


def reason(error: ValidationError | RecursionError) -> str:
    """What is wrong, in one line, without the values: they may be secret, or huge."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    found = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'body'}: {problem['msg']}"[:200]
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
