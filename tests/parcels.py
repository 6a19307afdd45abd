"""A small trade in parcels: the events of the package's own tests. The shop has names of its own."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel

from broker import Event
from broker.envelope import CONTENT_TYPE
from broker.transport import HeaderValue, Message


class Size(BaseModel):
    """A nested model, in whole centimetres."""

    width: int
    height: int


class ParcelWeighed(Event, name="Parcel Weighed", key="parcel.weighed", version=1, subject="parcel_id"):
    """A parcel was put on the scales."""

    parcel_id: UUID
    grams: int = 1
    size: Size | None = None


class ParcelSent(Event, name="Parcel Sent", key="parcel.sent", version=1, subject="parcel_id"):
    """A parcel left."""

    parcel_id: UUID


class ParcelLost(Event, name="Parcel Lost", key="parcel.lost", version=1, subject="parcel_id"):
    """Nobody knows where a parcel is."""

    parcel_id: UUID


class VanBroke(Event, name="Van Broke", key="van.broke", version=1):
    """A van stands at the roadside."""

    van: str


def weighed(grams: int = 1) -> ParcelWeighed:
    """A parcel of its own, weighed."""
    return ParcelWeighed(parcel_id=uuid4(), grams=grams)


def message(
    body: bytes = b"{}",
    *,
    key: str = "parcel.weighed",
    exchange: str = "events",
    headers: dict[str, HeaderValue] | None = None,
    **properties: Any,
) -> Message:
    """A message with whatever in it."""
    properties = {"content_type": CONTENT_TYPE} | properties
    return Message(exchange=exchange, key=key, body=body, headers=headers or {}, **properties)
