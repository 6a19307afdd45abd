"""What answers at an address, before any login: with TLS and without, RabbitMQ or something else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from broker.settings import Settings
from broker.tools.checks import check_connection
from broker.tools.doctor import ask_management
from broker.tools.doors import elsewhere, ring
from broker.tools.management import Management
from broker.tools.node import free_ports
from broker.tools.server import Server
from broker.tools.snapshot import Snapshot

GREETING = b"\x01\x00\x00\x00\x00\x01\x00\x0ccluster_nameS\x00\x00\x00\x04shop\x07versionS\x00\x00\x00\x054.0.5\xce"
"""As RabbitMQ greets, as far as it is read."""
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgwNtTvXb1oxXdo0G4
gBxIPU9X0snUCKiUcnmmawhrg9uhRANCAAQYX/44pTjvMZd684qysQFLqbOcX9sx
EUL8lC/cm0FkuAlMYHNn/DWY84lsIq2oofILOOqv0gLmGy+zig4WmlCd
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBXDCCAQKgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAkxMjcuMC4w
LjEwIBcNMDAwMTAxMDAwMDAwWhgPMjEyNjAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CTEyNy4wLjAuMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBhf/jilOO8xl3rz
irKxAUups5xf2zERQvyUL9ybQWS4CUxgc2f8NZjziWwiraih8gs46q/SAuYbL7OK
DhaaUJ2jQzBBMA8GA1UdEQQIMAaHBH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAdBgNV
HQ4EFgQUkeImMdGqD8W1kdOHkq6yZ64WMVswCgYIKoZIzj0EAwIDSAAwRQIgZHBm
su/B/CsXj09eZpy5zqANJVKzJEgjVs4ULCqJpMICIQCZyIUxcSH0QA8yISX4Jq28
3Elcgt0XkNV9I5lyap5qMA==
-----END CERTIFICATE-----
"""
"""For 127.0.0.1, with its key, made for these tests. Nobody else trusts it."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    file = tmp_path / "certificate.pem"
    file.write_text(SELF_SIGNED)
    return file


@asynccontextmanager
async def speaking(said: bytes, certificate: Path | None = None) -> AsyncIterator[int]:
    """A server that says so to everybody; yields its port."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4096):
            writer.write(said)
        writer.close()

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    async with await asyncio.start_server(greet, "127.0.0.1", ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_rabbitmq_tells_its_version_and_its_cluster(server: Server) -> None:
    door = await ring(server.url)
    assert (door.version, door.why) == (server.version, "")
    assert door.cluster


async def test_nobody_there() -> None:
    (port,) = free_ports(1)
    door = await ring(f"amqp://127.0.0.1:{port}/")
    assert door.version is None
    assert "refused" in door.why
    assert (await ring("amqp://no-such-host.invalid/")).why


async def test_something_else_there() -> None:
    async with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        door = await ring(f"amqp://127.0.0.1:{port}/")
        assert (door.version, door.why, door.instead) == (None, "what answers there is not AMQP", "")


async def test_tls_that_is_trusted(certificate: Path) -> None:
    async with speaking(GREETING, certificate) as port:
        door = await ring(f"amqps://127.0.0.1:{port}/?cafile={certificate}")
        assert (door.version, door.cluster) == ("4.0.5", "shop")
        assert door.expires is not None
        assert door.expires > 14


async def test_tls_that_is_not_trusted_names_the_parameter_that_helps(certificate: Path) -> None:
    async with speaking(GREETING, certificate) as port:
        door = await ring(f"amqps://127.0.0.1:{port}/")
        assert door.version is None
        assert "not trusted" in door.why
        assert "?cafile=" in door.why
        assert (await ring(f"amqps://127.0.0.1:{port}/?no_verify_ssl=1")).version == "4.0.5"
        missing = await ring(f"amqps://127.0.0.1:{port}/?cafile={certificate}.not")
        assert "its certificates cannot be used" in missing.why


async def test_tls_on_one_side_only_is_told(certificate: Path) -> None:
    async with speaking(GREETING, certificate) as port:
        assert (await ring(f"amqp://127.0.0.1:{port}/")).instead == "amqps://"
    async with speaking(GREETING) as port:
        assert (await ring(f"amqps://127.0.0.1:{port}/")).instead == "amqp://"


async def test_a_management_api_under_another_scheme_is_found(certificate: Path) -> None:
    realm = b'WWW-Authenticate: Basic realm="RabbitMQ Management"'
    said = b"HTTP/1.1 401 Unauthorized\r\n" + realm + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with speaking(said, certificate) as port:
        assert await elsewhere(f"http://127.0.0.1:{port}", "127.0.0.1") == f"https://127.0.0.1:{port}"


async def test_a_management_api_behind_tls_is_read_by_whom_is_told_its_authority(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]"
    async with speaking(said, certificate) as port:
        address = f"https://127.0.0.1:{port}"
        settings = Settings(url=SecretStr("amqp://127.0.0.1:9/"), management_url=SecretStr(address))
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        (finding,) = [
            it for it in check_connection(await ask_management(Snapshot(settings=settings))) if address in it.what
        ]
        assert "is not trusted" in finding.what
        (helps,) = finding.commands
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert helps.startswith("export SSL_CERT_FILE=")
        async with Management.of(settings) as management:
            assert await management.queues() == []


async def test_a_management_api_on_its_usual_port_is_found(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    usual = int(server.management_url.rpartition(":")[2])
    monkeypatch.setattr("broker.tools.doors.MANAGEMENT_ADDRESSES", (("http", usual),))
    (port,) = free_ports(1)
    host = urlsplit(server.management_url).hostname or ""
    assert await elsewhere(f"http://{host}:{port}", host) == server.management_url
    monkeypatch.setattr("broker.tools.doors.MANAGEMENT_ADDRESSES", ())
    assert await elsewhere(f"http://127.0.0.1:{port}", "127.0.0.1") == ""
