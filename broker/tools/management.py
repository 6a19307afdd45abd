"""RabbitMQ's management HTTP API, as far as this project needs it.

What the management UI shows, as typed values, but fresher: counts of messages are asked for without the UI's
statistics, which lag by 5 s. They still come from the queues' own reports, every 5 s unless ``quorum_tick_interval``
says otherwise: good for people and for waiting, never for deciding whether an event is safe.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import SplitResult, quote, unquote, urlsplit

import httpx
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from broker.errors import AccessRefused, BrokerError, ConnectionFailed, ContractError
from broker.settings import Settings, hosts_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

DEFAULT_PORT = 15672
WRONG_URL = "BROKER_MANAGEMENT_URL is not of the form http://user:password@host:15672 (https:// for TLS)."


class ManagementFailed(BrokerError):
    """The management API refused a request for another reason than the login, which the message names."""


class _Passing(ManagementFailed):
    """RabbitMQ failed over a request; it may not the next time."""


Table: TypeAlias = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]
"""Arguments, headers or properties. RabbitMQ writes an empty table as an empty list."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Queue(_Answer):
    """A queue or stream with its counts."""

    name: str
    type: str = "classic"
    arguments: Table = {}
    ready: int = Field(0, validation_alias=AliasChoices("messages_ready", "ready"))
    """Messages waiting."""
    unacked: int = Field(0, validation_alias=AliasChoices("messages_unacknowledged", "unacked"))
    """Messages delivered and not acknowledged."""
    consumers: int | None = None
    """Consumers, up to 5 s ago; known when one queue is asked for, not in a list."""


class Exchange(_Answer):
    """An exchange. The default exchange has the name ``""``."""

    name: str
    type: str
    durable: bool
    arguments: Table = {}

    @property
    def builtin(self) -> bool:
        """Whether every virtual host has it."""
        return not self.name or self.name.startswith("amq.")


class Binding(_Answer):
    """What routes from ``source``, an exchange, to ``destination``."""

    source: str
    destination: str
    destination_type: Literal["queue", "exchange"]
    key: str = Field(validation_alias=AliasChoices("routing_key", "key"))
    arguments: Table = {}


class Message(_Answer):
    """A message as "Get messages" of the management UI shows it."""

    body: str = Field(validation_alias=AliasChoices("payload", "body"))
    """Text, or base64 where ``encoding`` says so."""
    encoding: Literal["string", "base64"] = Field(
        "string", validation_alias=AliasChoices("payload_encoding", "encoding")
    )
    exchange: str
    key: str = Field(validation_alias=AliasChoices("routing_key", "key"))
    redelivered: bool
    properties: Table

    @property
    def headers(self) -> dict[str, Any]:
        """The message's headers; empty when it has none."""
        headers = self.properties.get("headers") or {}
        return dict(headers)


class Connection(_Answer):
    """A client's connection."""

    name: str
    user: str
    client_properties: Table = {}


class Sample(_Answer):
    """How many messages there had been at a time."""

    count: int = Field(validation_alias=AliasChoices("sample", "count"))
    at: datetime = Field(validation_alias=AliasChoices("timestamp", "at"))


class _Rate(_Answer):
    rate: float = 0.0
    samples: tuple[Sample, ...] = ()


class Activity(_Answer):
    """What happens at a queue: messages a second, over the last seconds, that came and that were acknowledged."""

    published: float = 0.0
    acknowledged: float = 0.0
    consumers: int = 0


class _Stats(_Answer):
    publish: int = 0
    publish_details: _Rate = _Rate()
    ack_details: _Rate = _Rate()


class _QueueStats(_Answer):
    name: str
    consumers: int = 0
    message_stats: Annotated[_Stats, BeforeValidator(lambda value: value or {})] = _Stats()


class _Consumer(_Answer):
    class _Queue(_Answer):
        name: str

    queue: _Queue
    consumer_tag: str


