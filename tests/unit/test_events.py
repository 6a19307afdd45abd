"""Events: their contracts, what constructing refuses and reading ignores, equality, ids, the catalogue."""

from __future__ import annotations

import copy
import pickle
import time
import types
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from broker import ContractError, Event, UnknownEvent
from broker.events import Catalogue, Contract, declared, id_of, subject_of, text_of, uuid7
from tests.parcels import ParcelSent, ParcelWeighed, Size, VanBroke, weighed


def define(cls: str, fields: dict[str, Any] | None = None, /, **contract: Any) -> type[Event]:
    """An event class, made now."""
    annotations = {field: type(value) for field, value in (fields or {}).items()}
    body = {"__annotations__": annotations, "__module__": __name__} | (fields or {})
    made: type[Event] = types.new_class(cls, (Event,), contract, lambda namespace: namespace.update(body))
    return made


# -- contracts -----------------------------------------------------------------------------------------------------


def test_the_class_line_is_the_contract() -> None:
    assert ParcelWeighed.__contract__ == Contract("Parcel Weighed", "parcel.weighed", 1, "parcel_id")
    assert ParcelWeighed.__contract__.schema == "urn:event:parcel.weighed:1"


@pytest.mark.parametrize(
    ("cls", "name", "key"),
    [
        ("OrderPacked", "Order Packed", "order.packed"),
        ("Moved", "Moved", "moved"),
        ("VATChanged", "VAT Changed", "vat.changed"),
        ("OrderPlaced2", "Order Placed 2", "order.placed.2"),
        ("CustomerSetPIN", "Customer Set PIN", "customer.set.pin"),
    ],
)
def test_without_arguments_it_is_derived_from_the_classs_name(cls: str, name: str, key: str) -> None:
    assert define(cls).__contract__ == Contract(name, key, 1, None)


def test_fields_may_be_called_as_the_contracts_parts() -> None:
    class Renamed(Event, name="Thing Renamed", key="thing.renamed", subject="name"):
        name: str
        key: str
        version: int
        subject: str

    event = Renamed(name="n", key="k", version=7, subject="s")
    assert (event.name, event.key, event.version, event.subject) == ("n", "k", 7, "s")
    assert Renamed.__contract__ == Contract("Thing Renamed", "thing.renamed", 1, "name")


@pytest.mark.parametrize(
    ("contract", "says"),
    [
        ({"name": ""}, "printable"),
        ({"name": "  "}, "printable"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "ä" * 101}, "printable"),
        ({"key": ""}, "of the form"),
        ({"key": "Order.Placed"}, "of the form"),
        ({"key": "order placed"}, "of the form"),
        ({"key": "order..placed"}, "of the form"),
        ({"key": ".order"}, "of the form"),
        ({"key": "order.*"}, "of the form"),
        ({"key": "#"}, "of the form"),
        ({"key": "order\n"}, "of the form"),
        ({"key": "o" * 201}, "of the form"),
        ({"version": 0}, "whole number"),
        ({"version": True}, "whole number"),
        ({"version": "1"}, "whole number"),
        ({"subject": "gram"}, "Did you mean 'grams'"),
    ],
)
def test_a_contract_that_cannot_be_is_refused(contract: dict[str, Any], says: str) -> None:
    with pytest.raises(ContractError, match=says) as caught:
        define("Weighed", {"grams": 1}, **contract)
    assert f"{__name__}.Weighed" in str(caught.value)


def test_a_refused_class_is_not_declared_however_long_it_lingers() -> None:
    with pytest.raises(ContractError) as caught:  # its traceback holds the class
        define("Refused", key="Not A Key")
    assert "Refused" in {event.__name__ for event in Event.__subclasses__()}
    assert "Refused" not in {event.__name__ for event in declared()}
    del caught


def test_a_class_name_that_gives_no_key_is_refused() -> None:
    with pytest.raises(ContractError, match="printable"):
        define("__")


