"""The AsyncAPI document of services and events: what stands in it, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pydantic import BaseModel, Field

from broker import ContractError, Envelope, Event, Service, Settings
from broker.tools.asyncapi import (
    ENVELOPE,
    About,
    Format,
    describe,
    documentation,
    envelope_schema,
    form_of,
    markdown,
    seventh,
    written,
)
from broker.tools.catalogue import read_catalogue
from broker.tools.discover import find_services


class Flour(BaseModel):
    """What bread is made of."""

    kind: str


class BreadBaked(Event, name="Bread Baked", key="bread.baked", subject="bread"):
    """A bread has
    come out of the oven.

    It is *hot*.
    """

    bread: int
    flour: Flour = Field(description="Its flour.")


class BreadSold(Event, name="Bread Sold", key="bread.sold", subject="bread"):
    bread: int = Field(alias="breadNumber")
    flour: Flour


class OvenLit(Event, name="Oven Lit", key="oven.lit", version=1):
    """The oven is on."""

    degrees: int


class OvenLitTwo(Event, name="Oven Lit", key="oven.lit", version=2):
    """The oven is on."""

    kelvin: int


class DoughRisen(Event, name="<b>Dough</b> | *Risen* `$x` https://x", key="dough.risen"):
    grams: int


def bakery() -> tuple[Service, Service]:
    """Who bakes, and who sells what was baked."""
    oven, shop = Service("oven", publishes=[BreadBaked, OvenLit]), Service("bread-shop")

    @shop.on(BreadBaked)
    async def sell(bread: BreadBaked) -> BreadSold:
        """Sell it.

        At once.
        """
        raise NotImplementedError("what it returns is read; it is never called")

    return oven, shop


def document(
    *services: Service, about: About | None = None, settings: Settings | None = None, extra: Iterable[type[Event]] = ()
) -> dict[str, Any]:
    """The document of services and the events that they use (of all that the tests have imported)."""
    entries = [it for it in read_catalogue(services) if it.publishers or it.subscribers or it.event in extra]
    return describe(services, entries, settings or Settings(url="amqp://localhost/"), about)


def find(document: dict[str, Any], reference: dict[str, str]) -> Any:
    """What a reference refers to, as JSON pointers are read."""
    found = document
    for part in reference["$ref"].removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def references(part: Any) -> Iterable[dict[str, str]]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def schema_of(document: dict[str, Any], message: str) -> dict[str, Any]:
    """The payload's, complete in itself."""
    return {**document["components"]["messages"][message]["payload"], "components": document["components"]}


# -- channels and operations -----------------------------------------------------------------------------------------


def test_a_channel_for_each_routing_key() -> None:
    made = document(*bakery())
    channel = made["channels"]["bread.baked"]
    assert (channel["address"], channel["title"]) == ("bread.baked", "Bread Baked")
    amqp = find(made, channel["bindings"])["amqp"]
    assert amqp["is"] == "routingKey"
    assert amqp["exchange"] == {"name": "events", "type": "topic", "durable": True, "autoDelete": False}


def test_a_channel_for_each_queue() -> None:
    made = document(*bakery())
    assert [key for key in made["channels"] if key.startswith("Queue.")] == ["Queue.bread-shop"]
    channel = made["channels"]["Queue.bread-shop"]
    assert channel["address"] == "bread-shop"
    assert list(channel["messages"]) == ["bread.baked.v1"]
    amqp = channel["bindings"]["amqp"]
    assert amqp["queue"] == {"name": "bread-shop", "durable": True, "exclusive": False, "autoDelete": False}
    assert amqp["x-arguments"]["x-queue-type"] == "quorum"
    assert amqp["x-bindings"] == ["bread.baked"]


