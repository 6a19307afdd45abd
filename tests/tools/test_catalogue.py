"""`broker events` reads from the code who publishes what, who gets it, and why."""

from __future__ import annotations

from uuid import UUID

import pytest

from broker import ContractError, Envelope, Event, Service, UnknownEvent
from broker.tools.catalogue import Entry, check_collisions, find_event, read_catalogue


class ParcelSent(Event, name="Parcel Sent", key="parcel.sent", subject="parcel_id"):
    """A parcel is on its way.

    Not yet delivered.
    """

    parcel_id: UUID


class ParcelSentTwo(Event, name="Parcel Sent", key="parcel.sent", version=2, subject="parcel_id"):
    parcel_id: UUID
    weight: int


class ParcelLost(Event, name="Parcel Lost", key="parcel.lost"):
    parcel_id: UUID


def services() -> list[Service]:
    depot = Service("depot", publishes=[ParcelSent, ParcelSentTwo])
    mail, audit = Service("mail"), Service("audit")

    @mail.on(ParcelSent)
    async def write(event: ParcelSent) -> None: ...

    @audit.on("parcel.*")
    async def note(event: Envelope) -> None: ...

    return [depot, mail, audit]


def entry(name: str, version: int | None = None) -> Entry:
    return find_event(read_catalogue(services()), name, version)


def test_it_says_who_publishes_and_who_subscribes_and_why() -> None:
    sent = entry("Parcel Sent", 1)
    assert sent.publishers == ["depot"]
    assert [(it.service, it.why) for it in sent.subscribers] == [
        ("mail", "exactly this event"),
        ("audit", "matches 'parcel.*'"),
    ]
    assert sent.title == "A parcel is on its way."


def test_a_handler_of_one_version_gets_the_others_too() -> None:
    assert [it.service for it in entry("Parcel Sent", 2).subscribers] == ["mail", "audit"]


def test_an_event_that_nobody_publishes_is_listed() -> None:
    assert entry("Parcel Lost").publishers == []
    assert [it.service for it in entry("Parcel Lost").subscribers] == ["audit"]


@pytest.mark.parametrize("wanted", ["Parcel Sent", "parcel sent", "parcel.sent", "ParcelSentTwo"])
def test_an_event_is_found_by_name_key_or_class_in_any_case(wanted: str) -> None:
    assert entry(wanted).event is ParcelSentTwo or wanted != "ParcelSentTwo"
    assert entry(wanted).event.__contract__.name == "Parcel Sent"


def test_the_newest_version_is_found_unless_said() -> None:
    assert entry("Parcel Sent").event is ParcelSentTwo
    assert entry("Parcel Sent", 1).event is ParcelSent


def test_an_unknown_event_names_what_was_probably_meant() -> None:
    with pytest.raises(UnknownEvent, match="Did you mean 'Parcel Sent'"):
        entry("Parcl Sent")
    with pytest.raises(UnknownEvent, match="has no version 3; it has 1, 2"):
        entry("Parcel Sent", 3)


def test_an_entry_is_json_for_programs() -> None:
    document = entry("parcel.sent", 1).as_json()
    assert document["subscribers"][1] == {
        "service": "audit",
        "handler": "note",
        "binding": "parcel.*",
    }
    assert document["schema"]["required"] == ["parcel_id"]
    assert document["subject"] == "parcel_id"


def test_two_events_with_one_key_or_one_name_are_refused() -> None:
    same_key = type("Other", (Event,), {}, name="Parcel Found", key="parcel.sent")
    same_name = type("Another", (Event,), {}, name="Parcel Sent", key="parcel.gone")
    with pytest.raises(ContractError, match=r"Two events have the key 'parcel\.sent'"):
        check_collisions([ParcelSent, same_key])
    with pytest.raises(ContractError, match="Two events are named 'Parcel Sent'"):
        check_collisions([ParcelSent, same_name])
