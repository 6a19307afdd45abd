"""Who publishes what, who subscribes to it, and why: from the code alone.

A subscriber may declare a narrower class of a foreign event. So who defines an event is who publishes it: its fields
are those of the first publisher, by the services' names; of an event that nobody here publishes, of the first
subscriber. Publishers that disagree are named by `broker doctor`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema

from broker.errors import ContractError, UnknownEvent, near_miss
from broker.events import Event, declared, fields_of
from broker.handlers import Handler
from broker.service import Service
from broker.topology import matches


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A service that gets an event, by which handler, and through which binding."""

    service: str
    handler: str
    binding: str
    exact: bool

    @property
    def why(self) -> str:
        """The binding, in words."""
        return "exactly this event" if self.exact else f"matches '{self.binding}'"


@dataclass(slots=True)
class Entry:
    """One version of one event, over all services.

    Attributes:
        event: the class of who defines it.
    """

    event: type[Event]
    publishers: list[str] = field(default_factory=list)
    subscribers: list[Subscribed] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What the event means, as its docstring says."""
        return (inspect.getdoc(self.event) or "").partition("\n")[0]

    def as_json(self) -> dict[str, Any]:
        """The entry for programs."""
        contract = self.event.__contract__
        return {
            "name": contract.name,
            "key": contract.key,
            "version": contract.version,
            "subject": contract.subject,
            "description": inspect.getdoc(self.event),
            "publishers": self.publishers,
            "subscribers": [
                {"service": it.service, "handler": it.handler, "binding": it.binding} for it in self.subscribers
            ],
            "schema": self.event.model_json_schema(),
        }


def read_catalogue(services: Iterable[Service]) -> list[Entry]:
    """Every event that is imported or used, with who publishes and who gets it, by name and version.

    Raises:
        ContractError: a service contradicts itself, or two events share a key or a name.
    """
    services = list(services)
    entries: dict[tuple[str, int], Entry] = {}
    for service in services:
        service.check()
    by_name = sorted(services, key=lambda service: service.name)
    published = [event for service in by_name for event in service.publishes]
    subscribed_to = [event for service in by_name for event in service.handlers.events]
    for event in (*published, *subscribed_to, *declared()):
        entries.setdefault((event.__contract__.name, event.__contract__.version), Entry(event))
    check_collisions(entry.event for entry in entries.values())
    for service in services:
        for which in dict.fromkeys((e.__contract__.name, e.__contract__.version) for e in service.publishes):
            entries[which].publishers.append(service.name)
        for entry, subscribed in _subscribed(service, entries.values()):
            entry.subscribers.append(subscribed)
    return [entries[which] for which in sorted(entries)]


def check_collisions(events: Iterable[type[Event]]) -> None:
    """Refuse two names with one key, or two keys with one name, over all services.

    Raises:
        ContractError: naming both.
    """
    names: dict[str, str] = {}
    keys: dict[str, str] = {}
    for event in events:
        contract = event.__contract__
        name, key = names.setdefault(contract.key, contract.name), keys.setdefault(contract.name, contract.key)
        if name != contract.name:
            raise ContractError(f"Two events have the key {contract.key!r}: {name!r} and {contract.name!r}.")
        if key != contract.key:
            raise ContractError(f"Two events are named {contract.name!r}: with the keys {key!r} and {contract.key!r}.")


def differ(one: type[Event], other: type[Event]) -> bool:
    """Whether two classes of one event have different fields, as far as that can be told."""
    try:
        return one is not other and fields_of(one) != fields_of(other)
    except PydanticInvalidForJsonSchema:
        return True


def _subscribed(service: Service, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Subscribed]]:
    """What a service gets, and how: one delivery, one handler, an exact one before a pattern."""
    exact: dict[tuple[str, int | None], Handler] = {}
    for handler in service.subscribes:
        for event in handler.events:
            contract = event.__contract__
            exact.setdefault((contract.name, contract.version), handler)
            exact.setdefault((contract.name, None), handler)
    patterns = [(handler, handler.pattern) for handler in service.subscribes if handler.pattern is not None]
    for entry in entries:
        contract = entry.event.__contract__
        found = exact.get((contract.name, contract.version)) or exact.get((contract.name, None))
        if found is not None:
            yield entry, Subscribed(service.name, found.name, contract.key, exact=True)
            continue
        for handler, pattern in patterns:
            if matches(pattern, contract.key):
                yield entry, Subscribed(service.name, handler.name, pattern, exact=pattern == contract.key)


def find_event(entries: Iterable[Entry], wanted: str, version: int | None = None) -> Entry:
    """The entry of an event by name, key or class, in any case; the newest version unless said.

    Raises:
        UnknownEvent: there is none; the message names what was probably meant.
    """
    entries = list(entries)

    def names(entry: Entry) -> tuple[str, ...]:
        contract = entry.event.__contract__
        return contract.name, contract.key, entry.event.__name__

    found = [entry for entry in entries if wanted.casefold() in (name.casefold() for name in names(entry))]
    if not found:
        known = [name for entry in entries for name in names(entry)]
        titled = {name.casefold(): name for name in reversed(known)}
        hint = near_miss(wanted, known) or near_miss(wanted.casefold(), titled)
        raise UnknownEvent(f"No event is named {wanted!r}.{hint} `broker events` lists them all.")
    if version is None:
        return max(found, key=lambda entry: entry.event.__contract__.version)
    for entry in found:
        if entry.event.__contract__.version == version:
            return entry
    versions = ", ".join(str(entry.event.__contract__.version) for entry in found)
    raise UnknownEvent(f"{found[0].event.__contract__.name!r} has no version {version}; it has {versions}.")
