"""Business events: facts, in the past tense, as classes.

An event class is a frozen pydantic model; its contract (business event name, routing key, version, subject) stands in
the class line::

    class OrderPacked(Event, name="Order Packed", key="order.packed", version=1, subject="order_id"):
        order_id: UUID

Rules:

- Constructing refuses unknown fields, nested ones included; reading ignores them, so that publishers may add some.
- Two events are equal by their fields alone. An event object has one id: publishing it again is the same event.
- Collisions of names and keys are looked for where they matter: among the events one service uses (`Catalogue`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Self, Unpack
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from broker.errors import ContractError, UnknownEvent, near_miss

KEY = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
ID = "_business_event_id"
LONGEST = 200  # bytes; AMQP's short strings end at 255


@dataclass(frozen=True, slots=True)
class Contract:
    """What the class line of an event says.

    Attributes:
        name: the business event name, "New Order Placed". It identifies the event.
        key: the routing key, ``order.placed``. It routes the event.
        version: raised when fields change so that old readers could not read it.
        subject: the field that names the entity the event is about, if any.
    """

    name: str
    key: str
    version: int = 1
    subject: str | None = None

    @property
    def schema(self) -> str:
        """The ``dataschema`` of the event on the wire."""
        return f"urn:event:{self.key}:{self.version}"


class Event(BaseModel):
    """A fact that other services may want to know. Subclass it, and name the fact.

    Without arguments the contract is derived from the class's name: ``OrderPacked`` is "Order Packed",
    ``order.packed``, version 1.

    Raises:
        ContractError: at class creation, when name, key, version or subject cannot be.
        pydantic.ValidationError: at construction, when a field is missing, wrong or unknown.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)  # JSON knows neither infinity nor NaN

    __contract__: ClassVar[Contract]

    def __init__(self, /, **fields: Any) -> None:
        self.__pydantic_validator__.validate_python(fields, self_instance=self, extra="forbid")

    # pydantic calls a custom __init__ when it reads, too; this one is for constructing only
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own marker

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        key: str | None = None,
        version: int = 1,
        subject: str | None = None,
        **config: Unpack[ConfigDict],
    ) -> None:
        super().__init_subclass__(**config)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        name: str | None = None,
        key: str | None = None,
        version: int = 1,
        subject: str | None = None,
        **config: Any,
    ) -> None:
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|[0-9]+", cls.__name__)
        contract = Contract(
            name=" ".join(words) if name is None else name,
            key=".".join(words).lower() if key is None else key,
            version=version,
            subject=subject,
        )
        _check(cls, contract)
        cls.__contract__ = contract

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; with other fields it is another event, and has an id of its own."""
        copy = super().model_copy(update=update, deep=deep)
        if update and copy.__pydantic_private__ is not None:
            copy.__pydantic_private__.pop(ID, None)
        return copy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return type(self) is type(other) and self.__dict__ == other.__dict__


def _check(event: type[Event], contract: Contract) -> None:
    """Refuse a contract that RabbitMQ or the envelope could not carry."""
    where = f"{event.__module__}.{event.__qualname__}"
    if not contract.name.strip() or len(contract.name.encode()) > LONGEST or not contract.name.isprintable():
        raise ContractError(f"{where}: a business event name is 1 to {LONGEST} printable bytes, not {contract.name!r}.")
    if not KEY.fullmatch(contract.key) or len(contract.key) > LONGEST:
        raise ContractError(
            f"{where}: the key {contract.key!r} is not of the form 'order.placed' "
            f"(words of a-z, 0-9, '_' and '-', joined by dots, at most {LONGEST} bytes)."
        )
    if isinstance(contract.version, bool) or not isinstance(contract.version, int) or contract.version < 1:
        raise ContractError(f"{where}: a version is a whole number from 1 on, not {contract.version!r}.")
    if contract.subject is not None and contract.subject not in event.model_fields:
        hint = near_miss(contract.subject, event.model_fields)
        raise ContractError(f"{where}: the subject {contract.subject!r} is not one of its fields.{hint}")


def id_of(event: Event) -> UUID:
    """The one id of an event object, made when first asked for."""
    private = event.__pydantic_private__  # a PrivateAttr would cost each event as much as all its fields
    if private is None:
        private = {}
        object.__setattr__(event, "__pydantic_private__", private)
    found: UUID | None = private.get(ID)
    if found is None:
        found = private[ID] = uuid7()
    return found


def subject_of(event: Event) -> UUID | str | None:
    """The entity an event is about, as the envelope names it; a UUID stays one, which JSON writes faster than `str`."""
    field = event.__contract__.subject
    value = None if field is None else getattr(event, field)
    if value is None or type(value) is UUID:
        return value
    return str(value) or None


def uuid7() -> UUID:
    """A time-ordered id (RFC 9562): 48 bits of Unix milliseconds, then random ones."""
    random = _random.getrandbits(80) & 0x0FFF_3FFF_FFFF_FFFF_FFFF
    return UUID(int=(time.time_ns() // 1_000_000) << 80 | 0x7000_8000_0000_0000_0000 | random)


def text_of(event_id: UUID) -> str:
    """An id as `str` writes it, in half the time."""
    return to_json(event_id)[1:-1].decode()


_random = Random()  # noqa: S311  (ids must differ, not be secret); no system call for each, and nobody else's seed
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def declared() -> Iterator[type[Event]]:
    """Every event class that this process has imported. One that was refused may linger without a contract."""
    pending = [Event]
    while pending:
        for event in pending.pop().__subclasses__():
            pending.append(event)
            if "__contract__" in vars(event):
                yield event


class Catalogue:
    """The events that one service uses, found by name and version, free of collisions.

    Raises:
        ContractError: two events share a name or a key and are not one event, or two versions of one.
    """

    def __init__(self, events: Iterable[type[Event]]) -> None:
        self._by_name: dict[str, dict[int, type[Event]]] = {}
        self._by_key: dict[str, str] = {}
        for event in events:
            contract = event.__contract__
            owner = self._by_key.setdefault(contract.key, contract.name)
            if owner != contract.name:
                raise ContractError(
                    f"Two events have the key {contract.key!r}: {owner!r} and {contract.name!r}. Give one another key."
                )
            versions = self._by_name.setdefault(contract.name, {})
            for other in versions.values():
                if other.__contract__.key != contract.key:
                    raise ContractError(
                        f"Two events are named {contract.name!r}, with the keys {other.__contract__.key!r} and "
                        f"{contract.key!r}. Versions of one event share its key; another event needs another name."
                    )
            known = versions.setdefault(contract.version, event)
            if known is not event and fields_of(known) != fields_of(event):
                raise ContractError(
                    f"{known.__module__}.{known.__qualname__} and {event.__module__}.{event.__qualname__} are both "
                    f"{contract.name!r} version {contract.version}, with different fields. Raise one's version."
                )

    def __iter__(self) -> Iterator[type[Event]]:
        for versions in self._by_name.values():
            yield from versions.values()

    def __contains__(self, event: type[Event]) -> bool:
        contract = event.__contract__
        return contract.version in self._by_name.get(contract.name, ())

    def named(self, name: str) -> Mapping[int, type[Event]]:
        """The versions of the event of that name.

        Raises:
            UnknownEvent: there is none; the message names what was probably meant.
        """
        if name not in self._by_name:
            raise UnknownEvent(f"No event is named {name!r}.{near_miss(name, self._by_name)}")
        return self._by_name[name]

    def reader(self, name: str, version: int | None) -> type[Event] | None:
        """The class to read an event with, or None when the name is not of this catalogue."""
        versions = self._by_name.get(name)
        if versions is None:
            return None
        return (versions.get(version) if version is not None else None) or closest_version(versions, version)

    def of_key(self, key: str) -> str | None:
        """The name of the event that has this routing key, if the catalogue holds one."""
        return self._by_key.get(key)


def closest_version(versions: Mapping[int, type[Event]], wanted: int | None) -> type[Event]:
    """Of an event's versions the one wanted; else the highest below it, which reads it if it can; else the lowest."""
    below = [version for version in versions if wanted is None or version <= wanted]
    return versions[max(below) if below else min(versions)]


def fields_of(event: type[Event]) -> dict[str, Any]:
    """What of a schema decides whether two classes are the same event: all but titles, descriptions and order."""
    schema = event.model_json_schema()
    required = sorted(schema.get("required", []))
    return {part: _bare(schema.get(part), names=True) for part in ("properties", "$defs")} | {"required": required}


def _bare(part: Any, *, names: bool = False) -> Any:
    """A part of a schema without titles and descriptions; as ``names`` of fields or models, these words stay."""
    if isinstance(part, list):
        return [_bare(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        word: _bare(value, names=not names and word in ("properties", "$defs"))
        for word, value in part.items()
        if names or word not in ("title", "description")
    }
