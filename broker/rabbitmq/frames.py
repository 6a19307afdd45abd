"""The few AMQP 0-9-1 frames of the hot path, built and read by ourselves. Pure: bytes in, bytes and calls out.

A frame on the wire: type (1), channel (2), size (4), payload (size), end (206)

A message is a method frame (Basic.Publish, Basic.Deliver or Basic.Return), a content header (the body's size and the
properties) and as many body frames as its body needs, none for an empty one. Nothing else comes between them on their
channel. Every other method is left to aiormq.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from struct import Struct
from typing import Any, Protocol

from pamqp import decode
from pamqp.commands import Basic
from pamqp.encode import field_table

FRAME_MAX = 131_072
"""Bytes of a frame, at most, unless RabbitMQ is configured otherwise. It says so in Connection.Tune."""
LARGEST_BODY = 512 * 1024 * 1024
"""Bytes. No RabbitMQ delivers more."""

METHOD, HEADER, BODY, HEARTBEAT_TYPE = 1, 2, 3, 8
END = 0xCE
BASIC = 60
PUBLISH, RETURN, DELIVER, ACK, REJECT, NACK = (BASIC << 16 | method for method in (40, 50, 60, 80, 90, 120))
OURS = frozenset({DELIVER, RETURN, ACK, NACK})

HEARTBEAT = bytes((HEARTBEAT_TYPE, 0, 0, 0, 0, 0, 0, END))

_FRAME = Struct(">BHI").unpack_from
_HEADER = Struct(">BHIHxxQ").unpack_from  # a content header with its frame
_SIZE = Struct(">HxxQ").unpack_from
_METHOD = Struct(">IB").unpack_from  # and the byte after, which in Deliver is the size of the consumer tag
_TAG = Struct(">QB").unpack_from
_CODE = Struct(">H").unpack_from
_TIMESTAMP = Struct(">Q").unpack_from
_LONG = Struct(">I").unpack_from

_pack_publish = Struct(">BHIIxx").pack
_pack_settle = Struct(">BHIIQBB").pack
_pack_header = Struct(">BHIHxxQ").pack
_pack_next = Struct(">BBHI").pack  # the end of a frame, and the beginning of the next
_pack_flags = Struct(">H").pack
_pack_timestamp = Struct(">Q").pack
_pack_size = Struct(">L").pack

_STREAM_NUMBER = b"\x0fx-stream-offsetl"
"""The header in which a stream says which of its messages this is, before the number."""
_STREAM_NUMBER_ALONE = struct.pack(">L", len(_STREAM_NUMBER) + 8) + _STREAM_NUMBER
"""The beginning of the headers of most of what a stream hands out."""
_SIZES = dict(zip(b"tbBsuIifldTDV", (1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 5, 0), strict=True))
"""Bytes of a header's value, by its type. Other types begin with their size."""

_OCTET = [bytes((value,)) for value in range(256)]


class FrameError(ValueError):
    """What came is not AMQP 0-9-1. The connection is beyond help."""


# -- building --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def publish(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    """The frame of Basic.Publish. Raises ValueError when a name has more than 255 bytes."""
    names = _short(exchange, "exchange") + _short(key, "routing key") + _OCTET[mandatory]
    return _pack_publish(METHOD, channel, 6 + len(names), PUBLISH) + names + b"\xce"


def properties(  # noqa: PLR0913  (as many as there are)
    *,
    content_type: str | None = None,
    headers: Mapping[str, Any] | None = None,
    correlation_id: str | None = None,
    message_id: str | None = None,
    timestamp: int | None = None,
    type: str | None = None,  # noqa: A002  (its name in AMQP)
    app_id: str | None = None,
) -> bytes:
    """The properties of a persistent message, for `content`. None and no headers are left out.

    Args:
        headers: bytes among their values are sent as bytes.
        timestamp: seconds since 1970.

    Raises:
        ValueError: a text has more than 255 bytes, or a value has no form in AMQP.
    """
    flags, varying = 0x1000, []
    if headers:
        flags |= 0x2000
        varying.append(_table(headers) + b"\x02")
    try:
        if correlation_id is not None:
            flags |= 0x0400
            text = correlation_id.encode()
            varying += (_OCTET[len(text)], text)
        if message_id is not None:
            flags |= 0x0080
            text = message_id.encode()
            varying += (_OCTET[len(text)], text)
        if timestamp is not None:
            flags |= 0x0040
            varying.append(_pack_timestamp(timestamp))
    except IndexError:
        raise ValueError(f"a correlation id or message id of {len(text)} bytes: 255 is the most") from None
    except struct.error:
        raise ValueError(f"{timestamp} is not a timestamp") from None
    before, after = _constant(flags, content_type, type, app_id)
    return b"".join((before, *varying, after))


