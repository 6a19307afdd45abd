"""A connection that comes back by itself.

A link is one connection with one channel. Whatever breaks either (the network, the server, an operator, a refused
operation) is answered in one way: close both, connect again with backoff, set up again. One path to get right.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from errno import errorcode
from urllib.parse import urlencode, urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from pamqp.exceptions import PAMQPException
from structlog.typing import FilteringBoundLogger
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential
from yarl import URL

from broker.errors import AccessRefused, BrokerError, ConnectionFailed, TopologyConflict
from broker.rabbitmq.stream import Sockets
from broker.settings import Settings, readable

HEARTBEAT = 10
"""Seconds. RabbitMQ sends something at least every half of it, and gives a silent client up after two."""
SILENCE = 2 * HEARTBEAT
"""Seconds without a whole frame after which we give RabbitMQ up."""

FAILURES = (
    AMQPError, PAMQPException, ChannelInvalidStateError, OSError, TimeoutError, RuntimeError, StopAsyncIteration,
)  # fmt: skip
"""What aio-pika raises when a connection or channel is gone or refused: the last when a peer hangs up at once."""

UNCONFIRMED = 2.0, 15.0, 60.0
"""Seconds for which publishes may go without a confirm before we give the connection up: on one that has confirmed
nothing yet, on one that has, and the most that the first grows to, doubling each time. RabbitMQ 3.10, reached just when
a queue's leader has died, keeps to the dead one on that channel, and refuses every publish for ever."""

REDECLARE = 30
"""Seconds after which the topology is declared again."""


def translate(error: BaseException, url: str) -> BrokerError:
    """A failure to connect or to declare, in our terms."""
    text = reason(error)
    where = readable(url)
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, ProbableAuthenticationError) or "ACCESS_REFUSED - Login" in text:
        return AccessRefused(f"RabbitMQ at {where} refused the login. Check user and password in BROKER_URL.")
    if isinstance(error, ConnectionNotAllowed) or "Connection.OpenOk" in text:  # it closes instead of opening
        return AccessRefused(
            f"RabbitMQ at {where} has no such virtual host, or this user may not use it. "
            "Check the last part of BROKER_URL, or: rabbitmqctl add_vhost / set_permissions."
        )
    refusals: dict[type[BaseException], BrokerError] = {
        ChannelAccessRefused: AccessRefused(
            f"RabbitMQ at {where} refused a permission: {text}. docs/topology.md lists what is needed."
        ),
        ChannelPreconditionFailed: TopologyConflict(
            f"{text}. It exists on {where} with other arguments, which RabbitMQ never changes in place. "
            "Drain and delete it there, or use another name."
        ),
        ChannelNotFoundEntity: ConnectionFailed(f"RabbitMQ at {where} answers: {text}. Did somebody delete it?"),
    }
    otherwise = ConnectionFailed(f"No RabbitMQ answers at {where}: {text}. Is it running? Is BROKER_URL right?")
    return refusals.get(type(error), otherwise)


def wedged(queue: str, error: BaseException, *, log: bool = False) -> ConnectionFailed:
    """A queue that exists and does not work: RabbitMQ is busy, or was killed just after it was first declared, say.

    Args:
        log: it is the event log.
    """
    what, kept = ("queue", "What was in it is in the event log.")
    if log:
        what, kept = ("event log", "What is in it would be gone.")
    return ConnectionFailed(
        f"The {what} {queue!r} exists but does not work: {reason(error)}. A busy RabbitMQ comes to it. If it stays so, "
        f"RabbitMQ lost it in a crash: delete it then (rabbitmqctl delete_queue {queue}, or in the management UI), and "
        f"it is declared anew. {kept}"
    )


