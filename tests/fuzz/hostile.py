"""What any AMQP client may put into a message, as hypothesis strategies over bytes; and taking it apart again.

Framing is kept (lengths are right), or RabbitMQ refuses the message itself; `random_header` keeps not even that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import isfinite
from operator import itemgetter
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

T = TypeVar("T")

EXTREME = [b"\x00", b"\xff", b"\x7f", b"\x80"]
SIZES = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "f": 4, "d": 8, "T": 8, "V": 0}
DECIMAL = {"D": 5}
"""RabbitMQ closes the publisher's connection over one where a stream is bound: that is between the two of them."""
PROPERTIES = ["content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to"]
PROPERTIES += ["expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id"]
"""In their order on the wire; the first is bit 15 of the flags."""
OCTETS = ("delivery_mode", "priority")
NAMES = [f"broker-{name}" for name in ("key", "attempt", "service", "handler", "error", "failed-at")]
NAMES += ["ce-id", "ce-type", "ce-source", "ce-specversion", "ce-time", "cloudEvents:id", "cloudEvents:type"]
NAMES += ["cloudEvents_source", "cloudEvents:specversion", "traceparent", "x-delivery-count", "x-acquired-count"]
NAMES += ["x-first-death-queue", "x-first-death-reason", "x-first-death-exchange", "x-last-death-queue"]
NAMES += ["x-match", "x-stream-offset", "x-opt-delivery-time", "x-message-ttl", "x-dead-letter-exchange", "x-delay"]
"""Headers that mean something to somebody on the way."""

# -- values --------------------------------------------------------------------------------------------------------


def fixed(size: int) -> st.SearchStrategy[bytes]:
    """Bytes of one length, extremes among them."""
    return st.binary(min_size=size, max_size=size) | st.sampled_from(EXTREME).map(lambda byte: byte * size)


def long(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def short(content: bytes) -> bytes:
    return struct.pack(">B", len(content)) + content


texts = (
    st.text(max_size=12).map(str.encode)
    | st.binary(max_size=12)
    | st.sampled_from([b"", b"\xff\xfe", b"\x00", b"1", b"-1", b"1e999", b"NaN", b"a" * 255, "é".encode() * 100])
)
names = (st.sampled_from(NAMES).map(str.encode) | texts).filter(lambda name: len(name) < 256)


def of_kind(kind: str, size: int) -> st.SearchStrategy[bytes]:
    content = fixed(size)
    if kind == "t":
        content = st.sampled_from([b"\x00", b"\x01"])  # RabbitMQ makes 1 of other truths
    if kind in "fd":  # RabbitMQ closes the publisher's connection over what is no number
        content = content.filter(lambda number: isfinite(struct.unpack(f">{kind}", number)[0]))
    return content.map(lambda content: kind.encode() + content)


def values(kinds: dict[str, int]) -> st.SearchStrategy[bytes]:
    """One field value, its type before it."""
    scalars = st.one_of(
        *(of_kind(kind, size) for kind, size in kinds.items()),
        texts.map(lambda content: b"S" + long(content)),
        texts.map(lambda content: b"x" + long(content)),
    )
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: b"A" + long(b"".join(items)))
            | tables(inner).map(lambda content: b"F" + content)
        ),
        max_leaves=6,
    )