def test_pydantics_own_settings_may_stand_in_the_class_line() -> None:
    class Stripped(Event, name="Stripped", key="stripped", str_strip_whitespace=True):
        text: str

    assert Stripped(text=" a ").text == "a"


# -- fields --------------------------------------------------------------------------------------------------------


def test_constructing_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="gram"):
        ParcelWeighed(parcel_id=uuid4(), gram=1)


def test_constructing_refuses_unknown_fields_in_what_is_nested() -> None:
    with pytest.raises(ValidationError, match="depth"):
        ParcelWeighed(parcel_id=uuid4(), size={"width": 1, "height": 2, "depth": 3})


def test_a_missing_or_wrong_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="parcel_id"):
        ParcelWeighed()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="grams"):
        ParcelWeighed(parcel_id=uuid4(), grams="many")


def test_reading_ignores_unknown_fields() -> None:
    fields = {"parcel_id": str(uuid4()), "gram": 1, "size": {"width": 1, "height": 2, "depth": 3}}
    assert ParcelWeighed.model_validate(fields).size == Size(width=1, height=2)


def test_an_event_cannot_be_changed() -> None:
    event = weighed()
    with pytest.raises(ValidationError, match="frozen"):
        event.grams = 2  # type: ignore[misc]


def test_defaults_and_aliases_work_as_in_pydantic() -> None:
    class Tagged(Event, name="Tagged", key="tagged"):
        tags: list[str] = Field(default_factory=list)
        from_: str = Field(alias="from")

    assert Tagged(**{"from": "a"}).tags == []
    assert Tagged(**{"from": "a"}).from_ == "a"


# -- equality and identity -----------------------------------------------------------------------------------------


def test_events_are_equal_by_their_fields_alone() -> None:
    parcel = uuid4()
    one, other = ParcelSent(parcel_id=parcel), ParcelSent(parcel_id=parcel)
    assert id_of(one) != id_of(other)
    assert one == other
    assert hash(one) == hash(other)
    assert one != ParcelSent(parcel_id=uuid4())
    assert one != ParcelWeighed(parcel_id=parcel)
    assert one != parcel


def test_an_event_object_keeps_its_id() -> None:
    event = weighed()
    assert id_of(event) == id_of(event)
    assert id_of(weighed()) != id_of(weighed())


def test_a_copy_is_the_same_event_until_a_field_changes() -> None:
    event = weighed()
    event_id = id_of(event)
    assert id_of(event.model_copy()) == event_id
    assert id_of(copy.deepcopy(event)) == event_id
    assert id_of(pickle.loads(pickle.dumps(event))) == event_id
    assert id_of(event.model_copy(update={"grams": 7})) != event_id


def test_the_subject_is_the_entity() -> None:
    event = weighed()
    assert subject_of(event) == event.parcel_id
    assert subject_of(VanBroke(van="7")) is None


# -- ids -----------------------------------------------------------------------------------------------------------


def milliseconds(event_id: UUID) -> int:
    return event_id.int >> 80


