"""Bytes that any AMQP client may send: properties as they stand on the wire, and bodies that are no events."""

from __future__ import annotations

import json
import struct
from typing import Any

from aiormq.abc import AbstractChannel, ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic

CONTENT_TYPE, ENCODING, HEADERS, MODE, PRIORITY = 0x8000, 0x4000, 0x2000, 0x1000, 0x0800
CORRELATION, REPLY_TO, EXPIRATION, MESSAGE_ID, TIMESTAMP = 0x0400, 0x0200, 0x0100, 0x0080, 0x0040
TYPE, USER, APP, CLUSTER, CONTINUED = 0x0020, 0x0010, 0x0008, 0x0004, 0x0001


def short(text: bytes) -> bytes:
    return struct.pack(">B", len(text)) + text


def long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def header(value: bytes, key: bytes = b"a") -> bytes:
    """A table of one header, its value with its type's letter before."""
    return long(short(key) + value)


def nested(depth: int) -> bytes:
    inner = short(b"a") + b"S" + long(b"x")
    for _ in range(depth):
        inner = short(b"a") + b"F" + long(inner)
    return long(inner)


def nested_arrays(depth: int) -> bytes:
    inner = b"t\x01"
    for _ in range(depth):
        inner = b"A" + long(inner)
    return header(inner)


NOT_UTF8 = b"\xff\xfe"
DEATH = b"A" + long(
    b"F" + long(short(b"count") + b"l" + struct.pack(">q", 10**15) + short(b"queue") + b"S" + long(b"q"))
)

PROPERTIES: dict[str, tuple[int, bytes]] = {
    # those that facts name: pamqp cannot decode them
    "timestamp of 2^64-1": (TIMESTAMP, struct.pack(">Q", 2**64 - 1)),
    "header timestamp of 2^63": (HEADERS, header(b"T" + struct.pack(">Q", 2**63))),
    "message id that is not UTF-8": (MESSAGE_ID, short(NOT_UTF8)),
    "content type that is not UTF-8": (CONTENT_TYPE, short(NOT_UTF8)),
    "header key that is not UTF-8": (HEADERS, header(b"S" + long(b"x"), NOT_UTF8)),
    "headers nested 5,000 deep": (HEADERS, nested(5000)),
    "decimal header": (HEADERS, header(b"D\xff" + struct.pack(">i", -1))),
    "not a number in a header": (HEADERS, header(b"d" + struct.pack(">d", float("nan")))),
    "a forged delivery count": (HEADERS, header(b"l" + struct.pack(">q", 19), b"x-delivery-count")),
    "an expiration that is no number": (EXPIRATION, short(b"soon")),
    "an expiration out of range": (EXPIRATION, short(b"99999999999999999999")),
    "another user's id": (USER, short(b"root")),
    # and more
    "expiration after 1 ms": (EXPIRATION, short(b"1")),
    "timestamp of 2^63": (TIMESTAMP, struct.pack(">Q", 2**63)),
    "timestamp in milliseconds": (TIMESTAMP, struct.pack(">Q", 1_700_000_000_000)),
    "correlation id that is not UTF-8": (CORRELATION, short(NOT_UTF8)),
    "type that is not UTF-8": (TYPE, short(NOT_UTF8)),
    "app id that is not UTF-8": (APP, short(b"\xc3\x28")),
    "reply to that is not UTF-8": (REPLY_TO, short(NOT_UTF8)),
    "cluster id": (CLUSTER, short(NOT_UTF8)),
    "content encoding that is a lie": (ENCODING, short(b"gzip")),
    "NUL bytes in a correlation id": (CORRELATION, short(b"\0" * 255)),
    "delivery mode 255": (MODE, b"\xff"),
    "priority 255": (PRIORITY, b"\xff"),
    "a second word of flags": (CONTINUED, b"\x00\x00"),
    "flags without their properties": (CONTENT_TYPE | MESSAGE_ID | TIMESTAMP, b""),
    "a header table longer than its frame": (HEADERS, struct.pack(">I", 2**31)),
    "a header of an unknown type": (HEADERS, header(b"Z1234")),
    "an empty header key": (HEADERS, header(b"t\x01", b"")),
    "a header key of 255 bytes": (HEADERS, header(b"t\x01", b"k" * 255)),
    "a header value that is not UTF-8": (HEADERS, header(b"S" + long(NOT_UTF8))),
    "a header of 100 kB": (HEADERS, header(b"S" + long(b"x" * 100_000))),
    "binary header": (HEADERS, header(b"x" + long(bytes(range(256))))),
    "void header": (HEADERS, header(b"V")),
    "infinite header": (HEADERS, header(b"d" + struct.pack(">d", float("inf")))),
    "infinite header of 32 bits": (HEADERS, header(b"f" + struct.pack(">f", float("-inf")))),
    "least header": (HEADERS, header(b"l" + struct.pack(">q", -(2**63)))),
    "the same header 3,000 times": (HEADERS, long((short(b"a") + b"I" + struct.pack(">i", 1)) * 3000)),
    "arrays nested 1,000 deep": (HEADERS, nested_arrays(1000)),
    "an array of 10,000": (HEADERS, header(b"A" + long(b"t\x01" * 10_000))),
    "forged deaths": (HEADERS, header(DEATH, b"x-death")),
    "deaths that are no table": (HEADERS, header(b"S" + long(b"x"), b"x-death")),
    "a forged attempt": (HEADERS, header(b"l" + struct.pack(">q", 2**62), b"broker-attempt")),
    "a forged key": (HEADERS, header(b"S" + long(b"parcel.sent"), b"broker-key")),
    "more recipients": (HEADERS, header(b"A" + long(b"S" + long(b"number.drawn")), b"CC")),
    "recipients that are no array": (HEADERS, header(b"t\x01", b"CC")),
    "CloudEvents of another version": (HEADERS, header(b"S" + long(b"9.9"), b"cloudEvents:specversion")),
    "a stream filter that is a table": (HEADERS, header(b"F" + long(b""), b"x-stream-filter-value")),
}


