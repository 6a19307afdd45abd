"""What the map shows, and what on it does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from broker import Envelope, Service
from broker.cli.common import app
from broker.cli.map import screen
from broker.retry import Delay
from broker.tools.management import Activity, Binding, Exchange, Queue
from broker.tools.map import Live, Map, draw, mermaid
from broker.tools.map_page import page
from broker.topology import Queue as Declared
from broker.topology import backfill_topology, retry_topology, service_topology
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
    return Live("events", "events.log", [standing(name) for name in names], made, activity)


def standing(name: str) -> Queue:
    """A queue with two events: of a service, as it declares it; or of somebody else."""
    declared = [it for service in ("packing", "watching", "legacy") for it in all_queues(service) if it.name == name]
    arguments = dict(declared[0].arguments) if declared else {}
    return Queue(name=name, ready=2, type=str(arguments.get("x-queue-type", "classic")), arguments=arguments)


def all_queues(service: str) -> Sequence[Declared]:
    topology = service_topology(service, (), "events") | backfill_topology(service)
    return (topology | retry_topology(service, Delay.parse("30s"))).queues


def map_of(services: Sequence[Service] | None, live: Live | None, note: str = "") -> Map:
    """The map where only parcels' events are declared, whatever other tests have imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.tools.catalogue.declared", lambda: [ParcelLost, ParcelSent, ParcelWeighed])
        return draw(services, live, note)


def shown(it: Map, *, colours: bool = False) -> str:
    """What a terminal shows."""
    terminal = StringIO()
    Console(file=terminal, width=200, force_terminal=True, color_system="standard").print(screen(it))
    return terminal.getvalue() if colours else re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())


def reds(it: Map) -> set[str]:
    """The first words of what is red on a terminal."""
    return set(re.findall(r"\x1b\[1;31m([\w.#]+)", shown(it, colours=True)))


def on_page(it: Map) -> list[str]:
    """What is red on the page."""
    return re.findall(r'class="[a-z ]*\bbad"[^>]*><span>(.*?)</span>', page(it))


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


def test_how_fast_a_queue_fills_and_empties() -> None:
    busy = replace(live(), activity={"packing": Activity(consumers=3, published=7.5, acknowledged=4.25)})
    it = map_of(shop(), busy)
    (packing,) = [service for service in it.services if service.name == "packing"]
    assert packing.queue is not None
    assert (packing.queue.rate_in, packing.queue.rate_out) == (7.5, 4.25)
    assert re.search(r"^packing +2 +0 +2 +3 +7\.5 +4\.2 *$", shown(it), re.MULTILINE), shown(it)
    assert "4/s" in page(it)
    assert "4#47;s" in mermaid(it)


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


def test_of_a_queue_that_is_gone_the_service_had_started() -> None:
    direct = Exchange(name="packing", type="direct", durable=True)
    it = map_of(shop(), replace(live(["watching", "watching.dead"]), exchanges=[direct]))
    assert ("missing queue", "packing") in kinds(it)
    assert ("not started", "packing") not in kinds(it)


def test_what_prune_would_not_remove_is_not_said_to_be_pruned() -> None:
    queues, bindings = ["legacy", "legacy.dead", "theirs", "theirs.dead"], [("theirs", "parcel.*")]
    it = map_of(shop(), live(queues, bindings, consumers=0))
    helps = {each.about: (each.kind, each.help) for each in it.drift if each.kind != "no consumer"}
    assert helps["legacy"] == ("no service", "broker doctor --prune, or name its code, too: --from MODULE")
    assert helps["theirs"] == ("foreign queue", "Whoever made it knows.")
    consumed = {each.about: each.help for each in map_of(shop(), live(queues, bindings)).drift}
    assert consumed["legacy"] == "name its code, too: --from MODULE"


def test_a_service_that_subscribes_to_nothing_any_more_is_told_apart_from_one_that_no_code_has() -> None:
    bindings = [("packing", "parcel.lost"), ("legacy", "parcel.lost")]
    it = map_of([Service("packing")], live(["packing", "packing.dead", "legacy", "legacy.dead"], bindings, consumers=0))
    assert {each.about: each.text for each in it.drift if each.kind == "no service"} == {
        "legacy": "No code here has this service, and events pile up in its queue.",
        "packing": "The code of this service subscribes to nothing, and events pile up in its queue.",
    }


