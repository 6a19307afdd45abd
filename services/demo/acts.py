"""The seven acts of the demo."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from uuid import UUID, uuid4

from broker import Service
from broker.cli.story import screen
from broker.tools import map as map_of
from broker.tools import map_page, story_page
from broker.tools.server import Server
from broker.tools.story import Arrow, Story
from broker.tools.story_reader import Reader
from services.contracts import CatalogItemChanged
from services.demo import checks, goods, sequence
from services.demo.commands import Placer
from services.demo.lines import LogLine
from services.demo.processes import LISTENERS, OWNERS, SERVICES, DemoFailed
from services.demo.stage import Stage

STOP = """\
#!/bin/sh
for pid in {pids}; do kill "$pid"; done
turns=0  # wait until the services have stopped, 30 s at most
for pid in {pids}; do
  while [ "$turns" -lt 150 ] && kill -0 "$pid" 2>/dev/null; do sleep 0.2; turns=$((turns + 1)); done
done
{server}
"""

PACE = 0.25
"""Seconds between two orders; fewer when there are many."""

SETTLE = 20.0
"""Seconds in which the last deliveries must have been handled when the check begins."""


async def play(stage: Stage, server: Server, keep: bool) -> None:
    """All seven; raises :exc:`DemoFailed` at the first difference."""
    services = [load(name) for name in SERVICES]
    tell_where(stage, server)
    async with Placer(stage.commands) as placer:
        begun = time.monotonic()
        await open_shop(stage)
        orders = iter(stage.goods.orders(stage.orders))
        before, during = portions(stage.orders)
        await first_orders(stage, placer, [next(orders) for _ in range(before)], begun)
        await kill_one(stage, placer, [next(orders) for _ in range(during)])
        await start_again(stage, placer, list(orders))
    await broken_event(stage)
    await one_sequence(stage, services)
    facts = await final_check(stage, services)
    if keep:
        tell_how_to_stop(stage, server)
    else:
        await stage.during(asyncio.to_thread(stage.processes.stop))
    await stage.tick()
    stage.view.end_table()
    give_verdict(stage, facts, services)


def portions(count: int) -> tuple[int, int]:
    """How many orders come before the kill, and how many while the victim is dead: about a third each."""
    before = max(1, (count - count // 3 + 1) // 2)
    return before, min(count - before, max(1, count // 3))


def load(name: str) -> Service:
    """The declarations of a service, without running it."""
    service = import_module(f"services.{name}").service
    if not isinstance(service, Service):
        raise DemoFailed(f"services.{name}.service is no Service.")
    return service


def tell_where(stage: Stage, server: Server) -> None:
    """Act 1."""
    view = stage.view
    view.act(1, "RabbitMQ")
    view.say(f"RabbitMQ {server.version}: {server.origin}")
    login = "user guest, password guest" if server.ours else "with the login of BROKER_URL"
    view.say(f"management UI: {server.management_url} ({login}), virtual host {stage.management.vhost}")
    view.say(f"data, logs and e-mails: {stage.folder}")


async def open_shop(stage: Stage) -> None:
    """Act 2, first half: the eight processes; then customers, items and addresses, added by commands.

    The commands start beside the services and wait for their input: nothing is told before all queues are there.
    """
    stage.view.act(2, "Eight processes; customers, items, addresses; orders")
    owned = dict(zip(OWNERS, (stage.goods.customers, stage.goods.items, stage.goods.addresses), strict=True))
    stage.processes.start(*SERVICES)
    adding = {name: await stage.commands.start(name, "add", "--file", "-", "--json") for name in OWNERS}
    await stage.until(
        lambda: all(stage.processes[name].state == "running" for name in LISTENERS), "all services listen"
    )
    added = asyncio.create_task(_add(stage, {name: (adding[name], owned[name]) for name in OWNERS}))
    try:
        entities = sum(map(len, owned.values()))
        await stage.until(
            lambda: (
                stage.processes["order"].handled.total() >= entities
                and stage.handled("crm", "Customer Details Changed") >= len(stage.goods.customers)
            ),
            "Order and CRM have their copies",
        )
        await stage.during(added)
    finally:
        added.cancel()
    counts = (len(stage.goods.customers), len(stage.goods.items), len(stage.goods.addresses))
    stage.view.say("{} customers, {} items, {} addresses: Order and CRM have their copies".format(*counts))


async def _add(stage: Stage, owned: Mapping[str, tuple[asyncio.subprocess.Process, list[goods.Entity]]]) -> None:
    await asyncio.gather(
        *(stage.commands.finish(name, command, goods.as_lines(given)) for name, (command, given) in owned.items())
    )


async def first_orders(stage: Stage, placer: Placer, orders: list[goods.Entity], begun: float) -> None:
    """Act 2, second half: the first order; then more, while a customer and a price change."""
    await place(stage, placer, orders[0])
    await stage.until(lambda: stage.handled("reporting", "New Order Placed") > 0, "Reporting sees an order")
    stage.view.say(f"first order visible {time.monotonic() - begun:.1f} s after the first process started")
    changing = asyncio.create_task(_changes(stage))
    try:
        for order in orders[1:]:
            await place(stage, placer, order)
        await stage.during(changing)
    finally:
        changing.cancel()
    await stage.until(
        lambda: (
            all(stage.handled(name, "New Order Placed") >= len(orders) for name in ("crm", "reporting"))
            and all(process.state == "running" for process in stage.processes)
        ),
        "CRM and Reporting know these orders, and all eight run",
    )
    stage.view.say(f"{count(len(orders), 'order')} placed")
    stage.view.snapshot()


async def _changes(stage: Stage) -> None:
    """A customer moves to another e-mail address; a price goes up."""
    customer, item = stage.goods.customers[0], stage.goods.items[0]
    await asyncio.gather(
        stage.commands.run("customer", "change", str(customer["customer_id"]), "--email", "countess@example.com"),
        stage.commands.run("catalog", "change", str(item["item_id"]), "--price", "21.50"),
    )
    stage.view.say(f"on the way {customer['name']} got a new e-mail address, and {item['name']} a new price")


async def place(stage: Stage, placer: Placer, order: goods.Entity) -> None:
    """Place one order, and let a moment pass."""
    stage.placed.append(await stage.during(placer.place(order)))
    await stage.pause(min(PACE, 5 / stage.orders))


async def kill_one(stage: Stage, placer: Placer, orders: list[goods.Entity]) -> None:
    """Act 3, first half: kill -9, and the others go on."""
    victim = stage.victim
    pid = stage.processes[victim].pid
    if not orders:  # the one order's story is shown, and a killed service takes its last second of it along
        await stage.pause(1.5)
    stage.processes.kill(victim)
    stage.view.act(3, f"{victim} is killed")
    stage.view.say(f"kill -9 {pid}", style="bold red")
    for order in orders:
        await place(stage, placer, order)
    if victim == "order":
        stage.view.say(f"{count(len(orders), 'more order')}: stored, and told when it runs again")
    else:
        await others_go_on(stage, len(orders))
    stage.view.snapshot()
    await stage.pause(1.5)


async def others_go_on(stage: Stage, orders: int) -> None:
    """So many orders came while one was dead: CRM and Reporting counted on, and its queue has grown."""
    victim = stage.victim
    witnesses = [name for name in ("crm", "reporting") if name != victim]
    await stage.until(
        lambda: all(stage.handled(name, "New Order Placed") >= len(stage.placed) for name in witnesses),
        f"{' and '.join(witnesses)} count on",
    )
    if victim in LISTENERS:
        await stage.until(lambda: stage.waiting(victim) >= orders, f"the queue of {victim} grows")
        stage.view.say(f"{count(stage.waiting(victim), 'event')} waiting for {victim}")
    stage.view.say(f"{count(orders, 'more order')}: {' and '.join(witnesses)} counted on to {len(stage.placed)}")


def count(number: int, thing: str) -> str:
    """``1 order``, ``2 orders``."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


