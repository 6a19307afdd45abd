"""What answers at an address, before any login: AMQP, and the management API."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from datetime import UTC, datetime
from errno import errorcode
from itertools import product
from urllib.parse import parse_qs, urlsplit

from broker.tools.snapshot import Door

PATIENCE = 3.0
"""Seconds that a door may take to open."""
MANAGEMENT_ADDRESSES = (("http", 15672), ("https", 15671), ("https", 15672), ("http", 15671))
"""Where the management API usually is."""


async def ring(url: str) -> Door:
    """What answers at one address."""
    from broker.tools.node import version_in  # httpx takes a while to import

    parts = urlsplit(url)
    tls = parts.scheme == "amqps"
    host, port = parts.hostname or "localhost", parts.port or (5671 if tls else 5672)
    address = f"{_written(host)}:{port}"
    try:
        context = _context(parts.query) if tls else None
    except (OSError, ValueError) as error:
        return Door(address, why=f"its certificates cannot be used: {error}")
    greeting, expires, why = await _greet(host, port, context)
    told = version_in(greeting)
    if told is not None:
        return Door(address, told, expires=expires, cluster=_cluster(greeting))
    said, instead = await _why_not(host, port, why, tls=tls)
    return Door(address, why=said, instead=instead)


async def _why_not(host: str, port: int, error: BaseException | None, *, tls: bool) -> tuple[str, str]:
    """Why nobody greets us there, and how an address begins that would do."""
    from broker.tools.node import version_in  # httpx takes a while to import

    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        known = error.errno in errorcode  # a name that cannot be resolved has a number of another kind
        return (os.strerror(error.errno or 0) if known else error.strerror or str(error)).lower(), ""
    anything = ssl.create_default_context()
    anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
    said, _, _ = await _greet(host, port, None if tls else anything)
    if version_in(said) is not None:
        return ("it speaks no TLS", "amqp://") if tls else ("it speaks TLS", "amqps://")
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (?cafile=/path/to/ca.pem)", ""
    if isinstance(error, TimeoutError):
        return "no answer in time", ""
    return (str(error) if error else "what answers there is not AMQP"), ""


def _written(host: str) -> str:
    """A host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _context(query: str) -> ssl.SSLContext:
    """As the AMQP client makes it of an address."""
    of = {name: values[0] for name, values in parse_qs(query).items()}
    context = ssl.create_default_context(cafile=of.get("cafile"), capath=of.get("capath"))
    if of.get("certfile"):
        context.load_cert_chain(of["certfile"], of.get("keyfile"))
    if of.get("no_verify_ssl", "0") != "0":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _greet(
    host: str, port: int, context: ssl.SSLContext | None
) -> tuple[bytes, float | None, BaseException | None]:
    """What a server says first; days until its certificate ends; what went wrong."""
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.write(b"AMQP\x00\x00\x09\x01")
            said = await reader.read(4096)
    except (OSError, TimeoutError) as error:
        return b"", None, error
    finally:
        if writer is not None:
            writer.transport.abort()
    certificate = writer.get_extra_info("peercert") or {}
    ends = certificate.get("notAfter")
    now = datetime.now(UTC).timestamp()
    return said, (ssl.cert_time_to_seconds(ends) - now) / 86400 if ends else None, None


def _cluster(greeting: bytes) -> str:
    found = re.search(rb"\x0ccluster_nameS\x00\x00(..)", greeting, re.DOTALL)
    length = int.from_bytes(found[1], "big") if found else 0
    return greeting[found.end() : found.end() + length].decode(errors="replace") if found else ""


async def elsewhere(address: str, host: str) -> str:
    """Another address where a management API answers; empty: none does."""
    import httpx  # takes a while to import

    parts = urlsplit(address)
    hosts = dict.fromkeys([parts.hostname or host, host])
    places = [(scheme, parts.hostname or host, parts.port or 80) for scheme in ("http", "https")]
    places += [(scheme, name, port) for name, (scheme, port) in product(hosts, MANAGEMENT_ADDRESSES)]
    async with httpx.AsyncClient(timeout=PATIENCE, verify=False) as client:  # noqa: S501  (no login is sent)
        for scheme, name, port in dict.fromkeys(places):
            found = f"{scheme}://{_written(name)}:{port}"
            if found == address:
                continue
            try:
                answer = await client.get(f"{found}/api/whoami")
            except httpx.HTTPError:
                continue
            if "RabbitMQ" in answer.headers.get("www-authenticate", ""):
                return found
    return ""
