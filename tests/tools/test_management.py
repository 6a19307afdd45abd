"""The client of the management HTTP API, against a real RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from broker.errors import AccessRefused, ConnectionFailed, ContractError
from broker.tools.management import Management, ManagementFailed
from broker.tools.node import free_ports
from tests.waiting import until

if TYPE_CHECKING:
    from broker.tools.server import Server


async def _declare(management: Management, queue: str, exchange: str = "amq.topic", key: str = "order.placed") -> None:
    """A queue with a binding. The client itself declares nothing: topology belongs to the services."""
    vhost = management.vhost
    await management._send(
        "PUT", f"/queues/{vhost}/{queue}", {"durable": True, "arguments": {"x-queue-type": "quorum"}}
    )
    await management._send("POST", f"/bindings/{vhost}/e/{exchange}/q/{queue}", {"routing_key": key})


async def test_tells_the_version(management: Management, server: Server) -> None:
    assert await management.version() == server.version


async def no_consumers(management: Management, queue: str) -> bool:
    """Whether a queue is said to have none. For a moment after its declaration nothing is said."""
    return (await management.queue(queue)).consumers == 0


async def test_lists_what_the_management_ui_shows(management: Management) -> None:
    await _declare(management, "packing")
    (queue,) = await management.queues()
    assert (queue.name, queue.type, queue.arguments["x-queue-type"]) == ("packing", "quorum", "quorum")
    await until(lambda: no_consumers(management, "packing"))
    (binding,) = await management.bindings()
    assert (binding.source, binding.key, binding.destination) == ("amq.topic", "order.placed", "packing")
    assert "amq.topic" in {exchange.name for exchange in await management.exchanges() if exchange.durable}
    assert await management.connections() == []


async def test_publishes_peeks_takes_and_purges(management: Management) -> None:
    await _declare(management, "packing")
    assert await management.publish("amq.topic", "order.placed", "one", properties={"headers": {"broker-key": "x"}})
    assert not await management.publish("amq.topic", "nobody.listens", "two")
    for _ in range(2):  # looking does not remove
        (message,) = await management.peek("packing")
        assert (message.body, message.key, message.headers["broker-key"]) == ("one", "order.placed", "x")
    assert [message.body for message in await management.take("packing")] == ["one"]
    assert await management.peek("packing") == []
    await management.publish("amq.topic", "order.placed", "three")
    await management.purge("packing")
    assert await management.peek("packing") == []
    await management.delete_queue("packing")
    assert await management.queues() == []


async def test_bodies_that_are_not_text_come_as_base64(management: Management) -> None:
    await _declare(management, "packing")
    body = base64.b64encode(b"\xff\xfe").decode()
    await management.publish("amq.topic", "order.placed", body, encoding="base64")
    (message,) = await management.peek("packing")
    assert (message.encoding, message.body) == ("base64", body)
    assert "broker-key" not in message.headers


async def test_users_with_permissions(management: Management, server: Server) -> None:
    user = f"test-{uuid.uuid4().hex[:8]}"
    await management.create_user(user, "secret word", tags="management")
    try:
        await management.permit(user, configure="^$", write="^events$", read="^$")
        await management.permit_topics(user, "events", write="^order\\.", read="^$")
        url = f"amqp://{user}:secret%20word@127.0.0.1/{management.vhost}"
        async with Management(url, server.management_url) as other:
            assert await other.queues() == []
            with pytest.raises(AccessRefused, match="Not administrator"):
                await other.create_vhost("mine")
    finally:
        await management.delete_user(user)


async def test_tells_what_a_check_up_wants_to_know(management: Management, server: Server) -> None:
    await management.permit_topics(management.user, "events", write="^order", read=".*")
    await management._send(
        "PUT", f"/policies/{management.vhost}/short", {"pattern": "^pack", "definition": {"message-ttl": 1}}
    )
    assert "administrator" in (await management.whoami()).tags
    assert {"quorum_queue", "stream_queue"} & {flag.name for flag in await management.feature_flags()} or (
        int(server.version.split(".")[0]) >= 4  # which has them without a flag
    )
    (node,) = await management.nodes()
    assert node.running
    assert (node.disk_free or 0) > (node.disk_free_limit or 0) > 0
    (policy,) = await management.policies()
    assert (policy.name, policy.pattern, policy.definition, policy.operator) == (
        "short",
        "^pack",
        {"message-ttl": 1},
        False,
    )
    assert [may.configure for may in await management.permissions() if may.user == management.user] == [".*"]
    (topics,) = await management.topic_permissions()
    assert (topics.user, topics.exchange, topics.write) == (management.user, "events", "^order")
    clock = await management.clock()
    assert clock is not None
    assert abs((datetime.now(UTC) - clock).total_seconds()) < 60


async def test_virtual_hosts(management: Management, server: Server) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    await management.create_vhost(name)
    async with Management(f"amqp://127.0.0.1/{name}", server.management_url) as other:
        assert await other.queues() == []
    await management.delete_vhost(name)
    with pytest.raises(ManagementFailed, match="404"):
        await management.delete_vhost(name)


async def test_clears_a_virtual_host(management: Management) -> None:
    await _declare(management, "packing")
    await management._send("PUT", f"/exchanges/{management.vhost}/events", {"type": "topic", "durable": True})
    await management.clear()
    assert await management.queues() == []
    assert all(exchange.builtin for exchange in await management.exchanges())


async def test_a_wrong_password_is_refused_without_repeating_it(server: Server) -> None:
    async with Management("amqp://guest:hunter2@127.0.0.1/", server.management_url) as client:
        with pytest.raises(AccessRefused, match="Is the password right") as refused:
            await client.version()
    assert "hunter2" not in str(refused.value)


async def test_nobody_there_says_what_to_check() -> None:
    (port,) = free_ports(1)
    async with Management("amqp://127.0.0.1/", f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionFailed, match="Is the management plugin enabled"):
            await client.queues()


async def test_somebody_else_there_is_not_taken_for_rabbitmq() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nHello")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1") as other:
        port = other.sockets[0].getsockname()[1]
        async with Management("amqp://127.0.0.1/", f"http://127.0.0.1:{port}") as client:
            with pytest.raises(ManagementFailed, match="is not RabbitMQ's management API"):
                await client.queues()


async def test_a_request_that_rabbitmq_refuses_names_its_reason(management: Management) -> None:
    with pytest.raises(ManagementFailed, match="not_found"):
        await management.peek("nowhere")


@pytest.mark.parametrize(
    ("url", "management_url", "address", "vhost"),
    [
        ("amqp://one:1,two:2/shop", None, "http://one:15672", "shop"),
        ("amqp://one", "https://admin:word@ui:443", "https://ui:443", "/"),
        ("amqp://[::1]:5672/", None, "http://[::1]:15672", "/"),
        (None, None, "http://set:1", "from settings"),
    ],
)
async def test_where_the_api_is(
    url: str | None, management_url: str | None, address: str, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", "amqp://host/from%20settings")
    monkeypatch.setenv("BROKER_MANAGEMENT_URL", "http://guest:guest@set:1")
    async with Management(url, management_url) as client:
        assert (client.address, client.vhost) == (address, vhost)


@pytest.mark.parametrize(
    "wrong", ["http://me:hunter2@one:65536", "http://one:web", "http://one:0", "one:15672", "amqp://one", "http://[::1"]
)
def test_what_is_no_address_is_refused_without_repeating_it(wrong: str) -> None:
    with pytest.raises(ContractError, match=r"BROKER_MANAGEMENT_URL is not of the form http://.*\.$") as refused:
        Management("amqp://one", wrong)
    assert "hunter2" not in str(refused.value)