def test_ids_say_when_and_are_version_7() -> None:
    before = time.time_ns() // 1_000_000
    ids = [uuid7() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert all(before <= milliseconds(it) <= after for it in ids)
    assert {(it.version, it.variant) for it in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == len(ids)


@given(st.integers(0, 2**128 - 1).map(lambda it: UUID(int=it)))
def test_an_id_is_written_as_everybody_writes_it(event_id: UUID) -> None:
    assert text_of(event_id) == str(event_id)


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=2, unique=True).map(sorted))
def test_ids_order_by_time(moments: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ids = []
        for moment in moments:
            patch.setattr("broker.events.time.time_ns", lambda moment=moment: moment * 1_000_000)
            ids.append(uuid7())
    assert ids == sorted(ids)
    assert [str(it) for it in ids] == sorted(map(str, ids))
    assert list(map(milliseconds, ids)) == moments


# -- the catalogue -------------------------------------------------------------------------------------------------


def test_events_are_found_by_name_version_and_key() -> None:
    catalogue = Catalogue([ParcelWeighed, ParcelSent])
    assert catalogue.named("Parcel Sent") == {1: ParcelSent}
    assert catalogue.of_key("parcel.sent") == "Parcel Sent"
    assert catalogue.of_key("van.broke") is None
    assert list(catalogue) == [ParcelWeighed, ParcelSent]
    assert ParcelSent in catalogue
    assert VanBroke not in catalogue
    with pytest.raises(UnknownEvent, match="Did you mean 'Parcel Sent'"):
        catalogue.named("Parcel Snet")


def versions(*numbers: int) -> Catalogue:
    return Catalogue(
        define(f"V{number}", {f"field{number}": 1}, name="Versioned", key="versioned", version=number)
        for number in numbers
    )


@pytest.mark.parametrize(
    ("known", "asked", "read_as"),
    [
        ((1,), 1, 1),
        ((1,), 2, 1),
        ((1,), None, 1),
        ((1, 2), 1, 1),
        ((1, 2), 2, 2),
        ((1, 2), 9, 2),
        ((1, 2), None, 2),
        ((2, 4), 3, 2),
        ((2, 4), 1, 2),
    ],
)
def test_which_version_reads(known: tuple[int, ...], asked: int | None, read_as: int) -> None:
    reader = versions(*known).reader("Versioned", asked)
    assert reader is not None
    assert reader.__contract__.version == read_as


def test_nobody_reads_what_is_not_there() -> None:
    assert versions(1).reader("Else", 1) is None


def test_one_event_twice_is_one() -> None:
    again = define("ParcelSentElsewhere", {"parcel_id": uuid4()}, name="One", key="one")
    same = define("Same", {"parcel_id": uuid4()}, name="One", key="one")
    assert len(list(Catalogue([ParcelSent, ParcelSent]))) == 1
    assert list(Catalogue([again, again])) == [again]
    with pytest.raises(ContractError):  # the defaults differ
        Catalogue([again, same])


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({"name": "A", "key": "x"}, {"name": "B", "key": "x"}, "Two events have the key 'x': 'A' and 'B'"),
        ({"name": "A", "key": "x"}, {"name": "A", "key": "y"}, "Two events are named 'A'"),
        ({"name": "A", "key": "x"}, {"name": "A", "key": "x"}, "different fields"),
        ({"name": "A", "key": "x"}, {"name": "A", "key": "y", "version": 2}, "share its key"),
    ],
)
def test_collisions_are_refused(one: dict[str, Any], other: dict[str, Any], says: str) -> None:
    events = [define("One", {"a": 1}, **one), define("Other", {"b": "b"}, **other)]
    with pytest.raises(ContractError, match=says):
        Catalogue(events)
    with pytest.raises(ContractError):
        Catalogue(reversed(events))


def test_two_versions_stand_side_by_side() -> None:
    assert len(list(versions(1, 2))) == 2


def test_definitions_alone_collide_with_nobody() -> None:
    one, other = (define("Doubled", {field: 1}, name="Doubled", key="doubled") for field in ("a", "b"))
    assert {one, other} <= set(declared())


def test_documentation_and_order_do_not_make_another_event() -> None:
    class Noted(Event, name="Noted", key="noted"):
        """One text."""

        title: str = Field(description="as printed", title="Title")
        pages: int

    def again() -> type[Event]:
        class Noted(Event, name="Noted", key="noted"):
            """Another text."""

            pages: int
            title: str

        return Noted

    def other() -> type[Event]:
        class Noted(Event, name="Noted", key="noted"):
            pages: int
            description: str

        return Noted

    assert list(Catalogue([Noted, again()])) == [Noted]
    with pytest.raises(ContractError, match="different fields"):
        Catalogue([Noted, other()])


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_what_json_cannot_carry_is_refused_when_constructing(number: str) -> None:
    class TankFilled(Event, name="Tank Filled", key="tank.filled"):
        litres: float

    with pytest.raises(ValidationError):
        TankFilled(litres=float(number))
