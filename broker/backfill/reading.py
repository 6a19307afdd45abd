"""Reading the event log from where a note says to the seam's end, and having it handled as if it were delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

from structlog.typing import FilteringBoundLogger

from broker.backfill.note import Note
from broker.backfill.pace import SOME, Pace
from broker.backfill.seam import Seam, identity
from broker.copies import Failure, copy
from broker.errors import AccessRefused, BrokerError, ConnectionFailed, Malformed
from broker.eventlog import Entry, EventLog
from broker.settings import Settings
from broker.topology import DELIVERY_LIMIT, dead_queue
from broker.transport import Message, Receive, Transport

SETTLING = 2.0
"""Seconds after the queue was bound until all that was routed before is in the log. RabbitMQ takes milliseconds."""
STORING = 1.0
"""Seconds until what is in the log is in the queue, too, if it is to be in both."""
NOTE_EVERY = 1.0
AHEAD = 1000
"""Messages that may be begun beyond the last note, at most. After a crash, they are handled one by one."""
TELL_EVERY = 10.0
AGAIN = 1.0
"""Seconds after which what did not work is tried again."""


@dataclass
class Surroundings:
    """What a backfill works with.

    Attributes:
        transport: the service's.
        wants: whether a routing key is subscribed to.
        receive: has a delivery handled.
        log: carries the service's name.
        tell: told what the service is going through.
        seam: stands before the service's queue.
    """

    service: str
    settings: Settings
    transport: Transport
    wants: Callable[[str], bool]
    receive: Receive
    log: FilteringBoundLogger
    tell: Callable[[str], None]
    seam: Seam
    _problem: str = field(default="", init=False)

    def say(self, problem: BrokerError) -> None:
        """Why it does not get on; once, until it is for another reason."""
        if str(problem) != self._problem:
            self._problem = str(problem)
            self.log.warning("backfill waits", error=self._problem)

    async def send(self, message: Message) -> None:
        """Publish within the service, for as long as it takes: a queue that somebody deletes comes back.

        Raises:
            AccessRefused: this user may not.
        """
        while True:
            try:
                await self.transport.publish(message, mandatory=True, timeout=self.settings.publish_timeout)
                break
            except AccessRefused:
                raise
            except BrokerError as error:
                self.say(type(error)(f"the queue {message.key!r} takes nothing: {error}"))
                await asyncio.sleep(AGAIN)


class Position:
    """How far the reading is: messages are begun in order, and end in any.

    Attributes:
        reached: the number to read next.
    """

    def __init__(self, begin: int) -> None:
        self.reached = begin
        self._in_hand: dict[int, None] = {}

    def __len__(self) -> int:
        """How many are in hand."""
        return len(self._in_hand)

    @property
    def next(self) -> int:
        """The first that is not done."""
        return next(iter(self._in_hand), self.reached)

    def begin(self, number: int) -> None:
        """It is in hand."""
        self._in_hand[number] = None
        self.reached = number + 1

    def end(self, number: int) -> None:
        """It is done with."""
        self._in_hand.pop(number, None)

    def pass_to(self, number: int) -> None:
        """Nothing is to be done about what comes before."""
        self.reached = max(self.reached, number)


class LogDelivery:
    """A message of the log as a `broker.transport.Delivery`."""

    lost = False

    def __init__(self, reading: Reading, number: int, message: Message, *, redelivered: bool) -> None:
        self._reading = reading
        self.number = number
        self.message = message
        self.redelivered = redelivered
        self.times = 1

    async def ack(self) -> None:
        self._reading.done(self)

    async def reject(self) -> None:
        try:
            identity(self.message)
            error: BrokerError = Malformed("its log line `dead` says why")
        except Malformed as malformed:
            error = malformed
        await self._reading.set_aside(self, error)

    async def release(self) -> None:
        await self._reading.give_back(self)


class Reading:
    """From a note to the seam's end.

    Args:
        it: what it works with.
        log: the event log.
        note: where to begin.
        end: the log's end, as far as it is known.

    Attributes:
        note: how far it is noted to be.
        events: how many were handed out to be handled.
        foreign: how many messages were none of ours.
        stopping: what is given back does not come again.
    """

    def __init__(self, it: Surroundings, log: EventLog, note: Note, end: int) -> None:
        self._it = it
        self._log = log
        self._position = Position(note.next)
        self._careful = note.begun if note.begun > note.next else 0
        self._end = max(end, note.end or 0)
        self._changed = asyncio.Event()
        self._note_now = asyncio.Event()
        self._noting = asyncio.Lock()
        self._noted = note.next
        self._ahead = 0
        self.note = note
        self.events = self.foreign = 0
        self.stopping = False

    @property
    def progress(self) -> tuple[int, int]:
        """Messages of the log that are done, and how many there are, as far as that is known."""
        return self._position.next - self.note.first, self._end - self.note.first

    async def read(self) -> None:
        """Return when everything up to the seam's end is done, and noted.

        Raises:
            ConnectionFailed, AccessRefused: RabbitMQ went away, or refuses.
        """
        learning = asyncio.create_task(self._learn_the_end())
        try:
            await self._remember_seam()
            await self._read_to(await self._log_end() if self.note.end is None else self.note.end)
            await learning
            assert self.note.end is not None, "learned"
            await self._read_to(self.note.end)
            await self.until_idle()
            await self.write()
        finally:
            learning.cancel()
            await asyncio.gather(learning, return_exceptions=True)

    async def until_idle(self) -> None:
        """Return when nothing is in hand."""
        while len(self._position):
            await self._change()

    async def _change(self) -> None:
        """Wait until something ended or was noted."""
        self._changed.clear()
        await self._changed.wait()

    # -- where it ends -----------------------------------------------------------------------------------------------

    async def _learn_the_end(self) -> None:
        """Look up the log's end, and the depth of the queue, a moment after it was bound."""
        while self.note.end is None or self.note.depth is None:
            try:
                if self.note.end is None:
                    await asyncio.sleep(SETTLING)
                    await self.write(end=await self._log_end())
                else:
                    await asyncio.sleep(STORING)
                    await self.write(depth=await self._it.transport.count(self._it.service) or 0)
            except ConnectionFailed as error:
                self._it.say(error)

    async def _log_end(self) -> int:
        """The log's end. It only grows; when RabbitMQ is slow to hand it out, it must not seem to be empty."""
        end = (await self._log.span()).end
        if end < max(self.note.seam, self._position.reached):
            raise ConnectionFailed(f"RabbitMQ does not hand out the end of the event log {self._log.name!r}.")
        self._end = max(self._end, end)
        return end

    async def _remember_seam(self) -> None:
        """What of the seam was done by those before."""
        if self.note.seam < self.note.next:
            async with aclosing(self._log.read(self.note.seam, end=self.note.next)) as entries:
                async for entry in entries:
                    if (message := self._wanted(entry)) is not None:
                        self._it.seam.add(message)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read_to(self, end: int) -> None:
        """Read up to before ``end``."""
        position, pace = self._position, Pace(self._it.settings.backfill_share)
        async with aclosing(self._log.read(position.reached, end=end)) as entries:
            async for entry in entries:
                if position.reached % SOME == 0 and (seconds := pace.rest()):
                    await asyncio.sleep(seconds)
                number = entry.offset if entry.offset is not None else position.reached
                if number >= position.reached:  # else it comes again, after a reconnect
                    await self._take(number, entry)
        position.pass_to(end)

    async def _take(self, number: int, entry: Entry) -> None:
        """Have an entry handled, if the service subscribes to it. RabbitMQ leaves numbers out: they are passed, too."""
        self._position.pass_to(number)
        message = self._wanted(entry)
        if message is not None:
            if number >= self.note.seam:
                self._it.seam.add(message)
            await self._hand_out(number, _as_published(message))
            return
        if entry.message is None or entry.message.exchange not in (
            self._it.settings.exchange,
            self._it.settings.handlings_exchange,
        ):
            self.foreign += 1
        self._position.pass_to(number + 1)

    def _wanted(self, entry: Entry) -> Message | None:
        message = entry.message
        if message is None or message.exchange != self._it.settings.exchange or not self._it.wants(message.key):
            return None
        return message

    async def _hand_out(self, number: int, message: Message) -> None:
        """Have it handled when there is room, and when it is noted that it may have been begun."""
        careful = number < self._careful
        delivery = LogDelivery(self, number, message, redelivered=careful)
        self.events += 1
        if careful:
            await self._hand_out_alone(delivery)
            return
        while len(self._position) >= self._it.settings.full_prefetch:
            await self._change()
        if number >= self.note.begun - self._ahead // 2:
            self._note_now.set()
        while number >= self.note.begun:
            await self._change()
        self._position.begin(number)
        self._it.receive(delivery)

    async def _hand_out_alone(self, delivery: LogDelivery) -> None:
        """Have what may have killed its process handled with nothing else in hand; or set it aside."""
        await self.until_idle()
        self._position.pass_to(delivery.number)
        tries = self.note.tries + 1 if self.note.next == delivery.number else 1
        await self.write(tries=tries)
        if tries > DELIVERY_LIMIT:
            error = BrokerError(f"begun {DELIVERY_LIMIT} times, and each time its process ended before it did")
            self._it.log.error("dead", number=delivery.number, error=str(error))
            await self.set_aside(delivery, error)
            self._position.pass_to(delivery.number + 1)
        else:
            self._position.begin(delivery.number)
            self._it.receive(delivery)
        await self.until_idle()

    # -- what becomes of a delivery ----------------------------------------------------------------------------------

    def done(self, delivery: LogDelivery) -> None:
        """It left by one of its doors."""
        self._position.end(delivery.number)
        self._changed.set()

    async def set_aside(self, delivery: LogDelivery, error: BrokerError) -> None:
        """A copy to the dead letters, confirmed; then it is done."""
        service, queue = self._it.service, dead_queue(self._it.service)
        failure = Failure(service, "", error, 1, delivery.message.key, datetime.now(UTC))
        await self._it.send(copy(delivery.message, failure, queue))
        await self._it.transport.until_trusted(queue)
        self.done(delivery)

    async def give_back(self, delivery: LogDelivery) -> None:
        """It was not handled: it comes again in a moment; or, when this process ends, to whoever goes on."""
        if self.stopping:
            return
        delivery.times += 1
        if delivery.times > DELIVERY_LIMIT:
            await self.set_aside(delivery, BrokerError(f"given back {DELIVERY_LIMIT} times"))
        else:
            asyncio.get_running_loop().call_later(AGAIN, self._it.receive, delivery)

    # -- noting how far it is ----------------------------------------------------------------------------------------

    async def keep_noting(self) -> None:
        """Note how far it is, every second, and before the reading gets too far ahead."""
        told = monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(NOTE_EVERY):
                    await self._note_now.wait()
            self._note_now.clear()
            await self.write()
            done, total = self.progress
            self._it.tell(f"backfilling: {done:,} of {total:,}")
            if monotonic() - told >= TELL_EVERY:
                told = monotonic()
                self._it.log.info("backfilling", done=done, of=total)

    async def write(self, *, last: bool = False, tries: int | None = None, **learned: int) -> None:
        """Note how far it is, and what was learned.

        Args:
            last: nothing more will be begun.
            tries: how often the next one was begun alone.
            learned: ``end`` or ``depth``.
        """
        async with self._noting:
            at, reached = self._position.next, self._position.reached
            same = self.note.tries if self.note.next == at else 0
            lately, self._noted = reached - self._noted, reached  # half of what may be ahead, at least; or of a second
            self._ahead = min(AHEAD, max(2 * self._it.settings.concurrency, 4 * lately))
            begun = reached if last else max(reached + self._ahead, self.note.begun)
            note = self.note.but(
                next=at,
                begun=self._careful if reached < self._careful else begun,
                tries=same if tries is None else tries,
                **learned,
            )
            if note != self.note:
                await self._it.send(note.message(self._it.service))
                self.note = note
        self._changed.set()

    @property
    def so_far(self) -> Note:
        """What is known when nothing is in hand."""
        at = self._position.next
        return self.note.but(next=at, begun=at, tries=0)


def _as_published(message: Message) -> Message:
    """A message of the log without its number."""
    headers = {name: value for name, value in message.headers.items() if name != "x-stream-offset"}
    return Message(
        message.exchange, message.key, message.body, message.content_type, message.type, message.correlation_id,
        message.app_id, message.timestamp, headers,
    )  # fmt: skip