def test_an_operation_for_each_service_and_event() -> None:
    made = document(*bakery())
    assert {key: it["action"] for key, it in made["operations"].items()} == {
        "oven.sends.bread.baked": "send",
        "oven.sends.oven.lit": "send",
        "bread-shop.sends.bread.sold": "send",
        "bread-shop.receives.bread.baked": "receive",
    }
    receives = made["operations"]["bread-shop.receives.bread.baked"]
    assert receives["summary"] == "Sell it."
    assert "`sell`" in receives["description"]
    assert find(made, receives["messages"][0]) == {"$ref": "#/components/messages/bread.baked.v1"}
    assert find(made, receives["bindings"])["amqp"]["ack"] is True
    sends = made["operations"]["bread-shop.sends.bread.sold"]
    assert sends["description"] == "Published by `bread-shop`, caused by Bread Baked."
    assert find(made, sends["bindings"])["amqp"] == {
        "deliveryMode": 2,
        "mandatory": True,
        "timestamp": True,
        "bindingVersion": "0.3.0",
    }


def test_without_the_event_log_publishes_are_not_mandatory() -> None:
    settings = Settings(url="amqp://localhost/", log=False, exchange="other")
    made = document(*bakery(), settings=settings)
    assert made["components"]["operationBindings"]["send"]["amqp"]["mandatory"] is False
    assert made["components"]["channelBindings"]["event"]["amqp"]["exchange"]["name"] == "other"


def test_a_pattern_receives_every_event_that_it_matches() -> None:
    oven, shop = bakery()
    museum = Service("museum")

    @museum.on("bread.*")
    async def keep(envelope: Envelope) -> None: ...

    made = document(oven, shop, museum)
    received = [key for key in made["operations"] if key.startswith("museum.")]
    assert received == ["museum.receives.bread.baked", "museum.receives.bread.sold"]
    assert "`bread.*`" in made["operations"][received[0]]["description"]
    assert list(made["channels"]["Queue.museum"]["messages"]) == ["bread.baked.v1", "bread.sold.v1"]


def test_a_pattern_that_matches_nothing_declared_receives_from_its_queue() -> None:
    oven, _ = bakery()
    museum = Service("museum")

    @museum.on("painting.#")
    async def hang(envelope: Envelope) -> None: ...

    made = document(oven, museum)
    receives = made["operations"]["museum.receives"]
    assert receives["channel"] == {"$ref": "#/channels/Queue.museum"}
    assert "`painting.#`" in receives["description"]
    assert made["channels"]["Queue.museum"]["bindings"]["amqp"]["x-bindings"] == ["painting.#"]


def test_a_service_that_hears_only_of_others_events_is_described_by_its_queue() -> None:
    auditor = Service("auditor")

    @auditor.on("painting.#")
    async def listen(envelope: Envelope) -> None: ...

    made = document(auditor)
    assert list(made["channels"]) == ["Queue.auditor"]
    assert list(made["operations"]) == ["auditor.receives"]
    assert "|" not in made["info"]["description"]


def test_a_service_that_only_publishes_has_no_queue() -> None:
    made = document(bakery()[0])
    assert list(made["channels"]) == ["bread.baked", "oven.lit"]
    assert set(made["components"]["operationBindings"]) == {"send"}


def test_an_event_that_nobody_uses_is_there() -> None:
    made = document(bakery()[0], extra=[DoughRisen])
    assert "dough.risen" in made["channels"]
    assert not [key for key in made["operations"] if "dough" in key]


# -- messages --------------------------------------------------------------------------------------------------------


def test_a_message_is_a_cloudevent() -> None:
    made = document(*bakery())
    message = made["components"]["messages"]["bread.baked.v1"]
    assert message["name"] == message["title"] == "Bread Baked"
    assert message["summary"] == "A bread has come out of the oven."
    assert message["description"] == "It is *hot*."
    assert message["contentType"] == "application/cloudevents+json; charset=utf-8"
    assert find(made, message["correlationId"])["location"] == "$message.payload#/correlationid"
    assert message["bindings"]["amqp"]["messageType"] == "Bread Baked"
    envelope, own = message["payload"]["allOf"]
    assert find(made, envelope) == envelope_schema()
    assert own["properties"]["type"] == {"const": "Bread Baked"}
    assert own["properties"]["dataschema"] == {"const": "urn:event:bread.baked:1"}
    assert own["properties"]["data"] == {"$ref": "#/components/schemas/BreadBaked"}
    assert own["required"] == ["data"]