@contextlib.contextmanager
def uncancelled() -> Iterator[None]:
    """When a connection ends under a request, aiormq may cancel whoever waits for it. That is a failure, and no more: a
    task that nobody cancelled must not end by it."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("connection closed") from None


class Link:
    """A supervised connection for one purpose.

    Args:
        settings: where RabbitMQ is.
        name: who connects, and what for; the management UI shows it.
        declare: makes the topology so, after each connect and every 30 s: people delete bindings by mistake.
        use: called with the channel after each connect, before anybody else may use it.
        lost: called when the channel is gone, with what ended it; perhaps more than once.
        log: carries the service's name, and what the connection is for.
    """

    def __init__(  # noqa: PLR0913  (three of them are what it does when)
        self,
        settings: Settings,
        name: str,
        log: FilteringBoundLogger,
        *,
        declare: Callable[[], Awaitable[None]],
        use: Callable[[AbstractChannel], Awaitable[None]] | None = None,
        lost: Callable[[BaseException | None], None] = lambda error: None,
    ) -> None:
        self._settings = settings
        self._hosts = deque(settings.hosts)
        self._declare = declare
        self._use = use
        self._lost = lost
        self._log = log
        self._name = name
        self._connection: AbstractConnection | None = None
        self._channel: asyncio.Future[AbstractChannel] | None = None
        self._used: AbstractChannel | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._sockets = Sockets(None)
        self._broken = asyncio.Event()
        self._blocked = False
        self._waiting_since: float | None = None
        self._unconfirmed = False
        self._patience = self._first_patience = UNCONFIRMED[0]
        self._why = "never connected"
        self._since = datetime.now(UTC)
        self.connected_at = 0.0

    async def open(self) -> None:
        """Connect for the first time, and stay connected from then on.

        Raises:
            ConnectionFailed: nobody answered within ``BROKER_CONNECT_TIMEOUT``.
            AccessRefused, TopologyConflict: at once.
        """
        if self._supervisor is not None:
            return
        self._channel = asyncio.get_running_loop().create_future()
        timeout = self._settings.connect_timeout
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ConnectionFailed),
            stop=stop_after_delay(timeout),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            before_sleep=self._say_why,
            reraise=True,
        )
        try:
            async with asyncio.timeout(timeout + 1):  # the last try may be under way
                await retrying(self._connect)
        except TimeoutError:
            raise ConnectionFailed(f"No RabbitMQ answered at {self._settings.server} within {timeout:g} s.") from None
        self._supervisor = asyncio.create_task(self._supervise(), name=self._name)

    async def channel(self) -> AbstractChannel:
        """The channel, as soon as there is one. The caller brings the deadline."""
        assert self._channel is not None, "open() comes first"
        return await asyncio.shield(self._channel)

    @property
    def problem(self) -> str | None:
        """What is wrong right now, in words."""
        if self._channel is not None and self._channel.done():
            blocked = f"RabbitMQ blocks {self._name}: it is low on memory or disk"
            return blocked if self._blocked else None
        return f"{self._name} is not connected since {self._since:%H:%M:%S} UTC: {self._why}"

    @property
    def sockets(self) -> Sockets:
        """What is beneath the connection, for those who read and write frames of their own."""
        return self._sockets

    @property
    def frame_max(self) -> int:
        """Bytes of a frame, at most, as agreed with RabbitMQ."""
        assert self._connection is not None
        assert self._connection.transport is not None, "use() is called when connected"
        return int(self._connection.transport.connection.connection_tune.frame_max)

    def break_off(self, why: str, channel: AbstractChannel | None = None, error: BaseException | None = None) -> None:
        """Give this connection up and make another.

        Args:
            why: shown to people.
            channel: what broke. If it is an earlier connection's, told late, the present one lives on.
            error: what RabbitMQ said, if it did.
        """
        if self._broken.is_set() or (channel is not None and channel is not self._used):
            return
        self._why = why
        self._used = None
        self._broken.set()
        self._lost(error)
        if self._channel is not None and self._channel.done():
            self._channel = asyncio.get_running_loop().create_future()
            self._since = datetime.now(UTC)

    def sent(self) -> None:
        """A publish waits for its confirm."""
        if self._waiting_since is None:
            self._waiting_since = asyncio.get_running_loop().time()

    def confirmed(self) -> None:
        """RabbitMQ confirmed a publish. A refusal is no sign of health."""
        self._waiting_since = None
        self._patience, self._first_patience = UNCONFIRMED[1], UNCONFIRMED[0]

    async def _supervise(self) -> None:
        while True:
            try:
                with uncancelled():
                    await self._until_broken()
            except Exception as error:  # whatever it is, whoever supervises lives on
                self._log.exception("unexpected", error=str(error))
                self.break_off(reason(error))
            self._log.warning("disconnected", error=self._why)
            await self._drop()
            self._hosts.rotate(-1)
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(Exception),
                wait=wait_random_exponential(multiplier=0.1, max=2),
                before_sleep=self._say_why,
            )
            await retrying(self._connect)

    async def _until_broken(self) -> None:
        """Wait, and look every second whether the peer still speaks, and whether it blocks us."""
        silent, declare_at = False, self.connected_at + REDECLARE
        while not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._broken.wait()
            was_silent, silent = silent, self._sockets.silence > SILENCE
            if silent and was_silent:  # twice: after the event loop stood still, what came meanwhile is read first
                self._sockets.abort()
                what = "sent half a frame or half a message, and no more" if self._sockets.half else "was silent"
                self.break_off(f"RabbitMQ {what} for {self._sockets.silence:.0f} s")
            await self._notice_blocked()
            self._notice_unconfirmed()
            if not self._broken.is_set() and asyncio.get_running_loop().time() > declare_at:
                declare_at += REDECLARE
                await self._declare_again()

    async def _declare_again(self) -> None:
        try:
            async with asyncio.timeout(SILENCE):
                await self._declare()
        except (*FAILURES, BrokerError) as error:
            self.break_off(str(translate(error, self._hosts[0])))

    async def _notice_blocked(self) -> None:
        blocked = False
        if self._connection is not None and self._connection.transport is not None:
            try:
                async with asyncio.timeout(0):
                    await self._connection.transport.connection.ready()
            except TimeoutError:
                blocked = True
        if blocked != self._blocked:
            self._blocked = blocked
            self._log.warning("blocked") if blocked else self._log.info("unblocked")

    def _notice_unconfirmed(self) -> None:
        if self._blocked:
            self._waiting_since = None
        since = self._waiting_since
        waited = 0.0 if since is None else asyncio.get_running_loop().time() - since
        was_unconfirmed, self._unconfirmed = self._unconfirmed, waited > self._patience
        if self._unconfirmed and was_unconfirmed:  # twice, as above
            self._first_patience = min(2 * self._first_patience, UNCONFIRMED[2])
            self.break_off(f"RabbitMQ confirmed nothing for {waited:.0f} s")

    def _say_why(self, state: RetryCallState) -> None:
        """Say a new reason once; an outage of hours is not a line every five seconds."""
        error = state.outcome.exception() if state.outcome else None
        why = str(error) or type(error).__name__
        if why != self._why:
            self._why = why
            self._log.warning("connecting", error=why)

    async def _connect(self) -> None:
        """Try each host once, in turn, the one that failed last: it may be silent, and cost time."""
        error: BrokerError | None = None
        for _ in range(len(self._hosts)):
            url = self._hosts[0]
            try:
                return await self._connect_to(url)
            except FAILURES as failure:
                await self._drop()
                error = translate(failure, url)
            except BrokerError as refused:
                await self._drop()
                error = refused
            self._hosts.rotate(-1)
        assert error is not None, "settings hold at least one host"
        raise error

    async def _connect_to(self, url: str) -> None:
        self._broken.clear()
        self._waiting_since, self._patience = None, self._first_patience
        async with asyncio.timeout(self._settings.connect_timeout / len(self._settings.hosts)):
            with uncancelled():
                channel = await self._set_up(url)
        if self._broken.is_set():
            raise ConnectionFailed(f"The connection to {readable(url)} broke while it was set up: {self._why}")
        assert self._channel is not None
        self.connected_at = asyncio.get_running_loop().time()
        self._used = channel
        self._channel.set_result(channel)
        self._log.info("connected", server=readable(url))

    async def _set_up(self, url: str) -> AbstractChannel:
        """Open a connection and a channel, declare, and begin to use it."""
        separator = "&" if urlsplit(url).query else "?"
        query = urlencode({"heartbeat": HEARTBEAT, "name": self._name})
        self._connection = connection = aio_pika.Connection(URL(f"{url}{separator}{query}"))
        self._sockets = connection.kwargs["transport_factory"] = Sockets(
            self.break_off if self._settings.direct else None
        )
        await connection.connect()

        def on_close(_: object, error: BaseException | None) -> None:
            if self._connection is connection:
                self.break_off(reason(error), error=error)

        connection.close_callbacks.add(on_close)
        self._opened = connection.channel(publisher_confirms=True, on_return_raises=True)
        await self._opened.initialize()
        self._opened.close_callbacks.add(on_close)
        channel = await self._opened.get_underlay_channel()
        await self._declare()
        if self._use is not None:
            await self._use(channel)
        return channel

    async def another_channel(self) -> AbstractChannel:
        """A channel beside, with confirms, whose end concerns nobody else. It ends with the connection."""
        if self._connection is None:
            raise ConnectionFailed("not connected")
        with uncancelled():
            opened = self._connection.channel(publisher_confirms=True)
            await opened.initialize()
            return await opened.get_underlay_channel()

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[AbstractChannel]:
        """A channel for one thing that RabbitMQ may answer by closing it."""
        if self._connection is None:
            raise ConnectionFailed("not connected")
        opened = self._connection.channel(publisher_confirms=False)
        try:
            with uncancelled():
                await opened.initialize()
                yield await opened.get_underlay_channel()
        finally:
            with contextlib.suppress(*FAILURES), uncancelled():
                await opened.close()

    async def _drop(self) -> None:
        self._lost(None)
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*FAILURES), uncancelled():
                async with asyncio.timeout(2):
                    await connection.close()
            self._sockets.abort()

    async def close(self) -> None:
        """Close for good."""
        if self._supervisor is not None:
            while not self._supervisor.done():  # again: aiormq swallows a cancellation that comes while it closes
                self._supervisor.cancel()
                await asyncio.wait([self._supervisor], timeout=0.5)
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self._drop()
        if self._channel is not None:
            self._channel = asyncio.get_running_loop().create_future()
            self._channel.set_exception(ConnectionFailed("This broker was closed. Open another, or publish before."))
            self._channel.exception()  # nobody may be waiting for it


def reason(error: BaseException | None) -> str:
    """A failure in words."""
    if error is None or isinstance(error, asyncio.CancelledError):
        return "connection closed"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if error.args and isinstance(error.args[0], int) and error.args[0] in errorcode:
        return os.strerror(error.args[0])
    return " ".join(str(part) for part in error.args if part is not None) or type(error).__name__
