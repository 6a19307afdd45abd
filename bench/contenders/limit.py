"""The limit: a raw socket, frames made beforehand, nothing decoded. What RabbitMQ does when the client does nothing."""

from __future__ import annotations

import struct
import time
from typing import Any

from bench.amqp import Client, frame, method, short
from bench.job import Job, Seen
from bench.order import KEY

WINDOW = 1000
PREFETCH = 1000
CONFIRM, NACK, DELIVER = 60 << 16 | 80, 60 << 16 | 120, 60 << 16 | 60


def encoded(message: dict[str, Any]) -> bytes:
    """The frames of one publish, as our package writes them."""
    body = message["body"].encode()
    properties = struct.pack(">H", 0x9000 | 0x0400 | 0x0080 | 0x0040 | 0x0020 | 0x0008)
    properties += short(message["content_type"]) + b"\x02" + short(message["correlation_id"]) + short("0" * 24)
    properties += struct.pack(">Q", 1_700_000_000) + short(message["type"]) + short(message["app_id"])
    publish = method(1, 60, 40, b"\0\0" + short("events") + short(KEY) + b"\0")
    header = frame(2, 1, struct.pack(">HHQ", 60, 0, len(body)) + properties)
    return publish + header + b"".join(frame(3, 1, body[at : at + 131064]) for at in range(0, len(body), 131064))


def publish(job: Job, window: int = WINDOW) -> None:
    client, one = Client(job.url), encoded(job.message)
    client.call(method(1, 85, 10, b"\0"), 85, 11, before=True)
    sent = answered = 0
    times: list[float] = []
    kept = b""
    step = max(1, window // 4)
    some = one * step
    with job.measured():
        while answered < job.count:
            while sent < job.count and sent - answered <= window - step:
                now = min(step, job.count - sent)
                began = time.perf_counter()
                client.socket.sendall(some if now == step else one * now)
                sent += now
            data = kept + client.socket.recv(1 << 16)
            whole = len(data) // 21 * 21  # every frame that comes is a confirm of 21 bytes
            for at in range(0, whole, 21):
                kind, tag, multiple = struct.unpack_from(">IQB", data, at + 7)
                assert kind == CONFIRM, kind
                answered = max(answered, tag) if window == 1 or multiple else answered + (tag > 0)
            kept = data[whole:]
            if window == 1:
                times.append(time.perf_counter() - began)
    if window == 1:
        job.latencies(times)


def one_by_one(job: Job) -> None:
    publish(job, 1)


def consume(job: Job) -> None:
    """Counts deliveries, acknowledging in batches."""
    client, seen = Client(job.url), Seen(job)
    client.call(method(1, 60, 10, struct.pack(">IHB", 0, PREFETCH, 0)), 60, 11, before=True)
    for queue in job.queues:
        client.socket.sendall(method(1, 60, 20, b"\0\0" + short(queue) + short(queue) + b"\0" + b"\0\0\0\0"))
    order = type("Order", (), {"sent": 0})
    needle = struct.pack(">I", DELIVER)
    last = acknowledged = 0
    data = b""
    while not seen.all.is_set():
        data += client.socket.recv(1 << 20)
        at = 0
        while len(data) - at >= 8:
            size = int.from_bytes(data[at + 3 : at + 7])
            if len(data) - at < size + 8:
                break
            if data[at] == 1 and data[at + 7 : at + 11] == needle:
                tag_at = at + 12 + data[at + 11]
                last = int.from_bytes(data[tag_at : tag_at + 8])
                seen.take(order)
            at += size + 8
        data = data[at:]
        if last > acknowledged:  # a tag that is acknowledged twice closes the channel, and gives all back
            client.socket.sendall(method(1, 60, 80, struct.pack(">QB", last, 1)))
            acknowledged = last
    client.read_until_quiet(2)  # the last bodies; RabbitMQ then takes in the last acks, which it lost if we hung up
