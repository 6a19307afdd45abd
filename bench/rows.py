"""What is measured, row by row. Contenders take turns within each round."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.order import LEAN, size
from bench.runner import Bench, Wrong

ALL = ("ours", "faststream", "rabbitkit", "aio_pika", "aiormq", "kombu", "pika", "limit")
PACED = ("ours", "faststream", "rabbitkit", "aio_pika", "aiormq", "pika")
"""Those that can publish while they wait for confirms."""


def turns(bench: Bench, among: tuple[str, ...] = ALL) -> Iterator[str]:
    """Each contender in each round."""
    for _ in range(bench.rounds):
        yield from (name for name in among if name in bench.contenders)


def publish(bench: Bench) -> None:
    """Publishes that overlap, 500 at a time; and `publish_many`."""
    for name in turns(bench):
        count = bench.some(1000 if name == "kombu" else 8000)
        message = bench.message("ours") if name == "limit" else {}
        for do in ("publish", "publish_many") if name == "ours" else ("publish",):
            bench.empty()
            figures = bench.run(name, do, count=count, message=message)
            bench.keep("publish", "publish_many" if do == "publish_many" else name, figures)
            bench.check(count)
    bench.empty()


def one_by_one(bench: Bench) -> None:
    """Publishes one after the other: how long each takes."""
    for name in turns(bench):
        count = bench.some(600)
        message = bench.message("ours") if name == "limit" else {}
        bench.empty()
        bench.measure("one by one", name, "one_by_one", count=count, message=message)
        bench.check(count)
    bench.empty()


def consume(bench: Bench) -> None:
    """A backlog, handled and acknowledged."""
    for name in turns(bench):
        count = bench.some(8000)
        bench.fill(name, count)
        bench.measure("consume", name, "consume", count=count)
        bench.check(0)


def latency(bench: Bench) -> None:
    """From publish to handler, in two processes, at 500/s and at 60 % of what FastStream could do at most."""
    rates = {"latency at 500/s": 500.0}
    most = [bench.median(row, "faststream", "rate") for row in ("publish", "consume")]
    if None not in most:
        rates["latency at 60 %"] = 0.6 * min(rate for rate in most if rate is not None)
    for row, rate in rates.items():
        for name in turns(bench, PACED):
            count = int(rate * 4 * min(bench.scale, 2))
            consuming = bench.start(name, "consume", count=count)
            published = bench.run(name, "paced", count=count, rate=rate)
            figures = consuming.end()
            bench.keep(row, name, figures | {"rate": published.get("rate", rate)})
            bench.check(0)


def fan_out(bench: Bench) -> None:
    """Five subscribers of each event; what 1 to 50 of them cost the publisher, and what is delivered to them."""
    five = [f"bench{n}" for n in range(5)]
    bench.delete("bench")
    bench.declare(*five)
    for name in turns(bench, ("ours", "faststream", "aio_pika", "aiormq", "pika", "limit")):
        count = bench.some(2000)
        bench.fill(name, count, queues=five)
        bench.measure("five subscribers", name, "consume", count=count, queues=five)
        bench.check(0, five)
    bench.delete(*five)
    for queues in (1, 5, 20, 50):
        names = [f"bench{n}" for n in range(queues)]
        bench.declare(*names)
        for _ in range(bench.rounds):
            bench.measure("subscribers", "ours", "publish_many", queues, count=bench.some(2000))
        bench.check(bench.rounds * bench.some(2000), names)
        for name in turns(bench, ("ours", "faststream")):
            bench.empty(*names)
            count = bench.some(10_000) // queues  # as many deliveries to few as to many
            bench.fill(name, count, queues=names)
            bench.measure("deliveries", name, "consume", queues, count=count, queues=names)
            bench.check(0, names)
        bench.delete(*names)
    bench.declare("bench")


def growth(bench: Bench) -> None:
    """Bindings of one queue, and patterns of one service."""
    for bindings in (1, 10, 100, 1000):
        bench.declare("bench", bindings=bindings)
        for _ in range(bench.rounds):
            bench.measure("bindings", "ours", "publish_many", bindings, count=bench.some(4000))
            bench.check(bench.some(4000))
            bench.empty()
    bench.delete("bench")
    for patterns in (1, 10, 50, 200):
        bench.declare("patterns")
        for _ in range(bench.rounds):
            bench.fill("ours", bench.some(4000), queues=["patterns"])
            options = {"patterns": patterns}
            bench.measure("patterns", "ours", "consume_patterns", patterns, count=bench.some(4000), queues=["patterns"], options=options)  # fmt: skip  # noqa: E501
            bench.check(0, ["patterns"])
        bench.delete("patterns")
    bench.declare("bench")


def bodies(bench: Bench) -> None:
    """Events of 0.1 kB to 1 MB."""
    between = (1_000, 10_000) if bench.scale > 1 else ()
    for padding in (LEAN, 0, *between, 100_000, 1_000_000):
        for name in turns(bench, ("ours", "faststream", "limit")):
            count = max(20, min(bench.some(3000), int(40_000_000 * min(bench.scale, 2) / (size(padding) + 300))))
            message = bench.message("ours", padding) if name == "limit" else {}
            do = "publish_many" if name == "ours" else "publish"
            bench.empty()
            bench.measure("bodies", name, do, size(padding), count=count, padding=padding, message=message)
            bench.check(count)
            if name != "limit":
                bench.empty()
                bench.fill(name, count, padding)
            bench.measure("bodies consumed", name, "consume", size(padding), count=count)
            bench.check(0)


def backlog(bench: Bench) -> None:
    """Memory of a consumer before a small backlog and before a large one."""
    for count in (10_000, 1_000_000 if bench.scale > 1 else 50_000):
        bench.fill("ours", count)
        bench.measure("backlog", "ours", "consume", count, count=count)
        bench.check(0)


def start(bench: Bench) -> None:
    """From the start of a process to its first event handled; and what an idle process holds."""
    for name in turns(bench, ("ours", "faststream", "aio_pika")):
        bench.fill(name, 1)
        child = bench.start(name, "consume", count=1)
        figures = child.end()
        bench.keep("start", name, {"ms": (figures["first"] - child.spawned) * 1e3})
        bench.check(0)
    for name in turns(bench, ("ours", "faststream")):
        bench.measure("idle", name, "idle")


def log(bench: Bench) -> None:
    """With the event log, which keeps every event a second time."""
    for _ in range(bench.rounds):
        for on in (False, True):
            bench.empty()
            figures = bench.run("ours", "publish_many", count=bench.some(8000), settings={"log": on})
            bench.keep("event log", "on" if on else "off", figures)
            if on:
                bench.delete("events.log")
            bench.check(bench.some(8000))
    bench.empty()


def processes(bench: Bench) -> None:
    """One, two and four processes of one service."""
    for count in (1, 2, 4) * bench.rounds:
        each = bench.some(8000) // count
        bench.fill("ours", each * count)
        children = [bench.start("ours", "consume_share") for _ in range(count)]
        figures = [child.end() for child in children]
        shares = [it for it in figures if it["events"]]  # which process gets how many is RabbitMQ's choice
        wall = max(it["last"] for it in shares) - min(it["first"] for it in shares)
        cpu = sum(it["cpu"] * it["events"] for it in shares) / (each * count)
        bench.keep("processes", "ours", {"rate": each * count / wall, "cpu": cpu}, count)
        bench.check(0)


DATABASES = ("sqlite", "postgresql")


def relay(bench: Bench) -> None:
    """A relay, and its memory with few and many events waiting."""
    for kind in DATABASES:
        for _ in range(bench.rounds):
            with bench.database(kind) as database:
                count = bench.some(8000)
                bench.empty()
                bench.run("transactional", "fill_outbox", count=count, options={"database": database})
                figures = bench.run("transactional", "relay", count=count, options={"database": database})
                bench.keep("relay", kind, figures)
                bench.check(count)
        few = 10_000 if bench.scale > 1 else 2_000
        for count in (few, 10 * few):
            with bench.database(kind) as database:
                bench.empty()
                for _ in range(count // few):
                    bench.run("transactional", "fill_outbox", count=few, options={"database": database})
                bench.keep(
                    "outbox",
                    kind,
                    bench.run("transactional", "relay", count=count, options={"database": database}),
                    count,
                )
                bench.check(count)
    bench.empty()


def commits(bench: Bench) -> None:
    """From commit to a subscriber's handler, 200 a second; and what a transactional handler costs."""
    for kind in DATABASES:
        for _ in range(bench.rounds):
            with bench.database(kind) as database:
                bench.empty()
                count = int(800 * min(bench.scale, 2))
                consuming = bench.start("ours", "consume", count=count)
                bench.run("transactional", "commit_paced", count=count, rate=200, options={"database": database})
                bench.keep("commit to handler", kind, consuming.end())
                bench.check(0)
            for do, row in (("consume_own", "own commit"), ("consume", "transactional")):
                with bench.database(kind) as database:
                    count = bench.some(1500)
                    bench.run("ours", "publish_many", count=count)  # an order each: the limit repeats one
                    bench.check(count)
                    bench.keep(row, kind, bench.run("transactional", do, count=count, options={"database": database}))
                    bench.check(0)


