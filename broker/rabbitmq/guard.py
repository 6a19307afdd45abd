"""A guard around the one function that decodes the properties of a message.

Any AMQP client may send properties that pamqp cannot decode: a timestamp of 2⁶⁴−1, a header key that is not UTF-8,
tables nested thousands deep. It raises in aiormq's reader then, and takes the *connection* down: the message comes
again, and again, and every delivery in hand with it. Guarded, such a message has no properties and a mark, and is
rejected alone, so that RabbitMQ moves it to the dead letters as it is.
"""

from __future__ import annotations

import struct

from pamqp.header import ContentHeader

_decode = ContentHeader.unmarshal


def install() -> None:
    """Put the guard in place, once for the process. Other users of aio-pika in it are guarded, too."""
    ContentHeader.unmarshal = _guarded  # type: ignore[method-assign, assignment]  # there is no hook for it


def undecodable(header: ContentHeader) -> str | None:
    """Why the properties of a message could not be decoded; None when they were."""
    return getattr(header, "undecodable", None)


def _guarded(header: ContentHeader, data: bytes) -> None:
    try:
        _decode(header, data)
    except Exception as error:
        blank = ContentHeader()
        header.class_id, header.weight, header.body_size = struct.unpack(">HHQ", data[:12])
        header.properties = blank.properties
        header.undecodable = f"{type(error).__name__}: {error}"[:200]  # type: ignore[attr-defined]  # our mark