def test_an_event_without_a_docstring_has_no_summary() -> None:
    message = document(*bakery())["components"]["messages"]["bread.sold.v1"]
    assert not {"summary", "description"} & message.keys()


def test_the_examples_are_events_on_the_wire_and_tell_one_story() -> None:
    messages = document(*bakery())["components"]["messages"]
    baked = messages["bread.baked.v1"]["examples"][0]["payload"]
    sold = messages["bread.sold.v1"]["examples"][0]["payload"]
    assert baked["data"] == {"bread": 1, "flour": {"kind": "Kind"}}
    assert sold["data"] == {"breadNumber": 1, "flour": {"kind": "Kind"}}
    assert (baked["source"], sold["source"]) == ("oven", "bread-shop")
    assert (baked["subject"], baked["type"], baked["specversion"]) == ("1", "Bread Baked", "1.0")
    assert baked["correlationid"] == baked["id"] == sold["causationid"] == sold["correlationid"]


def test_the_examples_of_the_shop_validate() -> None:
    services = find_services(["services"])
    entries = [entry for entry in read_catalogue(services) if entry.event.__module__ == "services.contracts"]
    made = describe(services, entries, Settings())
    assert len(made["components"]["messages"]) == 6
    for key, message in made["components"]["messages"].items():
        (example,) = message["examples"]
        validator = Draft7Validator(schema_of(made, key), format_checker=Draft7Validator.FORMAT_CHECKER)
        validator.check_schema(validator.schema)
        assert list(validator.iter_errors(example["payload"])) == []
        event = next(entry.event for entry in entries if entry.event.__contract__.name == message["name"])
        assert event.model_validate(example["payload"]["data"])
        broken = example["payload"] | {"type": "Something Else"}
        assert list(validator.iter_errors(broken)) != []


def test_versions_stand_side_by_side() -> None:
    old, new = Service("oven", publishes=[OvenLit]), Service("new-oven", publishes=[OvenLitTwo])
    reader = Service("reader")

    @reader.on(OvenLit)
    async def read(event: OvenLit) -> None: ...

    made = document(old, new, reader)
    assert list(made["channels"]["oven.lit"]["messages"]) == ["oven.lit.v1", "oven.lit.v2"]
    titles = [message["title"] for message in made["components"]["messages"].values()]
    assert titles == ["Oven Lit, version 1", "Oven Lit, version 2"]
    assert len(made["operations"]["new-oven.sends.oven.lit"]["messages"]) == 1
    assert "Version 2 is read as version 1." in made["operations"]["reader.receives.oven.lit"]["description"]


def test_the_publisher_defines_the_event_and_a_narrower_reader_is_noted() -> None:
    class Narrow(Event, name="Bread Baked", key="bread.baked"):
        bread: int

    reader = Service("a-reader")  # by name it comes before the publisher

    @reader.on(Narrow)
    async def read(event: Narrow) -> None: ...

    both = document(reader, bakery()[0])
    assert both["components"]["messages"]["bread.baked.v1"]["summary"] == "A bread has come out of the oven."
    assert "it reads `bread`" in both["operations"]["a-reader.receives.bread.baked"]["description"]
    assert "Narrow" not in both["components"]["schemas"]
    alone = document(reader)
    assert set(alone["components"]["schemas"]) == {ENVELOPE, "Narrow"}
    assert alone["components"]["messages"]["bread.baked.v1"]["examples"][0]["payload"]["data"] == {"bread": 1}