def inboxes(bench: Bench) -> None:
    """Looking an event up in a growing inbox; what handlers that commit wait before it is pruned, and meanwhile."""
    most = 1_000_000 if bench.scale > 1 else 50_000
    for kind in DATABASES:
        with bench.database(kind) as database:
            filled = 0
            for count in (1000, 10_000, most):
                options = {"database": database, "filled": filled}
                figures = bench.run("transactional", "look_up", count=count, options=options)
                bench.keep("look-up", kind, figures, count)
                filled = count
            options = {"database": database, "seconds": 10 * bench.scale}
            for row, do, beyond in (("not pruning", "not_pruning", 2), ("pruning", "pruning", 1)):
                bench.keep(row, kind, bench.run("transactional", do, count=beyond * most, options=options))


def replay(bench: Bench) -> None:
    """Events of the event log once more, for one service, beside what published them."""
    for _ in range(bench.rounds):
        count = bench.some(20_000)
        for contender, do in (("ours", "publish_many"), ("tools", "replay")):
            bench.empty()
            name = "ours" if do == "replay" else do
            bench.keep("replay", name, bench.run(contender, do, count=count, settings={"log": True}))
            bench.check(count)
        bench.delete("events.log")
    bench.empty()


def handlings(bench: Bench) -> None:
    """A backlog, with a record of each handling and without, by turns in one process."""
    count = 120_000 if bench.scale > 1 else 80_000
    for _ in range(2 * bench.rounds):
        bench.fill("ours", count)
        figures = bench.run("tools", "consume_recording_by_turns", count=count, settings={"log": True})
        for which in ("not recorded", "recorded"):
            bench.keep("handlings", which, figures[which])
        bench.check(0)
    bench.delete("events.log")


