"""A guard around the two functions that decode what another client chose: the properties and the routing key.

Any AMQP client may send properties that pamqp cannot decode: a timestamp of 2⁶⁴−1, a header key that is not UTF-8,
tables nested thousands deep; and a routing key that is not UTF-8, to whoever subscribes by a pattern. pamqp raises in
aiormq's reader then, and takes the *connection* down: the message comes again, and again, and every delivery in hand
with it. Guarded, such a message has a mark and nothing else, and is rejected alone, so that RabbitMQ moves it to the
dead letters as it is.
"""

from __future__ import annotations

import struct

from pamqp.commands import Basic
from pamqp.header import ContentHeader

_decode_header = ContentHeader.unmarshal
_decode_delivery = Basic.Deliver.unmarshal


def install() -> None:
    """Put the guard in place, once for the process. Other users of aio-pika in it are guarded, too."""
    ContentHeader.unmarshal = _guarded_header  # type: ignore[method-assign, assignment]  # there is no hook for it
    Basic.Deliver.unmarshal = _guarded_delivery  # type: ignore[method-assign, assignment]


def undecodable(frame: object) -> str | None:
    """Why the header or the delivery of a message could not be decoded; None when it was."""
    return getattr(frame, "undecodable", None)


def undecodable_bytes(header: object) -> bytes | None:
    """The properties of a header that could not be decoded."""
    return getattr(header, "undecodable_bytes", None)


def _guarded_header(header: ContentHeader, data: bytes) -> None:
    try:
        _decode_header(header, data)
    except Exception as error:
        blank = ContentHeader()
        header.class_id, header.weight, header.body_size = struct.unpack(">HHQ", data[:12])
        header.properties = blank.properties
        header.undecodable = f"its properties cannot be decoded: {_short(error)}"  # type: ignore[attr-defined]
        header.undecodable_bytes = data[12:]  # type: ignore[attr-defined]


def _guarded_delivery(delivery: Basic.Deliver, data: bytes) -> None:
    try:
        _decode_delivery(delivery, data)
    except Exception as error:
        at = 1 + data[0]
        delivery.consumer_tag = data[1:at].decode()  # ours
        delivery.delivery_tag, redelivered = struct.unpack(">QB", data[at : at + 9])
        delivery.redelivered = bool(redelivered)
        delivery.exchange = delivery.routing_key = ""
        delivery.undecodable = f"its routing key cannot be decoded: {_short(error)}"  # type: ignore[attr-defined]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