def tables(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Each name once: of two, RabbitMQ 4 keeps one."""
    table = st.lists(st.tuples(names, inner), max_size=5, unique_by=itemgetter(0))
    return table.map(lambda fields: long(b"".join(short(name) + value for name, value in fields)))


def huge() -> st.SearchStrategy[bytes]:
    """Tables that cost whoever decodes them: very many values, or very deep ones."""

    def nested(depth: int) -> bytes:
        value = b"V"
        for _ in range(depth):
            value = b"A" + long(value)
        return value

    many = st.sampled_from([b"V", b"t\x01", b"A\0\0\0\0", b"F\0\0\0\0"]).map(lambda value: b"A" + long(value * 12_000))
    deep = st.sampled_from([100, 1000, 5000]).map(nested)
    return (many | deep).map(lambda value: long(short(b"huge") + value))


# -- properties ----------------------------------------------------------------------------------------------------

CONTENT_TYPES = [b"application/cloudevents+json; charset=utf-8", b"application/cloudevents+json", b"application/json"]


@st.composite
def properties(draw: st.DrawFn, kinds: dict[str, int]) -> bytes:
    """Flags and properties; those that RabbitMQ checks itself (user id, reply-to, expiration) as it takes them."""
    drawn: dict[str, st.SearchStrategy[bytes]] = {
        "content_type": (st.sampled_from(CONTENT_TYPES) | texts).map(short),
        "headers": st.integers(0, 99).flatmap(lambda n: huge() if n == 0 else tables(values(kinds))),
        "delivery_mode": st.sampled_from([b"\x01", b"\x02"]),
        "priority": fixed(1),
        "timestamp": fixed(8),
        "expiration": st.sampled_from([b"0", b"1", b"4294967295"]).map(short),
        "user_id": st.just(short(b"guest")),
    }
    there = draw(st.sets(st.sampled_from(PROPERTIES), max_size=6))
    flags = sum(1 << 15 - PROPERTIES.index(name) for name in there)
    flags |= draw(st.sampled_from([0] * 20 + [1, 2, 3]))  # two bits that mean nothing to RabbitMQ
    content = [draw(drawn.get(name, texts.map(short))) for name in PROPERTIES if name in there]
    return struct.pack(">H", flags) + b"".join(content)


@st.composite
def spoilt_properties(draw: st.DrawFn) -> bytes:
    """Properties with some bytes changed, cut off or put in: their framing is lost. RabbitMQ refuses most of them."""
    sound = draw(properties(SIZES | DECIMAL))
    at = draw(st.integers(0, len(sound)))
    return sound[:at] + draw(st.binary(max_size=3)) + sound[at + draw(st.integers(0, 4)) :]


random_properties = st.binary(min_size=2, max_size=60) | spoilt_properties()

# -- bodies --------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
ATTRIBUTES = ["specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema"]
ATTRIBUTES += ["correlationid", "causationid", "traceparent", "data_base64", "data"]


@st.composite
def bodies(draw: st.DrawFn, types: list[str]) -> Callable[[str], bytes]:
    """A body, given a text that it shall hold to be known by: random bytes, or an event, sound or spoilt."""
    if draw(st.booleans()):
        random = draw(st.binary(max_size=80))
        return lambda mark: random + mark.encode()
    spoilt = draw(
        st.dictionaries(st.sampled_from(ATTRIBUTES), json_values, max_size=2) if draw(st.booleans()) else NONE
    )
    event = {"specversion": "1.0", "id": "x", "source": "fuzz", "type": draw(st.sampled_from(types))}
    return lambda mark: json.dumps({"data": {"mark": mark}, **event, **spoilt, "mark": mark}).encode("utf-8", "replace")


NONE: st.SearchStrategy[dict[str, Any]] = st.just({})


def examples(strategy: st.SearchStrategy[T], count: int, seed: int) -> list[T]:
    """So many examples of a strategy, the same for the same seed."""
    found: list[T] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found


# -- taking apart --------------------------------------------------------------------------------------------------


def parts(raw: bytes) -> tuple[dict[str, bytes], list[bytes]]:
    """Properties by name, and the headers one by one, as bytes."""
    flags, at = struct.unpack(">H", raw[:2])[0], 2
    found: dict[str, bytes] = {}
    for bit, name in enumerate(PROPERTIES):
        if flags & 1 << 15 - bit:
            length = {"headers": 4, "timestamp": 8}.get(name, 1)
            if name == "headers":
                length += struct.unpack(">I", raw[at : at + 4])[0]
            elif name not in (*OCTETS, "timestamp"):
                length += raw[at]
            found[name], at = raw[at : at + length], at + length
    headers = found.pop("headers", b"\0\0\0\0")
    return found, fields(headers[4:])


def fields(table: bytes) -> list[bytes]:
    """The fields of a table, name and value."""
    found, at = [], 0
    while at < len(table):
        end = at + 1 + table[at]
        kind = table[end : end + 1].decode()
        end += 1
        end += (SIZES | DECIMAL)[kind] if kind in SIZES | DECIMAL else 4 + struct.unpack(">I", table[end : end + 4])[0]
        found.append(table[at:end])
        at = end
    return found