class Node(_Answer):
    """A node of the cluster. Sizes are in bytes; None: it does not say, being down."""

    name: str
    running: bool = True
    mem_alarm: bool = False
    disk_free_alarm: bool = False
    mem_used: int | None = None
    mem_limit: int | None = None
    disk_free: int | None = None
    disk_free_limit: int | None = None
    partitions: tuple[str, ...] = ()
    """Nodes that it has lost sight of."""


class Policy(_Answer):
    """A policy: what RabbitMQ adds to the arguments of queues and exchanges that its pattern matches."""

    name: str
    pattern: str
    apply_to: str = Field("all", validation_alias=AliasChoices("apply-to", "apply_to"))
    definition: Table = {}
    priority: int = 0
    operator: bool = False
    """An operator's, which is applied beside the other."""


class FeatureFlag(_Answer):
    """Something that RabbitMQ can do once all nodes are of a version that can, and somebody has switched it on."""

    name: str
    state: str
    stability: str = "stable"


class Identity(_Answer):
    """Whom the management API takes us for."""

    name: str
    tags: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
    ] = ()


class Permission(_Answer):
    """What a user may do, as regular expressions on names."""

    user: str
    configure: str
    write: str
    read: str


class TopicPermission(_Answer):
    """Which keys a user may publish to a topic exchange, and by which patterns it may bind, as regular expressions."""

    user: str
    exchange: str
    write: str
    read: str


class _Overview(_Answer):
    rabbitmq_version: str
    cluster_name: str = ""


_QUEUES = TypeAdapter(list[Queue])
_EXCHANGES = TypeAdapter(list[Exchange])
_BINDINGS = TypeAdapter(list[Binding])
_MESSAGES = TypeAdapter(list[Message])
_STATS = TypeAdapter(list[_QueueStats])
_CONSUMERS = TypeAdapter(list[_Consumer])
_NODES = TypeAdapter(list[Node])
_CONNECTIONS = TypeAdapter(list[Connection])
_POLICIES = TypeAdapter(list[Policy])
_FLAGS = TypeAdapter(list[FeatureFlag])
_PERMISSIONS = TypeAdapter(list[Permission])
_TOPIC_PERMISSIONS = TypeAdapter(list[TopicPermission])


