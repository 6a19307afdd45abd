"""`broker events` reads from the code who publishes what, who gets it, and why."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from uuid import UUID

import pytest

from broker import ContractError, Envelope, Event, Service, UnknownEvent
from broker.settings import Settings
from broker.tools.catalogue import Entry, check_collisions, find_event, read_catalogue
from broker.tools.checks import check_code
from broker.tools.snapshot import Snapshot


class PalletSent(Event, name="Pallet Sent", key="pallet.sent", subject="pallet_id"):
    """A pallet is on its way.

    Not yet delivered.
    """

    pallet_id: UUID


class PalletSentTwo(Event, name="Pallet Sent", key="pallet.sent", version=2, subject="pallet_id"):
    pallet_id: UUID
    weight: int


class PalletLost(Event, name="Pallet Lost", key="pallet.lost"):
    pallet_id: UUID


def services() -> list[Service]:
    depot = Service("depot", publishes=[PalletSent, PalletSentTwo])
    mail, audit = Service("mail"), Service("audit")

    @mail.on(PalletSent)
    async def write(event: PalletSent) -> None: ...

    @audit.on("pallet.*")
    async def note(event: Envelope) -> None: ...

    return [depot, mail, audit]


def entry(name: str, version: int | None = None) -> Entry:
    return find_event(read_catalogue(services()), name, version)


def test_it_says_who_publishes_and_who_subscribes_and_why() -> None:
    sent = entry("Pallet Sent", 1)
    assert sent.publishers == ["depot"]
    assert [(it.service, it.why) for it in sent.subscribers] == [
        ("mail", "exactly this event"),
        ("audit", "matches 'pallet.*'"),
    ]
    assert sent.title == "A pallet is on its way."


def test_a_handler_of_one_version_gets_the_others_too() -> None:
    assert [it.service for it in entry("Pallet Sent", 2).subscribers] == ["mail", "audit"]


def test_an_event_that_nobody_publishes_is_listed() -> None:
    assert entry("Pallet Lost").publishers == []
    assert [it.service for it in entry("Pallet Lost").subscribers] == ["audit"]


@pytest.mark.parametrize("wanted", ["Pallet Sent", "pallet sent", "pallet.sent", "PalletSentTwo"])
def test_an_event_is_found_by_name_key_or_class_in_any_case(wanted: str) -> None:
    assert entry(wanted).event is PalletSentTwo or wanted != "PalletSentTwo"
    assert entry(wanted).event.__contract__.name == "Pallet Sent"


def test_the_newest_version_is_found_unless_said() -> None:
    assert entry("Pallet Sent").event is PalletSentTwo
    assert entry("Pallet Sent", 1).event is PalletSent


def test_an_unknown_event_names_what_was_probably_meant() -> None:
    with pytest.raises(UnknownEvent, match="Did you mean 'Pallet Sent'"):
        entry("Palet Sent")
    with pytest.raises(UnknownEvent, match="has no version 3; it has 1, 2"):
        entry("Pallet Sent", 3)


def test_an_entry_is_json_for_programs() -> None:
    document = entry("pallet.sent", 1).as_json()
    assert document["subscribers"][1] == {
        "service": "audit",
        "handler": "note",
        "binding": "pallet.*",
    }
    assert document["schema"]["required"] == ["pallet_id"]
    assert document["subject"] == "pallet_id"


class AnotherPalletSent(Event, name="Pallet Sent", key="pallet.sent", subject="pallet_id"):
    """Of all that the depot tells, what matters elsewhere."""

    pallet_id: str


def heard_by(name: str, event: type[Event]) -> Service:
    service = Service(name)
    service.on(event)(lambda _: None)
    return service


@pytest.mark.parametrize("order", [1, -1])
def test_who_publishes_an_event_defines_it(order: int) -> None:
    depot = Service("depot", publishes=[PalletSent])
    found = read_catalogue([heard_by("archive", AnotherPalletSent), depot, heard_by("zoo", AnotherPalletSent)][::order])
    assert find_event(found, "Pallet Sent", 1).event is PalletSent


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_the_first_by_name_defines_it(order: int) -> None:
    publishers = [Service("another", publishes=[AnotherPalletSent]), Service("depot", publishes=[PalletSent])]
    assert find_event(read_catalogue(publishers[::order]), "Pallet Sent", 1).event is AnotherPalletSent
    readers = [heard_by("archive", AnotherPalletSent), heard_by("mail", PalletSent)]
    assert find_event(read_catalogue(readers[::order]), "Pallet Sent", 1).event is AnotherPalletSent


def test_publishers_that_disagree_are_a_finding_and_narrower_readers_are_not() -> None:
    another, depot = Service("another", publishes=[AnotherPalletSent]), Service("depot", publishes=[PalletSent])
    services = [depot, another, heard_by("archive", AnotherPalletSent)]
    (it,) = check_code(Snapshot(settings=Settings(_env_file=None), services=services))
    assert (it.severity, it.check) == ("warning", "code")
    assert it.what == "Pallet Sent version 1 has other fields from depot than from another."
    assert it.commands == ("broker events 'Pallet Sent'",)
    assert not list(check_code(Snapshot(settings=Settings(_env_file=None), services=services[::2])))


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The events of a test are not declared for those after it."""
    yield
    gc.collect()


@pytest.mark.usefixtures("forgotten")
def test_two_events_with_one_key_or_one_name_are_refused() -> None:
    same_key = type("Other", (Event,), {}, name="Pallet Found", key="pallet.sent")
    same_name = type("Another", (Event,), {}, name="Pallet Sent", key="pallet.gone")
    with pytest.raises(ContractError, match=r"Two events have the key 'pallet\.sent'"):
        check_collisions([PalletSent, same_key])
    with pytest.raises(ContractError, match="Two events are named 'Pallet Sent'"):
        check_collisions([PalletSent, same_name])