def test_publishers_that_disagree_have_a_message_each() -> None:
    class Theirs(Event, name="Bread Baked", key="bread.baked"):
        loaf: str

    made = document(bakery()[0], Service("rival", publishes=[Theirs]))
    assert list(made["channels"]["bread.baked"]["messages"]) == ["bread.baked.v1", "bread.baked.v1-rival"]
    assert made["components"]["messages"]["bread.baked.v1-rival"]["title"] == "Bread Baked, as rival publishes it"
    (sent,) = made["operations"]["rival.sends.bread.baked"]["messages"]
    assert sent["$ref"].endswith("bread.baked.v1-rival")


# -- schemas ---------------------------------------------------------------------------------------------------------


def test_what_several_events_hold_is_described_once() -> None:
    schemas = document(*bakery())["components"]["schemas"]
    assert set(schemas) == {ENVELOPE, "BreadBaked", "BreadSold", "Flour", "OvenLit"}
    assert schemas["BreadSold"]["properties"]["flour"] == {"$ref": "#/components/schemas/Flour"}
    assert schemas["BreadBaked"]["properties"]["flour"] == {
        "allOf": [{"$ref": "#/components/schemas/Flour"}],
        "description": "Its flour.",
    }
    assert list(schemas["BreadSold"]["properties"]) == ["breadNumber", "flour"]


def test_models_of_one_name_are_told_apart() -> None:
    class Elsewhere:
        class Flour(BaseModel):
            grams: int

    class FlourBought(Event, name="Flour Bought", key="flour.bought"):
        flour: Elsewhere.Flour

    services = (bakery()[0], Service("buyer", publishes=[FlourBought]))
    made = document(*services)
    names = [name for name in made["components"]["schemas"] if "Flour" in name and name != "FlourBought"]
    assert len(names) == 2
    bought = find(made, made["components"]["schemas"]["FlourBought"]["properties"]["flour"])
    assert list(bought["properties"]) == ["grams"]
    assert made == document(*services)


REF = {"$ref": "#/x"}
NULL = {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, True),
        ({"prefixItems": [REF], "items": NULL}, {"items": [REF], "additionalItems": NULL}),
        (REF | {"default": 1}, {"allOf": [REF], "default": 1}),
        ({"properties": {"default": REF | NULL}}, {"properties": {"default": {"allOf": [REF]} | NULL}}),
        ({"properties": {"$ref": NULL}}, {"properties": {}, "patternProperties": {r"^\$ref$": NULL}}),
        ({"oneOf": [True], "discriminator": {"propertyName": "x"}}, {"oneOf": [True]}),
        ({"default": {"a": [REF]}}, {}),
        ({"examples": [float("nan")]}, {"examples": [None]}),
    ],
    ids=str,
)
def test_schemas_are_those_of_draft_07(schema: Any, expected: Any) -> None:
    assert seventh(schema) == expected


# -- hostile names ---------------------------------------------------------------------------------------------------


def test_names_are_told_as_they_are_and_escaped_where_markdown_is_read() -> None:
    made = document(Service("oven", publishes=[DoughRisen]))
    name = DoughRisen.__contract__.name
    assert made["components"]["messages"]["dough.risen.v1"]["name"] == name
    (row,) = [line for line in made["info"]["description"].splitlines() if "dough.risen" in line]
    assert row == r"| \<b\>Dough\</b\> \| \*Risen\* \`\$x\` https\://x | `dough.risen` | oven | nobody |"


