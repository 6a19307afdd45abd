"""What this package does for its tools, and they themselves, beside the log that they read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from bench.contenders.ours import NewOrderPlaced, open_broker, service, settings
from bench.job import Job, Turns
from bench.order import fields
from broker.handlings import Noted, Recorder
from broker.logs import logger
from broker.service import serve
from broker.tools.log import Wanted, open_log
from broker.tools.replay import Outcome, Replay
from broker.tools.story_reader import Reader


async def replay(job: Job) -> None:
    """All events of the event log once more, for one service, told how far it is."""
    made, told = settings(job), list[int]()
    async with open_log(made) as log:
        span = await log.span()
        outcome = Outcome(span.first, span.end)
        wanted = Wanted(patterns=("order.*",))
        replaying = Replay(made, job.queues[0], wanted, progress=lambda it: told.append(it.next))
        with job.measured():
            await replaying.run(log, outcome)
    assert outcome.count == job.count
    assert told


async def publish_one(job: Job) -> None:
    """The event whose story is told."""
    async with open_broker(job) as broker:
        job.result["id"] = str(await broker.publish(NewOrderPlaced(**fields(0))))


async def story(job: Job) -> None:
    """What `broker story CORRELATION_ID` reads; nobody has subscribed, so up to the log's end."""
    began = time.perf_counter()
    told = await Reader(settings(job), []).story(UUID(job.options["id"]))
    job.result["ms"] = (time.perf_counter() - began) * 1e3
    assert [step.name for step in told.steps] == ["New Order Placed"]


async def map_of_many(job: Job) -> None:
    """`broker map`, from its start to its end, of the code of `bench.company`."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "map.html"
        began = time.perf_counter()
        words = ("map", "--code", "--html", str(page), "--from", "bench.company")
        subprocess.run([sys.executable, "-m", "broker", *words], check=True)  # noqa: ASYNC221, S603  (ourselves)
        job.result |= {"ms": (time.perf_counter() - began) * 1e3, "bytes": page.stat().st_size}


async def consume_recording_by_turns(job: Job) -> None:
    """Records the handlings of every other turn: what processes and minutes differ by is more than a record costs."""
    turns = Turns(job, ("not recorded", "recorded"))
    note = Recorder.note

    def leave(self: Recorder, handling: Noted) -> None:
        """As `Recorder.note` does where nothing is recorded."""

    def by_turns(self: Recorder, handling: Noted) -> None:
        (note if turns.now == "recorded" else leave)(self, handling)

    Recorder.note = by_turns  # type: ignore[method-assign]
    async with serve(service(job.queues[0], turns), settings(job), logger(settings(job))):
        await turns.all.wait()