def test_without_any_code_every_service_is_one_too_many() -> None:
    assert ("no service", "packing") in kinds(map_of([], live()))


def test_what_helps_looks_where_the_map_did() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.tools.catalogue.declared", list)
        it = draw(shop(), live(bindings=[("packing", "parcel.lost")]), looked_in=["shop", "other"])
    helps = {each.kind: each.help for each in it.drift}
    assert helps["stale binding"] == "broker doctor --prune --from shop --from other"
    assert helps["missing binding"].startswith("broker doctor --fix --from shop --from other,")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("map", "1 with --check: something does not fit, or an unexpected failure"),
        ("doctor", "1 problems were found, or an unexpected failure"),
    ],
)
def test_help_says_what_the_exit_code_1_means(command: str, said: str) -> None:
    assert said in " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())


@pytest.mark.parametrize("words", [["--html"], ["--html", "--code"]])
def test_html_without_a_file_says_so(words: list[str]) -> None:
    ended = CliRunner().invoke(app, ["map", "--code", *words])
    assert ended.exit_code == 2
    assert "requires an argument" in ended.output or "'--code' is an option. Which file?" in ended.output


@pytest.mark.parametrize("words", [["--html", "-"], ["--mermaid"]])
def test_one_form_of_output_at_a_time(words: list[str]) -> None:
    ended = CliRunner().invoke(app, ["map", "--code", "--json", *words])
    assert ended.exit_code == 2
    assert f"{words[0]} and --json: one form of output at a time." in " ".join(ended.output.replace("│", " ").split())


def test_json_is_the_map_alone() -> None:
    printed = CliRunner().invoke(app, ["map", "--code", "--json", "--from", "services"])
    found = json.loads(printed.output)
    assert "New Order Placed" in {event["name"] for event in found["events"]}
    assert "packing" in {service["name"] for service in found["services"]}


def test_html_is_printed_or_written(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["map", "--code", "--html", "-"])
    assert (printed.exit_code, printed.output[:15]) == (0, "<!doctype html>")
    file = tmp_path / "map.html"
    written = CliRunner().invoke(app, ["map", "--code", "--html", str(file)])
    assert (written.exit_code, written.output) == (0, f"Written: {file}\n")
    assert file.read_text().startswith("<!doctype html>")


def test_an_event_that_nobody_hears_and_a_subscription_that_nobody_publishes() -> None:
    crm = Service("crm", publishes=[ParcelSent])

    @crm.on(ParcelLost)
    def note(event: ParcelLost) -> None: ...

    @crm.on("invoice.*")
    def bill(event: Envelope) -> None: ...

    it = map_of([crm], None)
    assert ("unheard", "Parcel Sent") in kinds(it)
    assert ("unpublished", "crm") in kinds(it)
    assert "Parcel" in reds(it), "Parcel Sent"
    assert {"Parcel Sent", "crm"} <= set(on_page(it))
    assert re.search(r"^unpublished +crm +It subscribes to", shown(it), re.MULTILINE), shown(it)
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


def red(it: Map) -> tuple[set[str], set[str]]:
    """Of a map for Mermaid, what is red: the names of nodes, and the arrows between names."""
    chart = mermaid(it)
    name = dict(re.findall(r'^    (\w+)\(?\["(.*?)(?:<br/>.*)?"\]', chart, re.MULTILINE))
    arrows = re.findall(r"^    (\w+) (-->|-\.->)(?:\|.*\|)? (\w+)$", chart, re.MULTILINE)
    nodes = [at for listed in re.findall(r"^    class (\S+) bad$", chart, re.MULTILINE) for at in listed.split(",")]
    links = [int(n) for listed in re.findall(r"^    linkStyle (\S+) ", chart, re.MULTILINE) for n in listed.split(",")]
    drawn = [f"{name[begin]} {arrow} {name[end]}" for begin, arrow, end in arrows]
    return {name[at] for at in nodes}, {drawn[n] for n in links}


