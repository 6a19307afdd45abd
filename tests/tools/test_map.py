"""What the map shows, and what on it does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from broker import Envelope, Service
from broker.cli.map import screen
from broker.tools.management import Activity, Binding, Queue
from broker.tools.map import Live, Map, draw, mermaid
from broker.tools.map_page import page
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed


def shop() -> list[Service]:
    scales, packing, watching = Service("scales", publishes=[ParcelWeighed]), Service("packing"), Service("watching")

    @packing.on(ParcelWeighed)
    def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    @watching.on("parcel.*")
    def watch(event: Envelope) -> None: ...

    return [scales, packing, watching]


def live(
    queues: Iterable[str] = ("packing", "packing.dead", "watching", "watching.dead", "events.log"),
    bindings: Iterable[tuple[str, str]] = (("packing", "parcel.weighed"), ("watching", "parcel.*")),
    consumers: int = 1,
) -> Live:
    made = [Binding(source="events", destination="events.log", destination_type="queue", key="#")]
    made += [Binding(source="events", destination=to, destination_type="queue", key=key) for to, key in bindings]
    names = list(queues)
    activity = {name: Activity(consumers=consumers) for name in names}
    return Live("events", "events.log", [Queue(name=name, ready=2) for name in names], made, activity)


def map_of(services: Sequence[Service] | None, live: Live | None, note: str = "") -> Map:
    """The map where only parcels' events are declared, whatever other tests have imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.tools.catalogue.declared", lambda: [ParcelLost, ParcelSent, ParcelWeighed])
        return draw(services, live, note)


def kinds(it: Map) -> set[tuple[str, str]]:
    return {(each.kind, each.about) for each in it.drift}


def links(it: Map) -> set[tuple[str, str, str]]:
    return {(link.event, link.service, link.where) for link in it.subscribed}


def test_the_code_alone_says_who_publishes_and_who_subscribes() -> None:
    it = map_of(shop(), None)
    assert {("scales", "Parcel Weighed"), ("packing", "Parcel Sent")} == set(it.published)
    assert ("Parcel Weighed", "packing", "code") in links(it)
    assert ("Parcel Sent", "watching", "code") in links(it)
    assert not any(kind in ("no consumer", "missing binding", "not started") for kind, _ in kinds(it))


def test_code_and_rabbitmq_that_agree_do_not_drift() -> None:
    it = map_of(shop(), live())
    assert not {kind for kind, about in kinds(it) if about in ("packing", "watching", "scales")}
    assert ("Parcel Weighed", "packing", "both") in links(it)
    (packing,) = [service for service in it.services if service.name == "packing"]
    assert packing.queue is not None
    assert (packing.queue.ready, packing.queue.dead, packing.queue.consumers) == (2, 2, 1)


def test_whatever_does_not_fit_is_named() -> None:
    queues = ["packing", "packing.dead", "legacy", "legacy.dead", "import-for-crm", "events.log"]
    bindings = [("packing", "parcel.lost"), ("legacy", "legacy.#")]
    it = map_of(shop(), live(queues, bindings, consumers=0))
    assert {
        ("no consumer", "packing"),
        ("stale binding", "packing"),
        ("missing binding", "packing"),
        ("not started", "watching"),
        ("no service", "legacy"),
        ("foreign queue", "import-for-crm"),
    } <= kinds(it)
    assert all(each.text and each.help for each in it.drift)
    assert ("Parcel Lost", "packing", "live") in links(it)
    assert ("legacy.#", "legacy", "live") in links(it)


def test_an_event_that_nobody_hears_and_a_subscription_that_nobody_publishes() -> None:
    crm = Service("crm", publishes=[ParcelSent])

    @crm.on(ParcelLost)
    def note(event: ParcelLost) -> None: ...

    @crm.on("invoice.*")
    def bill(event: Envelope) -> None: ...

    it = map_of([crm], None)
    assert ("unheard", "Parcel Sent") in kinds(it)
    told = [each.text for each in it.drift if each.kind == "unpublished"]
    assert sorted(told) == [
        "It subscribes to 'invoice.*', and no code publishes any such event.",
        "It subscribes to 'parcel.lost', and no code publishes it.",
    ]


def test_rabbitmq_alone_shows_bindings() -> None:
    it = map_of(None, live())
    assert links(it) == {("parcel.weighed", "packing", "live"), ("parcel.*", "watching", "live")}
    assert not it.published
    assert not it.drift
    assert it.note.startswith("RabbitMQ knows queues and bindings.")
    assert "declared by no code" not in page(it)  # it was not looked at


def test_nothing_at_all() -> None:
    assert "Map" in repr(map_of([], Live("events", "events.log")))
    assert "<main" in page(map_of(None, Live("events", "events.log")))


def test_the_retry_queues_and_marks_of_a_service_belong_to_it() -> None:
    queues = ["packing", "packing.dead", "packing.retry.30s", "packing.backfill", "watching", "watching.dead"]
    assert "foreign queue" not in {each.kind for each in map_of(shop(), live(queues)).drift}


def test_what_has_no_name_to_be_seen_has_one_on_the_map() -> None:
    it = map_of(shop(), live(["packing", " "], [("packing", ""), (" ", "parcel.lost")]))
    assert ("(no key)", "packing", "live") in links(it)
    assert '[""]' not in mermaid(it)  # which Mermaid takes for an error
    assert '[" "]' not in mermaid(it)
    assert "<span></span>" not in page(it)
    assert "<span> </span>" not in page(it)


PIECES = r'    (\w+(\["[^"<>`\[\]]+"\]|\(\["[^"<>`\[\]]+"\]\))|e?s?\w+ (-->|-\.->)(\|"[^"<>`|]*"\|)? \w+)'
"""All that a line of a flowchart may be: a node, or an arrow."""
HOSTILE = [
    "<script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    "a\x1b[31mred",
    "\u202eevil",
    'x"]; click e0 href "javascript:alert(1)"',
    "a|b`c`[d](e)",
    "#quot;",
    "end",
]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1)), min_size=1, max_size=5, unique=True))
def test_names_of_others_mean_nothing_of_their_own(names: list[str]) -> None:
    bindings = [(name, key) for name in names for key in names]
    it = map_of(shop(), live(["packing", *names], bindings))
    text = page(it)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    terminal = StringIO()
    Console(file=terminal, width=500).print(screen(it))
    assert not {c for c in terminal.getvalue() if not c.isprintable()} - {"\n"}
    chart = mermaid(it)
    assert "\x1b" not in chart
    for line in chart.splitlines()[1:]:
        assert re.fullmatch(PIECES, line), line