@lru_cache(maxsize=1024)
def _constant(flags: int, content_type: str | None, kind: str | None, app_id: str | None) -> tuple[bytes, bytes]:
    """The properties that hardly vary: those before the others with the flags of all, and those after."""
    before, after = b"", b""
    if content_type is not None:
        flags |= 0x8000
        before = _short(content_type, "content type")
    if not flags & 0x2000:  # else headers come before the delivery mode
        before += b"\x02"
    if kind is not None:
        flags |= 0x0020
        after = _short(kind, "type")
    if app_id is not None:
        flags |= 0x0008
        after += _short(app_id, "app id")
    return _pack_flags(flags) + before, after


def _short(text: str, what: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > 255:
        raise ValueError(f"{what} of {len(encoded)} bytes: 255 is the most")
    return _OCTET[len(encoded)] + encoded


def _table(headers: Mapping[str, Any]) -> bytes:
    """The headers as pamqp writes them; of bytes, it knows bytearray alone."""
    try:
        if all(map(_is_short, headers.values())):
            fields = b"".join([_field(name, headers[name]) for name in sorted(headers)])
            return _pack_size(len(fields)) + fields
        return field_table(
            {name: bytearray(value) if isinstance(value, bytes) else value for name, value in headers.items()}
        )
    except Exception as unfit:
        raise ValueError(f"headers that cannot be sent: {_why(unfit)}") from None


def _is_short(value: object) -> bool:
    return type(value) is int or (type(value) is str and len(value) <= 100)


@lru_cache(maxsize=1024)
def _field(name: str, value: str | int) -> bytes:
    """One header: many messages have the same."""
    return field_table({name: value})[4:]


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """The frames of a message's properties and body. Raises ValueError when the properties do not fit into a frame."""
    size, most = len(body), frame_max - 8
    if len(properties) + 12 > most:  # RabbitMQ closes the connection for it
        raise ValueError(f"properties of {len(properties)} bytes: {most - 12} is the most")
    header = _pack_header(HEADER, channel, len(properties) + 12, BASIC, size)
    if 0 < size <= most:
        return b"".join((header, properties, _pack_next(END, BODY, channel, size), body, b"\xce"))
    frames = [header, properties]
    for at in range(0, size, most):
        part = body[at : at + most]
        frames += (_pack_next(END, BODY, channel, len(part)), part)
    frames.append(b"\xce")
    return b"".join(frames)


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    """The frame of Basic.Ack."""
    return _pack_settle(METHOD, channel, 13, ACK, tag, multiple, END)


def nack(channel: int, tag: int, *, multiple: bool, requeue: bool) -> bytes:
    """The frame of Basic.Nack."""
    return _pack_settle(METHOD, channel, 13, NACK, tag, multiple | requeue << 1, END)


def reject(channel: int, tag: int, *, requeue: bool) -> bytes:
    """The frame of Basic.Reject."""
    return _pack_settle(METHOD, channel, 13, REJECT, tag, requeue, END)


# -- reading ---------------------------------------------------------------------------------------------------------


class Delivered:
    """A message as it was delivered. Its properties are bytes until `decode_properties`."""

    __slots__ = ("body", "consumer_tag", "exchange", "key", "properties", "redelivered", "tag")

    def __init__(  # noqa: PLR0913, PLR0917  (by position: it is made for each message)
        self, consumer_tag: str, tag: int, redelivered: bool, exchange: str, key: str, properties: bytes, body: bytes
    ) -> None:
        self.consumer_tag = consumer_tag
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.key = key
        self.properties = properties
        self.body = body


class Sink(Protocol):
    """What a channel's frames come to. It must not raise."""

    def deliver(self, delivery: Delivered, /) -> None:
        """Basic.Deliver with its content."""

    def returned(  # noqa: PLR0913, PLR0917  (as Basic.Return has them)
        self, code: int, text: str, exchange: str, key: str, properties: bytes, body: bytes, /
    ) -> None:
        """Basic.Return with its content: RabbitMQ knew no queue for it. Its confirm follows."""

    def confirmed(self, tag: int, multiple: bool, /) -> None:
        """Basic.Ack."""

    def refused(self, tag: int, multiple: bool, /) -> None:
        """Basic.Nack."""


class _Content:
    """What a Deliver or a Return announced, as far as it has come."""

    __slots__ = ("body", "message", "properties", "sink", "size")

    def __init__(self, sink: Sink, message: Delivered | tuple[int, str, str, str]) -> None:
        self.sink = sink
        self.message = message
        self.size = -1  # until the header says it
        self.properties = b""
        self.body = bytearray()

    def hand_over(self, body: bytes) -> None:
        if isinstance(self.message, Delivered):
            self.message.properties, self.message.body = self.properties, body
            self.sink.deliver(self.message)
        else:
            self.sink.returned(*self.message, self.properties, body)


class Splitter:
    """Takes the frames of the hot path out of what RabbitMQ sends.

    Ours are Basic.Deliver and Basic.Return with their content, Basic.Ack and Basic.Nack, on the channels registered in
    `channels`. A channel may be registered and unregistered at any time; the rest of a content that has begun is then
    dropped. One frame is kept at most, and one content for each channel.

    Attributes:
        channels: whose frames go to which sink.
        frame_max: bytes of a frame at most, as agreed with RabbitMQ.
        moved: whether what came last ended a frame; while a content is incomplete, one that is ours.
    """

    def __init__(self, frame_max: int = FRAME_MAX) -> None:
        self.channels: dict[int, Sink] = {}
        self.frame_max = frame_max
        self.moved = True
        self._contents: dict[int, _Content] = {}
        self._kept = bytearray()
        self._need = 8
        self._begun = False
        self._wrong: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Call the sinks for the frames that are theirs, and give back all others, whole ones only, in order.

        Args:
            data: what came from the socket, cut anywhere.

        Raises:
            FrameError: it is rubbish, or was before. The other frames that came with it are lost.
        """
        if self._wrong is not None:
            raise FrameError(self._wrong)
        if kept := self._kept:
            if len(kept) + len(data) < self._need:
                kept += data
                self.moved = False
                return b""
            data = b"".join((kept, data))
            self._kept = bytearray()
        try:
            return self._split(data)
        except BaseException as wrong:  # a sink's, too: the frames after it are lost
            self._wrong = str(wrong) if isinstance(wrong, FrameError) else f"a sink failed: {_why(wrong)}"
            self._contents.clear()
            raise

    def _split(self, data: bytes) -> bytes:
        """The loop over the frames, each from `at` to `stop`; from `since` on, those of others wait to be copied."""
        channels, contents, most, others = self.channels, self._contents, self.frame_max - 8, []
        end, since, need = len(data), 0, 8
        at = 0 if self._begun else self._begin(data)
        while at <= end - 8:
            kind, channel, size = _FRAME(data, at)
            stop = at + 8 + size
            if size > most:
                raise FrameError(f"a frame with {size} bytes of payload on channel {channel}: {most} is the most")
            if stop > end:
                need = stop - at
                break
            if data[stop - 1] != END:
                raise FrameError(f"a frame on channel {channel} ends in {data[stop - 1]:#04x}, not in 0xce")
            sink = channels.get(channel)
            if sink is not None or channel in contents:
                take = self._method if kind == METHOD else self._content
                taken = take(sink, channel, data, at, stop)
                if taken > at:
                    if since < at:
                        others.append(data[since:at])
                    since = at = taken
                    continue
            at = stop
        if at < end:
            self._kept += data[at:]
            self._need = need
        self.moved = since > 0 or (at > 0 and not contents)
        others.append(data[since:at])
        return b"".join(others)

    def _begin(self, data: bytes) -> int:
        """Where the first frame begins: a server that does not speak our version answers with 8 bytes of its own."""
        self._begun = len(data) >= 8
        return 8 if self._begun and data.startswith(b"AMQP") else 0

    def _method(self, sink: Sink | None, channel: int, data: bytes, at: int, stop: int) -> int:
        """A method frame. Returns where what was taken ends; where it began, if it is not ours."""
        if stop - at < 12:
            raise FrameError(f"a method of {stop - at - 8} bytes on channel {channel}: too short")
        method, length = _METHOD(data, at + 7)
        if sink is None or method not in OURS:
            self._contents.pop(channel, None)
            return at
        if channel in self._contents:
            raise FrameError(f"a method on channel {channel} where content is due")
        if method == DELIVER:
            names = at + length + 21
            exchange, key = _names(data[names : stop - 1])
            tag, redelivered = _TAG(data, names - 9)
            consumer_tag = _text(data[at + 12 : names - 9])
            delivery = Delivered(consumer_tag, tag, redelivered & 1 == 1, exchange, key, b"", b"")
            return self._at_once(sink, channel, delivery, data, stop)
        if method == RETURN:
            text, exchange, key = _strings(data[at + 13 : stop - 1], 3)
            self._contents[channel] = _Content(sink, (_CODE(data, at + 11)[0], text, exchange, key))
            return stop
        if stop - at != 21:
            raise FrameError(f"an ack of {stop - at - 8} bytes on channel {channel}: 13 are due")
        tag, bits = _TAG(data, at + 11)
        (sink.confirmed if method == ACK else sink.refused)(tag, bits & 1 == 1)
        return stop

    def _at_once(self, sink: Sink, channel: int, delivery: Delivered, data: bytes, at: int) -> int:
        """The content of a delivery when all of it is here, in two frames, as most is. If not, and if wrong: later."""
        if at + 30 < len(data):
            kind, on, size, class_id, announced = _HEADER(data, at)
            body, most = at + size + 15, self.frame_max - 8
            stop: int = body + announced + 1
            if (
                kind == HEADER
                and on == channel
                and class_id == BASIC
                and 14 <= size <= most
                and 0 < announced <= most
                and stop <= len(data)
                and _FRAME(data, body - 7) == (BODY, channel, announced)
                and data[body - 8] == END == data[stop - 1]
            ):
                delivery.properties = data[at + 19 : body - 8]
                delivery.body = data[body : stop - 1]
                sink.deliver(delivery)
                return stop
        self._contents[channel] = _Content(sink, delivery)
        return at

    def _content(self, sink: Sink | None, channel: int, data: bytes, at: int, stop: int) -> int:
        """A header or body frame of what a Deliver or a Return announced. Returns as `_method` does."""
        kind, payload, begun = data[at], data[at + 7 : stop - 1], self._contents.get(channel)
        if kind not in {HEADER, BODY}:
            if sink is None or kind == HEARTBEAT_TYPE:
                return at
            raise FrameError(f"a frame of unknown type {kind} on channel {channel}")
        if begun is None or (begun.size < 0) != (kind == HEADER):
            raise FrameError(f"a {'header' if kind == HEADER else 'body'} on channel {channel} where none is due")
        body: bytes | bytearray = begun.body
        if kind == HEADER:
            begun.size, begun.properties = _header(payload)
        elif len(body) + len(payload) > begun.size:
            raise FrameError(f"a body on channel {channel} longer than the {begun.size} bytes announced")
        elif len(payload) == begun.size:  # all of it: copied once
            body = payload
        else:
            begun.body += payload
        if len(body) == begun.size:
            del self._contents[channel]
            if sink is begun.sink:
                begun.hand_over(bytes(body))
        return stop


def decode_properties(properties: bytes) -> dict[str, Any]:
    """What stands in the properties of a delivery, by pamqp's names. Anybody may send anything there.

    Raises:
        ValueError: they cannot be decoded; it says why.
    """
    try:
        return _decoded(properties)
    except Exception as undecodable:
        raise ValueError(f"its properties cannot be decoded: {_why(undecodable)}") from None


def stream_number(properties: bytes) -> int | None:
    """The place in a stream of what it handed out, whatever else stands in the properties; None: out of a queue."""
    try:
        flags, at = properties[0] << 8 | properties[1], 2
        for flag in (0x8000, 0x4000):  # content type and encoding come before the headers
            if flags & flag:
                at += 1 + properties[at]
        if not flags & 0x2000:
            return None
        stop = at + 4 + _LONG(properties, at)[0]
        at += 4
        while at < stop:
            if properties.startswith(_STREAM_NUMBER, at):
                return int(_TIMESTAMP(properties, at + len(_STREAM_NUMBER))[0])
            at += 1 + properties[at]
            kind = properties[at]
            at += 1 + (_SIZES[kind] if kind in _SIZES else 4 + _LONG(properties, at + 1)[0])
    except (IndexError, struct.error):
        pass
    return None


def _decoded(properties: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = {}
    at = 2
    for name, kind in _present(properties[0] << 8 | properties[1]):
        if kind == "shortstr":
            stop = at + 1 + properties[at]
            decoded[name] = properties[at + 1 : stop].decode()
            at = stop
        elif kind == "timestamp":
            decoded[name] = _moment(_TIMESTAMP(properties, at)[0])
            at += 8
        elif kind == "octet":
            decoded[name] = properties[at]
            at += 1
        elif properties.startswith(_STREAM_NUMBER_ALONE, at):
            at += len(_STREAM_NUMBER_ALONE)
            decoded[name] = {"x-stream-offset": _TIMESTAMP(properties, at)[0]}
            at += 8
        else:
            size, decoded[name] = decode.by_type(properties[at:], kind)
            at += size
    if at > len(properties):
        raise ValueError(f"{at - len(properties)} bytes are missing")
    return decoded


@lru_cache(maxsize=64)
def _moment(timestamp: int) -> datetime:
    """A timestamp as pamqp reads it: what is later than 2106 is taken for milliseconds."""
    return datetime.fromtimestamp(timestamp if timestamp <= 0xFFFFFFFF else timestamp / 1000, UTC)


@lru_cache(maxsize=256)
def _present(flags: int) -> list[tuple[str, str]]:
    """Names and types of the properties that the flags announce."""
    if flags & 1:
        raise ValueError("more property flags than there are properties")
    return [(name, Basic.Properties.amqp_type(name)) for name, bit in Basic.Properties.flags.items() if flags & bit]


def _header(payload: bytes) -> tuple[int, bytes]:
    """The size of the body, and the properties."""
    if len(payload) < 14:
        raise FrameError(f"a content header of {len(payload)} bytes: too short")
    class_id, size = _SIZE(payload)
    if class_id != BASIC:
        raise FrameError(f"a content header of class {class_id}, not {BASIC}")
    if size > LARGEST_BODY:
        raise FrameError(f"a body of {size} bytes announced: {LARGEST_BODY} is the most")
    return size, payload[12:]


@lru_cache(maxsize=1024)
def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


@lru_cache(maxsize=1024)
def _names(raw: bytes) -> tuple[str, str]:
    """An exchange and a routing key, as Deliver ends in."""
    exchange, key = _strings(raw, 2)
    return exchange, key


def _strings(raw: bytes, count: int) -> list[str]:
    """As many short strings, which fill these bytes."""
    strings, at = [], 0
    for _ in range(count):
        stop = at + 1 + (raw[at] if at < len(raw) else 0)
        strings.append(_text(raw[at + 1 : stop]))
        at = stop
    if at != len(raw):
        raise FrameError(f"a method whose names have {len(raw)} bytes, where {at} are due")
    return strings


def _why(raised: BaseException) -> str:
    return f"{type(raised).__name__}: {raised}"[:200]