class Management:
    """A client of one virtual host's management API; ``async with`` closes it.

    Args:
        url: the AMQP address, whose login and virtual host are used; None: ``BROKER_URL``.
        management_url: address of the API, with or without a login of its own; None: ``BROKER_MANAGEMENT_URL``, else
            port 15672 of the AMQP address's first host.
        timeout: seconds that one request may take.

    Raises:
        ContractError: ``management_url`` is no address.

    Every method raises :exc:`ConnectionFailed` when nothing answers, :exc:`AccessRefused` when the login or one of its
    permissions is not enough, :exc:`ManagementFailed` for everything else.
    """

    def __init__(self, url: str | None = None, management_url: str | None = None, *, timeout: float = 10.0) -> None:
        if url is None:
            settings = Settings()
            url = settings.url.get_secret_value()
            if management_url is None and settings.management_url is not None:
                management_url = settings.management_url.get_secret_value()
        address = urlsplit(hosts_of(url)[0])
        host = address.hostname or "localhost"
        api = _parts_of(management_url or f"http://{f'[{host}]' if ':' in host else host}:{DEFAULT_PORT}")
        login = api if api.username else address
        self.vhost = unquote(address.path[1:]) or "/"
        self.address = f"{api.scheme}://{api.netloc.rpartition('@')[2]}"
        self.user = unquote(login.username or "guest")
        self._client = httpx.AsyncClient(
            base_url=f"{self.address}{api.path.rstrip('/')}/api",
            auth=(self.user, unquote(login.password or "guest")),
            timeout=timeout,
            limits=httpx.Limits(max_keepalive_connections=0),  # RabbitMQ closes idle ones just when they are used again
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The management API that belongs to these settings."""
        address = settings.management_url
        return cls(settings.url.get_secret_value(), address.get_secret_value() if address else None)

    async def version(self) -> str:
        """RabbitMQ's version, such as ``4.0.5``."""
        return _Overview.model_validate_json(await self._get("/overview")).rabbitmq_version

    async def cluster(self) -> str:
        """The name of RabbitMQ's cluster, which it has also when it is a single node."""
        return _Overview.model_validate_json(await self._get("/overview")).cluster_name

    async def queues(self) -> list[Queue]:
        """All queues and streams of the virtual host."""
        return _QUEUES.validate_json(
            await self._get(f"/queues/{self._vhost}?disable_stats=true&enable_queue_totals=true")
        )

    async def queue(self, name: str) -> Queue:
        """One queue, with its consumers."""
        described = Queue.model_validate_json(await self._get(f"/queues/{self._vhost}/{_quoted(name)}"))
        counted = {queue.name: queue for queue in await self.queues()}.get(name, described)
        return described.model_copy(update={"ready": counted.ready, "unacked": counted.unacked})

    async def activity(self) -> dict[str, Activity]:
        """What happens at each queue, up to 5 s ago."""
        found = _STATS.validate_json(await self._get(f"/queues/{self._vhost}?columns=name,consumers,message_stats"))
        return {
            it.name: Activity(
                published=it.message_stats.publish_details.rate,
                acknowledged=it.message_stats.ack_details.rate,
                consumers=it.consumers,
            )
            for it in found
        }

    async def published(self, queue: str, age: timedelta) -> tuple[Sample, ...]:
        """How many messages had been published to a queue by when: now, lately, and by the minute as far as known.

        What came since RabbitMQ's last sample it tells of as if it had always been there. So the last minutes are asked
        for by five seconds, its shortest; for so long, a queue's first events seem to be as old as it can tell.
        """
        found: list[Sample] = []
        for seconds, every in ((120, 5), (round(age.total_seconds()), 60)):
            query = f"msg_rates_age={seconds}&msg_rates_incr={every}"
            answer = await self._get(f"/queues/{self._vhost}/{_quoted(queue)}?{query}")
            stats = _QueueStats.model_validate_json(answer).message_stats
            found += (Sample(count=stats.publish, at=datetime.now(UTC)), *stats.publish_details.samples)
        return tuple(found)

    async def consumer_tags(self) -> dict[str, list[str]]:
        """The tags of all consumers, by queue. A new one may be missing for up to 5 s."""
        tags: dict[str, list[str]] = {}
        for consumer in _CONSUMERS.validate_json(await self._get(f"/consumers/{self._vhost}")):
            tags.setdefault(consumer.queue.name, []).append(consumer.consumer_tag)
        return tags

    async def alarms(self) -> list[str]:
        """What is wrong with RabbitMQ's nodes, in words. It takes the tag 'monitoring'."""
        nodes = await self.nodes()
        return [
            *(f"{node.name} is low on memory" for node in nodes if node.mem_alarm),
            *(f"{node.name} is low on disk" for node in nodes if node.disk_free_alarm),
            *(f"{node.name} is down" for node in nodes if not node.running),
        ]

    async def nodes(self) -> list[Node]:
        """The nodes of the cluster. It takes the tag 'monitoring'."""
        return _NODES.validate_json(await self._get("/nodes"))

    async def whoami(self) -> Identity:
        """Whom RabbitMQ takes us for. It takes a tag, whichever."""
        return Identity.model_validate_json(await self._get("/whoami"))

    async def clock(self) -> datetime | None:
        """The time on the clock of the node that answers, to a second; None if it does not say."""
        answer = await self._answer("GET", "/whoami")
        try:
            return parsedate_to_datetime(answer.headers.get("date", "")).replace(tzinfo=UTC)  # always GMT
        except ValueError:
            return None

    async def feature_flags(self) -> list[FeatureFlag]:
        """All feature flags. It takes the tag 'administrator'."""
        return _FLAGS.validate_json(await self._get("/feature-flags"))

    async def policies(self) -> list[Policy]:
        """The policies of the virtual host, those of operators included."""
        users = _POLICIES.validate_json(await self._get(f"/policies/{self._vhost}"))
        operators = _POLICIES.validate_json(await self._get(f"/operator-policies/{self._vhost}"))
        return [*users, *(policy.model_copy(update={"operator": True}) for policy in operators)]

    async def permissions(self) -> list[Permission]:
        """What each user may do in the virtual host. It takes the tag 'administrator'."""
        return _PERMISSIONS.validate_json(await self._get(f"/vhosts/{self._vhost}/permissions"))

    async def topic_permissions(self) -> list[TopicPermission]:
        """What limits each user on topic exchanges of the virtual host. It takes the tag 'administrator'."""
        return _TOPIC_PERMISSIONS.validate_json(await self._get(f"/vhosts/{self._vhost}/topic-permissions"))

    async def exchanges(self) -> list[Exchange]:
        """All exchanges of the virtual host, RabbitMQ's own included."""
        return _EXCHANGES.validate_json(await self._get(f"/exchanges/{self._vhost}"))

    async def bindings(self) -> list[Binding]:
        """All bindings of the virtual host, but those of the default exchange, which has one to each queue."""
        found = _BINDINGS.validate_json(await self._get(f"/bindings/{self._vhost}"))
        return [binding for binding in found if binding.source]

    async def connections(self) -> list[Connection]:
        """The connections of all clients to the virtual host."""
        return _CONNECTIONS.validate_json(await self._get(f"/vhosts/{self._vhost}/connections"))

    async def close_connection(self, name: str) -> None:
        """Close a client's connection, as an operator would."""
        await self._send("DELETE", f"/connections/{_quoted(name)}")

    async def peek(self, queue: str, count: int = 10, *, most: int | None = None) -> list[Message]:
        """Look at the first messages, at no more than ``most`` bytes of each body, and put them back.

        Each look counts as one delivery.
        """
        return await self._fetch(queue, count, "ack_requeue_true", most)

    async def take(self, queue: str, count: int = 10) -> list[Message]:
        """Fetch the first messages and remove them."""
        return await self._fetch(queue, count, "ack_requeue_false")

    async def _fetch(self, queue: str, count: int, mode: str, most: int | None = None) -> list[Message]:
        cut = {} if most is None else {"truncate": most}
        wanted = {"count": count, "ackmode": mode, "encoding": "auto"} | cut
        answer = await self._send("POST", f"/queues/{self._vhost}/{_quoted(queue)}/get", wanted)
        return _MESSAGES.validate_json(answer)

    async def publish(
        self,
        exchange: str,
        key: str,
        body: str,
        *,
        encoding: Literal["string", "base64"] = "string",
        properties: Mapping[str, object] | None = None,
    ) -> bool:
        """Publish a message just as it is given, for tests and demonstrations; whether some queue is bound for it."""
        message = {"routing_key": key, "payload": body, "payload_encoding": encoding, "properties": properties or {}}
        answer = await self._send("POST", f"/exchanges/{self._vhost}/{_quoted(exchange)}/publish", message)
        return b'"routed":true' in answer.replace(b" ", b"")

    async def purge(self, queue: str) -> None:
        """Delete all messages that wait in the queue."""
        await self._send("DELETE", f"/queues/{self._vhost}/{_quoted(queue)}/contents")

    async def delete_queue(self, queue: str) -> None:
        """Delete a queue with everything in it."""
        await self._send("DELETE", f"/queues/{self._vhost}/{_quoted(queue)}")

    async def clear(self) -> None:
        """Delete all queues and exchanges of the virtual host."""
        for queue in await self.queues():
            await self.delete_queue(queue.name)
        for exchange in await self.exchanges():
            if not exchange.builtin:
                await self._send("DELETE", f"/exchanges/{self._vhost}/{_quoted(exchange.name)}")

    async def create_vhost(self, name: str) -> None:
        """Create a virtual host that this client's user may do everything in."""
        await self._send("PUT", f"/vhosts/{_quoted(name)}", {})
        await self.permit(self.user, vhost=name)

    async def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with everything in it."""
        await self._send("DELETE", f"/vhosts/{_quoted(name)}")

    async def create_user(self, name: str, password: str, tags: str = "") -> None:
        """Create a user, without any permission, or change its password and tags."""
        await self._send("PUT", f"/users/{_quoted(name)}", {"password": password, "tags": tags})

    async def delete_user(self, name: str) -> None:
        """Delete a user."""
        await self._send("DELETE", f"/users/{_quoted(name)}")

    async def permit(
        self, user: str, *, configure: str = ".*", write: str = ".*", read: str = ".*", vhost: str | None = None
    ) -> None:
        """Set what a user may do, as regular expressions on names; in this virtual host unless another is named."""
        permissions = {"configure": configure, "write": write, "read": read}
        await self._send("PUT", f"/permissions/{_quoted(vhost or self.vhost)}/{_quoted(user)}", permissions)

    async def permit_topics(self, user: str, exchange: str, *, write: str, read: str) -> None:
        """Set which routing keys a user may publish to a topic exchange, and which patterns it may bind."""
        permissions = {"exchange": exchange, "write": write, "read": read}
        await self._send("PUT", f"/topic-permissions/{self._vhost}/{_quoted(user)}", permissions)

    async def close(self) -> None:
        """Close the HTTP connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _vhost(self) -> str:
        return _quoted(self.vhost)

    async def _get(self, path: str) -> bytes:
        """Reading is tried again: RabbitMQ answers 500 for a moment while a queue comes or goes."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Passing), stop=stop_after_delay(3), wait=wait_fixed(0.1), reraise=True
        )
        return await retrying(self._send, "GET", path)

    async def _send(self, method: str, path: str, content: Mapping[str, object] | None = None) -> bytes:
        return (await self._answer(method, path, content)).content

    async def _answer(self, method: str, path: str, content: Mapping[str, object] | None = None) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, json=content)
        except httpx.HTTPError as error:
            raise ConnectionFailed(
                f"The management API does not answer at {self.address} ({type(error).__name__}). Is the management "
                "plugin enabled (rabbitmq-plugins enable rabbitmq_management)? Is BROKER_MANAGEMENT_URL right?"
            ) from error
        if answer.is_success and answer.content and "json" not in answer.headers.get("content-type", ""):
            raise ManagementFailed(
                f"What answers at {self.address} is not RabbitMQ's management API. Is BROKER_MANAGEMENT_URL right?"
            )
        if answer.is_success:
            return answer
        raise self._refusal(answer, f"{method} {path}")

    def _refusal(self, answer: httpx.Response, request: str) -> BrokerError:
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return AccessRefused(
                f"The management API at {self.address} refuses {request} to the user {self.user!r} "
                f"({_reason(answer)}). Is the password right? Has the user a tag (rabbitmqctl set_user_tags): "
                "'management' to look, 'administrator' to change users and virtual hosts? "
                f"Has it permissions in {self.vhost!r}?"
            )
        kind = _Passing if answer.is_server_error else ManagementFailed
        return kind(f"{request} at {self.address}: {_reason(answer)}.")


def _reason(answer: httpx.Response) -> str:
    try:
        told = answer.json()
    except ValueError:
        return f"status {answer.status_code}"
    words = [str(told[part]) for part in ("error", "reason") if part in told] if isinstance(told, dict) else []
    return f"status {answer.status_code}, {', '.join(words)}" if words else f"status {answer.status_code}"


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _parts_of(url: str) -> SplitResult:
    """The address of a management API, taken apart.

    Raises:
        ContractError: it is none. The message never repeats it, since it may hold a password.
    """
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:  # reading the port validates it
            return parts
    except (ValueError, httpx.InvalidURL):
        pass
    raise ContractError(WRONG_URL)
