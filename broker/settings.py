"""The environment, read in one place.

Every setting is an environment variable with the prefix ``BROKER_``; nothing else in the package reads the environment.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

WRONG_URL = (
    "BROKER_URL is not of the form amqp://user:password@host:5672/vhost (amqps:// for TLS); "
    "several are separated by commas"
)
NEXT_URL = re.compile(r",(?=\s*amqps?://)")

Seconds = Annotated[float, Field(gt=0)]
Age = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}[YMDhms]$")]
"""A duration as RabbitMQ writes it, ``7D``."""
AGES = {"Y": 365 * 86400, "M": 30 * 86400, "D": 86400, "h": 3600, "m": 60, "s": 1}


SchemaName = Annotated[
    str | None,
    Field(
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="The schema of the tables of inbox and outbox, on PostgreSQL. Unset: the connection's default.",
    ),
]


class SchemaSettings(BaseSettings):
    """What `broker.sql` has to know when it is imported: its tables are mapped then. The rest is in `Settings`."""

    model_config = SettingsConfigDict(env_prefix="BROKER_", env_ignore_empty=True, frozen=True, extra="ignore")

    database_schema: SchemaName = None


class Settings(BaseSettings):
    """How to reach RabbitMQ and how to behave. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="BROKER_", env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    url: SecretStr = Field(
        default=SecretStr("amqp://guest:guest@localhost:5672/"),
        description="RabbitMQ's address, `amqp://user:password@host:port/vhost` or `amqps://…` (TLS, verified). "
        "Several hosts of one cluster: `amqp://user:password@one:5672,two:5672/vhost`, or several addresses, "
        "comma-separated or as a list; tried in turn.",
    )
    management_url: SecretStr | None = Field(
        default=None,
        description="Address of RabbitMQ's management API, `http://user:password@host:15672`. "
        "Unset: port 15672 of the first host, with the login of `BROKER_URL`.",
    )
    exchange: str = Field(
        default="events", min_length=1, max_length=200, description="The topic exchange of all events."
    )
    log: bool = Field(
        default=True,
        description="Keep every event in the event log, the stream `<exchange>.log`.",
    )
    log_max_age: Age = Field(
        default="7D",
        description="How long the event log keeps events (`7D`, `12h`). Used by whoever creates the log.",
    )
    log_max_bytes: int = Field(
        default=5_000_000_000,
        ge=100_000_000,
        description="How large the event log may grow before its oldest events go. Used by whoever creates the log.",
    )
    record_handlings: bool = Field(
        default=True,
        description="Record in the event log what became of each event in each service, for `broker story`. "
        "Published to the exchange `<exchange>.handled`, up to 2,000 handlings or one second at a time.",
    )
    backfill_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="The share of one processor that a service's process takes while it backfills, so that it does not "
        "hold up what happens now. A thousand events a second are handled in any case, if the handlers can. "
        "1: as fast as it can.",
    )
    concurrency: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="How many handlers run at a time in one process. Above 1 no order is promised.",
    )
    prefetch: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="How many deliveries a process holds at a time. Unset: 10 × `BROKER_CONCURRENCY`.",
    )
    publish_timeout: Seconds = Field(
        default=10,
        description="Deadline of a publish, waiting for a reconnect included; then `NotConfirmed`.",
    )
    connect_timeout: Seconds = Field(
        default=10, description="How long the first connection may take, all tries together, before `ConnectionFailed`."
    )
    shutdown_timeout: Seconds = Field(
        default=30, description="How long a service may finish what is in hand after SIGTERM. The rest is given back."
    )
    handler_timeout: Seconds = Field(
        default=300, description="How long one handling may take. Beyond it, it counts as a failure and is retried."
    )
    pause_window: int = Field(
        default=50, ge=1, le=10_000, description="How many of its last handlings a service looks at to pause."
    )
    pause_failures: float = Field(
        default=0.9, gt=0, description="The share of them that must have failed for it to pause. Above 1: never."
    )
    pause_seconds: Seconds = Field(
        default=10, description="How long a service pauses before it tries one delivery, and resumes if that succeeds."
    )
    max_message_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        description="Largest event accepted for publishing. RabbitMQ 4 takes 16 MiB unless configured otherwise.",
    )
    direct: bool = Field(
        default=True,
        description="Write and read events' frames ourselves, several times faster; `off` leaves them to aio-pika.",
    )
    database: SecretStr | None = Field(
        default=None,
        description="The database of `broker relay` and `broker database`, where none is named: "
        "`postgresql+asyncpg://user:password@host/name` or `sqlite+aiosqlite:///path`.",
    )
    database_schema: SchemaName = None
    relay: bool = Field(
        default=True,
        description="A service with a database publishes what is in its outbox. `off`: a `broker relay` does.",
    )
    inbox_max_age: Age | None = Field(
        default=None,
        description="How long a service's inbox remembers what was handled (`60D`). Unset: its retry ladder + "
        "`BROKER_LOG_MAX_AGE` + 30 days for dead letters + 1 day.",
    )
    health_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of a service's health over HTTP (`/live`, `/ready`). Unset: off.",
    )
    health_host: str = Field(default="127.0.0.1", description="Address on which health is served.")
    modules: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("services",),
        description="Where the command line looks for events and services: modules, comma-separated. "
        "Packages are searched.",
    )
    logging_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least level of log lines. `debug` shows each event published and handled.",
    )
    logging_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`auto`: for people on a terminal, JSON lines otherwise."
    )

    @field_validator("modules", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("url", mode="before")
    @classmethod
    def _join(cls, value: object) -> object:
        """Several addresses, as a list or as JSON, become one text."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(WRONG_URL) from None
        if isinstance(value, list | tuple):
            if not value or not all(isinstance(part, str | SecretStr) for part in value):
                raise ValueError(WRONG_URL)
            return ",".join(part.get_secret_value() if isinstance(part, SecretStr) else part for part in value)
        return value

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        hosts_of(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_prefetch(self) -> Self:
        if self.prefetch is not None and self.prefetch < self.concurrency:
            raise ValueError(
                f"BROKER_PREFETCH={self.prefetch} is less than BROKER_CONCURRENCY={self.concurrency}: "
                "some handlers would never get work. Raise the first or lower the second."
            )
        return self

    @property
    def event_log(self) -> str:
        """Name of the stream that keeps every event."""
        return f"{self.exchange}.log"

    @property
    def handlings_exchange(self) -> str:
        """Name of the exchange through which services tell the event log what became of events."""
        return f"{self.exchange}.handled"

    @property
    def full_prefetch(self) -> int:
        """Deliveries a process holds at a time once it runs."""
        return self.prefetch or min(10 * self.concurrency, 65535)

    @property
    def hosts(self) -> tuple[str, ...]:
        """One address for each host of ``url``. They hold the password: never print them."""
        return hosts_of(self.url.get_secret_value())

    @property
    def server(self) -> str:
        """The hosts and the virtual host, without login or password: fit for logs and messages."""
        return readable(self.url.get_secret_value())


def hosts_of(url: str) -> tuple[str, ...]:
    """Split addresses, comma-separated, each with one host or several, into one address for each host.

    Raises:
        ValueError: it is not an AMQP address. The message never repeats the address, which may hold a password.
    """
    return tuple(host for address in NEXT_URL.split(url) for host in _hosts_of_one(address.strip()))


def _hosts_of_one(url: str) -> tuple[str, ...]:
    wrong = ValueError(WRONG_URL)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise wrong from None
    login, at, hosts = parts.netloc.rpartition("@")
    addresses = [host.strip() for host in hosts.split(",")]
    if parts.scheme not in ("amqp", "amqps") or not all(addresses):
        raise wrong
    query = f"?{parts.query}" if parts.query else ""
    vhost = "/" if parts.path in ("", "/") else "/" + quote(unquote(parts.path[1:]), safe="")
    for address in addresses:
        try:
            urlsplit(f"//{address}").port  # noqa: B018  (reading it validates it)
        except ValueError:
            raise wrong from None
    return tuple(f"{parts.scheme}://{login}{at}{address}{vhost}{query}" for address in addresses)


def readable(url: str) -> str:
    """An address for people: hosts and virtual host, no login."""
    parts = [urlsplit(address.strip()) for address in NEXT_URL.split(url)]
    vhost = unquote(parts[0].path[1:]) or "/"
    return f"{','.join(part.netloc.rpartition('@')[2] for part in parts)}, virtual host {vhost!r}"


def seconds_of(age: str) -> float:
    """An `Age` in seconds."""
    return float(int(age[:-1]) * AGES[age[-1]])