async def start_again(stage: Stage, placer: Placer, orders: list[goods.Entity]) -> None:
    """Act 3, second half: it is started again, catches up, and the rest of the orders flow."""
    victim = stage.victim
    stage.processes.start(victim)
    await stage.until(lambda: stage.processes[victim].state == "running", f"{victim} runs again")
    stage.view.say(f"{victim} is started again: process {stage.processes[victim].pid}")
    for order in orders:
        await place(stage, placer, order)
    await stage.until(
        lambda: all(
            stage.handled(name, "Order Dispatched") >= len(stage.placed)
            for name in ("order", "crm", "reporting")
            if name != victim  # it may have died between an acknowledgement and its log line
        ),
        "all orders are dispatched",
    )
    await stage.until(lambda: all(stage.waiting(name) == 0 for name in LISTENERS), "all queues are empty")
    stage.view.say(f"all queues are empty again; {count(len(stage.placed), 'order')} dispatched")
    stage.view.snapshot()


async def broken_event(stage: Stage) -> None:
    """Act 4: somebody's program publishes an event that is none. Only Order subscribes to it."""
    stage.view.act(4, "A broken event arrives")
    before = len(failures(stage))
    dead = "order.dead"
    contract = CatalogItemChanged.__contract__
    await stage.management.publish(
        "events",
        contract.key,
        json.dumps(broken_item()),
        properties={"content_type": "application/cloudevents+json", "delivery_mode": 2, "type": contract.name},
    )
    stage.view.say(f"somebody's program publishes {contract.name} with the price 'a lot', and without a name")
    await stage.until(
        lambda: dead in stage.queues and stage.queues[dead].ready > 0 and len(failures(stage)) > before,
        f"it lies in {dead}, and order has said so",
    )
    letters = await stage.management.peek(dead, count=10)
    others = {name for name, queue in stage.queues.items() if name.endswith(".dead") and queue.ready and name != dead}
    if len(letters) != 1 or others:
        raise DemoFailed(
            f"One dead letter was expected, in {dead}; there are {len(letters)}, and {others or 'none'} elsewhere."
        )
    stage.view.say(f"one dead letter, in {dead}: {_reason(stage, letters[0].headers)}", style="yellow")
    if (failed := [line.service for line in failures(stage)][before:]) != ["order"]:
        raise DemoFailed(f"It concerned only order, once; these say that something failed: {', '.join(failed)}.")
    await stage.management.purge(dead)
    await stage.until(lambda: stage.queues[dead].ready == 0, f"{dead} is empty")
    stage.view.say("nobody was disturbed; seen, understood, removed")