def test_for_mermaid_what_does_not_fit_is_red_and_what_is_in_the_code_alone_dashed() -> None:
    queues = ["packing", "packing.dead", "legacy", "legacy.dead", "import-for-crm", "events.log"]
    nodes, arrows = red(map_of(shop(), live(queues, [("packing", "parcel.lost"), ("legacy", "legacy.#")], consumers=0)))
    assert nodes == {"packing", "watching", "legacy", "legacy.#35;", "import-for-crm"}
    assert arrows == {
        "Parcel Lost --> packing",
        "legacy.#35; --> legacy",
        "Parcel Weighed -.-> packing",
        *(f"{event} -.-> watching" for event in ("Parcel Lost", "Parcel Sent", "Parcel Weighed")),
    }


def test_for_mermaid_nothing_is_red_that_fits_and_dead_letters_are() -> None:
    full = live()
    empty = replace(full, queues=[it.model_copy(update={"ready": 0}) for it in full.queues])
    assert red(map_of(shop(), empty)) == (set(), set())
    assert red(map_of(shop(), full)) == ({"packing", "watching"}, set())
    assert red(map_of(shop(), None)) == (set(), set())


def test_for_mermaid_each_queue_has_its_depth_where_rabbitmq_was_asked() -> None:
    shown = mermaid(map_of(shop(), live(["packing", "packing.dead"], [("packing", "parcel.weighed")])))
    assert '["packing<br/>2 waiting, 2 dead, 0#47;s"]' in shown
    assert '["watching<br/>no queue yet"]' in shown
    assert '["scales"]' in shown
    assert '["packing"]' in mermaid(map_of(shop(), None))


def test_on_the_page_and_the_screen_the_same_is_red() -> None:
    queues = ["packing", "packing.dead", "legacy", "legacy.dead", "events.log"]
    it = map_of(shop(), live(queues, [("packing", "parcel.lost"), ("legacy", "legacy.#")], consumers=0))
    marked = on_page(it)
    assert sorted(marked) == ["legacy", "legacy.#", "packing", "watching"]
    assert reds(it) == set(marked)
    assert not reds(map_of(None, live(["packing"])))  # nothing says that it does not fit


def test_nothing_at_all() -> None:
    assert "Map" in repr(map_of([], Live("events", "events.log")))
    assert "<main" in page(map_of(None, Live("events", "events.log")))


def test_the_retry_queues_and_marks_of_a_service_belong_to_it() -> None:
    queues = ["packing", "packing.dead", "packing.retry.30s", "packing.backfill", "watching", "watching.dead"]
    assert "foreign queue" not in {each.kind for each in map_of(shop(), live(queues)).drift}
    locked = live([*queues, "packing.replay", "packing.backfill.lock", "import-for-crm"])
    for code in (shop(), None):
        assert {about for kind, about in kinds(map_of(code, locked)) if kind == "foreign queue"} == {"import-for-crm"}


def test_what_has_no_name_to_be_seen_has_one_on_the_map() -> None:
    it = map_of(shop(), live(["packing", " "], [("packing", ""), (" ", "parcel.lost")]))
    assert ("(no key)", "packing", "live") in links(it)
    assert '[""]' not in mermaid(it)  # which Mermaid takes for an error
    assert '[" "]' not in mermaid(it)
    assert "<span></span>" not in page(it)
    assert "<span> </span>" not in page(it)


NAMED = r'\["[^"<>`\[\]]+(<br/>(no queue yet|(\d+ (waiting|dead), )*(no consumer|\d+#47;s)))?"\]|\(\["[^"<>`\[\]]+"\]\)'
PIECES = (
    rf'    (\w+({NAMED})|[es]\d+ (-->|-\.->)(\|"[^"<>`|]*"\|)? [es]\d+'
    r"|classDef bad stroke:#cf222e,color:#cf222e|class [esq]\d+(,[esq]\d+)* bad|linkStyle \d+(,\d+)* stroke:#cf222e)"
)
"""All that a line of a flowchart may be: a node with how its queue stands, an arrow, or what is red."""
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