@given(st.text())
def test_markdown_shows_text_as_it_is(text: str) -> None:
    escaped = markdown(text)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>|*_`\[\]&]", escaped)


def test_keys_are_those_that_asyncapi_allows_and_references_lead_somewhere() -> None:
    class Über(BaseModel):  # noqa: PLC2401  (people may)
        x: int

    class Named(Event, name="~/$ref #", key="named"):
        x: Über = Field(alias="a/b~1")

    made = document(*bakery(), Service("named", publishes=[Named]))
    keys = [key for kind in made["components"].values() for key in kind] + [*made["channels"], *made["operations"]]
    assert [key for key in keys if not re.fullmatch(r"[a-zA-Z0-9.\-_]+", key)] == []
    assert all(find(made, reference) is not None for reference in references(made))
    assert made["components"]["messages"]["named.v1"]["examples"][0]["payload"]["data"] == {"a/b~1": {"x": 1}}


# -- what it says of itself ------------------------------------------------------------------------------------------


def test_a_document_of_one_service() -> None:
    made = document(*bakery(), about=About(("bread-shop",), version="3.1"))
    assert (made["info"]["title"], made["info"]["version"]) == ("bread-shop", "3.1")
    assert list(made["channels"]) == ["bread.baked", "bread.sold", "Queue.bread-shop"]
    assert list(made["operations"]) == ["bread-shop.sends.bread.sold", "bread-shop.receives.bread.baked"]
    assert made["components"]["messages"]["bread.baked.v1"]["examples"][0]["payload"]["source"] == "oven"


def test_a_title_of_ones_own() -> None:
    assert document(*bakery())["info"]["title"] == "Business events"
    assert document(*bakery(), about=About(title="A: b"))["info"]["title"] == "A: b"


def test_servers_of_a_cluster_without_the_login() -> None:
    settings = Settings(url="amqps://me:secret@one,[::1]:5673/my%2Fshop")
    made = document(*bakery(), about=About(server=True), settings=settings)
    assert "secret" not in json.dumps(made)
    assert [(key, it["protocol"], it["host"], it["pathname"]) for key, it in made["servers"].items()] == [
        ("rabbitmq-1", "amqps", "one", "/my%2Fshop"),
        ("rabbitmq-2", "amqps", "[::1]:5673", "/my%2Fshop"),
    ]
    assert made["channels"]["Queue.bread-shop"]["bindings"]["amqp"]["queue"]["vhost"] == "my/shop"


def test_what_cannot_be_described_is_said() -> None:
    oven, shop = bakery()
    with pytest.raises(ContractError, match=r"no service 'ovn'. Did you mean 'oven'"):
        document(oven, shop, about=About(("ovn",)))
    with pytest.raises(ContractError, match="There are bread-shop, oven"):
        document(shop, oven, about=About(("zzz",)))
    with pytest.raises(ContractError, match="idle uses no events"):
        document(oven, Service("idle"), about=About(("idle",)))
    with pytest.raises(ContractError, match=r"No events are declared there.*--from"):
        describe([], [], Settings())


@pytest.mark.parametrize(
    ("wanted", "file", "form"),
    [
        (None, None, "yaml"),
        ("json", None, "json"),
        (None, "a.json", "json"),
        (None, "a.JSON", "json"),
        (None, "a.txt", "yaml"),
        ("yaml", "a.json", "yaml"),
    ],
)
def test_the_format_is_the_one_wanted(wanted: str | None, file: str | None, form: str) -> None:
    assert form_of(wanted, None if file is None else Path(file)) == form


def test_another_format_is_refused() -> None:
    with pytest.raises(ContractError, match="--format xml: write yaml or json"):
        form_of("xml", None)


def test_both_formats_say_the_same() -> None:
    made = document(*bakery(), extra=[DoughRisen])
    as_written: dict[Format, bytes] = {form: written(made, form) for form in get_args(Format)}
    assert yaml.safe_load(as_written["yaml"]) == json.loads(as_written["json"]) == made


@pytest.mark.parametrize(
    ("doc", "told"),
    [(None, ("", "")), ("  One\n  two.\n\n  Three.\n    four\n", ("One two.", "Three.\n  four"))],
)
def test_a_docstring_is_a_summary_and_the_rest(doc: str | None, told: tuple[str, str]) -> None:
    assert documentation(doc) == told