def failures(stage: Stage) -> list[LogLine]:
    """What the services say went wrong, oldest first."""
    failed = (line for line in stage.lines() if line.event in ("dead", "retrying"))
    return sorted(failed, key=lambda line: line.timestamp)


def broken_item() -> dict[str, object]:
    """An event that is none, and looks like one."""
    contract = CatalogItemChanged.__contract__
    item_id = str(uuid4())
    return {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "somebody",
        "type": contract.name,
        "time": datetime.now().astimezone().isoformat(),
        "subject": item_id,
        "datacontenttype": "application/json",
        "dataschema": contract.schema,
        "data": {"item_id": item_id, "revision": 1, "price": {"amount": "a lot", "currency": "EUR"}},
    }


def _reason(stage: Stage, headers: dict[str, object]) -> str:
    """Why it is dead: from its headers, or, where RabbitMQ moved it untouched, from the log line."""
    logged = [line.error for line in stage.processes["order"].lines if line.event == "dead"]
    reason = str(headers.get("broker-error") or (logged[-1] if logged else ""))
    if not reason:
        raise DemoFailed("The dead letter has no reason, neither in its headers nor in a log line of order.")
    return " ".join(reason.split())


async def one_sequence(stage: Stage, services: list[Service]) -> None:
    """Act 5: the story of one order, as the event log tells it; its arrows, against the design's."""
    order = stage.placed[-1]
    stage.view.act(5, f"What order {order['order_id']} led to")
    if wrong := _about_orders(services) ^ sequence.ORDER_STORY:
        raise DemoFailed(f"The services declare other arrows than the design: {'; '.join(map(str, sorted(wrong)))}.")
    story = await told(stage, UUID(order["event_id"]))
    stage.view.show_beside(screen(story))
    arrows = sequence.handled(story)
    if different := sequence.differences(arrows):
        raise DemoFailed(f"The sequence differs from the design: {'; '.join(different)}.")
    stage.view.say(f"{len(arrows)} arrows, as designed: none more, none less")
    stage.write("story.html", story_page.page(story))