def backfill(bench: Bench) -> None:
    """A service that comes late reads a long log while 500 events a second go to another: what that one notices."""
    count, live, logged = bench.some(33_334), min(bench.some(1000), 2500), {"log": True}
    for _ in range(bench.rounds):
        bench.empty()
        bench.run("ours", "publish_many", count=count, settings=logged)
        bench.empty()
        late = None
        for beside in ("before", "meanwhile"):
            if beside == "meanwhile":  # it handles each event of both turns once, or does not end
                late = bench.start("ours", "backfill", count=count + 2 * live, queues=["late"], settings=logged)
            consuming = bench.start("ours", "consume", count=live, settings=logged)
            bench.run("ours", "paced", count=live, rate=500, settings=logged)
            figures = consuming.end()
            bench.keep("backfill beside", beside, figures)
            bench.check(0)
        assert late is not None
        if bench.keep("backfill", "ours", late.end())["backfilled"] < figures["last"]:
            raise Wrong("the backfill ended before the events beside it")
        bench.delete("events.log", "late", "late.dead")


def story(bench: Bench) -> None:
    """The story of one event amid a long log."""
    half, logged = 500_000 if bench.scale > 1 else 25_000, {"log": True}
    bench.delete("bench")
    for part in range(2):
        if part:
            one = bench.run("tools", "publish_one", settings=logged)["id"]
        for _ in range(half // 25_000):
            bench.run("ours", "publish_many", count=25_000, settings=logged)
    bench.keep("story", "ours", bench.run("tools", "story", settings=logged, options={"id": one}))
    bench.delete("events.log")
    bench.declare("bench")


def large_map(bench: Bench) -> None:
    """The map of 200 services and 1,000 events."""
    for _ in range(bench.rounds):
        bench.keep("map", "ours", bench.run("tools", "map_of_many"))


ROWS: dict[int, Callable[[Bench], None]] = {
    1: publish,
    2: one_by_one,
    3: consume,
    4: latency,
    5: fan_out,
    6: growth,
    7: bodies,
    8: backlog,
    9: start,
    10: log,
    11: processes,
    12: relay,
    13: commits,
    14: inboxes,
    15: replay,
    16: handlings,
    17: backfill,
    18: story,
    19: large_map,
}
