"""Two services of the parcels' trade, as a module that commands can be pointed at: one publishes, one subscribes."""

from __future__ import annotations

from broker import Service
from tests.parcels import ParcelSent, ParcelWeighed

scales = Service("scales", publishes=[ParcelWeighed, ParcelSent])
weighing = Service("weighing")


@weighing.on(ParcelWeighed, ParcelSent)
async def weigh(parcel: ParcelWeighed | ParcelSent) -> None:
    """Nothing is to be done."""