async def told(stage: Stage, story: UUID) -> Story:
    """A story, as soon as the services have told the event log of all their handlings: once a second they do."""
    deadline = time.monotonic() + SETTLE
    found = await stage.during(Reader(stage.settings, ["services"]).story(story))
    while sequence.differences(sequence.handled(found)) and time.monotonic() < deadline:
        await stage.pause(0.5)
        found = await stage.during(Reader(stage.settings, ["services"]).story(story))
    return found


def _about_orders(services: list[Service]) -> frozenset[Arrow]:
    """The declared arrows of the events that an order leads to."""
    names = {arrow.event for arrow in sequence.ORDER_STORY}
    return frozenset(arrow for arrow in sequence.declared(services) if arrow.event in names)


async def final_check(stage: Stage, services: list[Service]) -> checks.Facts:
    """Act 6: all services agree, and nothing is left anywhere."""
    stage.view.act(6, "The check")
    deadline = time.monotonic() + SETTLE
    facts, different = await look(stage)
    while different and time.monotonic() < deadline:  # the last deliveries may still be on their way
        facts, different = await look(stage)
    if different:
        raise DemoFailed("Not as it should be:\n" + "\n".join(f"     {each}" for each in different[:20]))
    view = stage.view
    view.say("every order is dispatched in Order, CRM and Reporting alike; lines and totals are equal")
    revenue = ", ".join(f"{amount:.2f} {currency}" for currency, amount in facts.report.revenue.items())
    view.say(f"revenue {revenue or Decimal(0)}: the sum of the orders")
    view.say("Order's copies of customers, items and addresses equal their owners'")
    view.say(f"one e-mail for each order, for example {facts.emails[0]}")
    view.say(f"all queues are empty: {', '.join(sorted(stage.queues))}; only the event log keeps what happened")
    live = await stage.during(map_of.look(stage.management, stage.settings.exchange, stage.settings.event_log))
    stage.write("map.html", map_page.page(map_of.draw(services, live)))
    return facts


async def look(stage: Stage) -> tuple[checks.Facts, list[str]]:
    """What the services say, and every difference to what should be."""
    facts = await stage.during(checks.gather(stage.commands))
    await stage.count()
    filled = {
        queue.name: await stage.management.peek(queue.name, count=1)  # exact, where counts may be some seconds old
        for queue in stage.queues.values()
        if queue.type != "stream"
    }
    left = [f"queue {name} is not empty" for name, messages in filled.items() if messages]
    placed = [UUID(order["order_id"]) for order in stage.placed]
    return facts, [*checks.differences(facts, placed), *checks.unacknowledged(stage.queues.values()), *left]


def tell_how_to_stop(stage: Stage, server: Server) -> None:
    """KEEP=1: everything goes on running."""
    script = stage.folder / "stop"
    script.write_text(STOP.format(pids=stage.processes.pids, server=server.stop_command))
    stage.view.say(f"all goes on running; the management UI is {server.management_url}. Stop it with: sh {script}")
    if not server.ours:
        stage.view.say(f"the virtual host {stage.management.vhost} stays until you delete it")


def give_verdict(stage: Stage, facts: checks.Facts, services: list[Service]) -> None:
    """Act 7: counted, not written."""
    pairs = len({(arrow.event, arrow.subscriber) for arrow in sequence.declared(services)})
    listening = {service.name for service in services if service.subscribes}
    here = listening & stage.queues.keys()
    counted = checks.verdict(facts, (UUID(order["order_id"]) for order in stage.placed))
    stage.view.act(7, "The verdict")
    stage.view.say(f"to look at in a browser: the story of that order, {stage.folder / 'story.html'}")
    stage.view.say(f"                         who tells whom what,     {stage.folder / 'map.html'}")
    stage.view.say(str(counted), style="bold")
    stage.view.say(
        f"point to point: {pairs} queues · here: {len(here)}, one for each service that listens", style="bold"
    )
    everything = (counted.placed, counted.packed, counted.dispatched, counted.emails)
    if set(everything) != {stage.orders} or counted.lost or counted.twice or here != listening:
        raise DemoFailed("The counts are not what they should be.")