def _event(**changes: Any) -> bytes:
    event = {
        "specversion": "1.0",
        "id": "6dbf1a7c-4b44-4bb5-9d2c-6b0b55a3a1a4",
        "source": "hostile",
        "type": "Number Drawn",
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "data": {"number": 1},
    }
    return json.dumps({name: value for name, value in (event | changes).items() if value != "absent"}).encode()


BODIES: dict[str, bytes] = {
    "no JSON": b"\x00\x01\x02",
    "JSON nested 100,000 deep": b"[" * 100_000,
    "an event with data nested 50,000 deep": _event().replace(
        b'{"number": 1}', b'{"n":' * 50_000 + b"1" + b"}" * 50_000
    ),
    "a number of 10,000 digits": _event().replace(b'"number": 1', b'"number": ' + b"9" * 10_000),
    "UTF-16": _event().decode().encode("utf-16"),
    "half a body": _event()[:-20],
    "an array": b"[]",
    "null": b"null",
    "no id": _event(id="absent"),
    "an empty id": _event(id=""),
    "an id that is a list": _event(id=[1]),
    "no type": _event(type="absent"),
    "no source": _event(source="absent"),
    "an empty source": _event(source=""),
    "another type for its key": _event(type="Parcel Sent"),
    "a time that is none": _event(time="yesterday"),
    "the year 99999": _event(time="99999-01-01T00:00:00Z"),
    "another version of CloudEvents": _event(specversion="2.0"),
    "no data": _event(data="absent"),
    "data that is a list": _event(data=[1, 2]),
    "data of a wrong type": _event(data={"number": "many"}),
    "a fraction": _event(data={"number": 1.5}),
    "not a number": _event().replace(b'"number": 1', b'"number": NaN'),
    "an infinite number": _event().replace(b'"number": 1', b'"number": 1e999'),
    "a lone surrogate": _event(data={"number": 1, "padding": "S"}).replace(b'"S"', b'"\\ud800"'),
}


async def send(channel: AbstractChannel, flags: int, properties: bytes, body: bytes, key: str) -> None:
    """Publish with properties as bytes, as a client in any language could."""
    payload = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
    publish = Basic.Publish(exchange="events", routing_key=key)
    frames = [
        ChannelFrame.marshall(channel_number=channel.number, frames=[publish]).payload,
        struct.pack(">BHI", 2, channel.number, len(payload)) + payload + b"\xce",
        *(
            ChannelFrame.marshall(channel_number=channel.number, frames=[ContentBody(body[at : at + 100_000])]).payload
            for at in range(0, len(body), 100_000)
        ),
    ]
    await channel.connection.write_queue.put(ChannelFrame(payload=b"".join(frames), should_close=False))
