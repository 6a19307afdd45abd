"""The environment: names, defaults, what is refused, and that passwords stay inside."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from broker import Broker, Settings
from broker.service import settings_problem
from broker.settings import hosts_of, readable

SECRET = "hunter2-hunter2"

DEFAULTS = {
    "exchange": "events",
    "log": True,
    "log_max_age": "7D",
    "log_max_bytes": 5_000_000_000,
    "record_handlings": True,
    "backfill_share": 0.5,
    "direct": True,
    "concurrency": 10,
    "prefetch": None,
    "publish_timeout": 10,
    "connect_timeout": 10,
    "shutdown_timeout": 30,
    "handler_timeout": 300,
    "pause_window": 50,
    "pause_failures": 0.9,
    "pause_seconds": 10,
    "max_message_bytes": 16 * 1024 * 1024,
    "management_url": None,
    "database": None,
    "database_schema": None,
    "inbox_max_age": None,
    "relay": True,
    "health_port": None,
    "health_host": "127.0.0.1",
    "modules": ("services",),
    "logging_level": "info",
    "logging_format": "auto",
}


def test_the_defaults() -> None:
    settings = Settings()
    assert settings.url.get_secret_value() == "amqp://guest:guest@localhost:5672/"
    assert settings.model_dump(exclude={"url"}) == DEFAULTS
    assert (settings.event_log, settings.full_prefetch) == ("events.log", 100)


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("variable", "value", "field", "read"),
    [
        ("BROKER_EXCHANGE", "facts", "event_log", "facts.log"),
        ("BROKER_LOG", "off", "log", False),
        ("BROKER_CONCURRENCY", "3", "full_prefetch", 30),
        ("BROKER_CONCURRENCY", "1000", "full_prefetch", 10_000),
        ("BROKER_PREFETCH", "50", "full_prefetch", 50),
        ("BROKER_PUBLISH_TIMEOUT", "0.5", "publish_timeout", 0.5),
        ("BROKER_MODULES", "shop, other.events ,", "modules", ("shop", "other.events")),
        ("BROKER_HEALTH_PORT", "", "health_port", None),
        ("BROKER_HEALTH_PORT", "0", "health_port", 0),
    ],
)
def test_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, read: object) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(Settings(), field) == read


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BROKER_URL", f"http://guest:{SECRET}@localhost"),
        ("BROKER_URL", f"amqp://guest:{SECRET}@localhost:port/"),
        ("BROKER_URL", SECRET),
        ("BROKER_CONCURRENCY", "0"),
        ("BROKER_CONCURRENCY", "many"),
        ("BROKER_PREFETCH", "5"),  # less than BROKER_CONCURRENCY
        ("BROKER_PUBLISH_TIMEOUT", "0"),
        ("BROKER_PUBLISH_TIMEOUT", "-1"),
        ("BROKER_LOG_MAX_AGE", "a week"),
        ("BROKER_LOG_MAX_BYTES", "1"),
        ("BROKER_LOGGING_LEVEL", "loud"),
        ("BROKER_HEALTH_PORT", "65536"),
        ("BROKER_MAX_MESSAGE_BYTES", "1"),
    ],
)
def test_what_is_wrong_is_said_by_its_variable_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert variable in settings_problem(caught.value)
    assert SECRET not in settings_problem(caught.value)


def test_a_setting_nobody_knows_is_refused_in_code() -> None:
    with pytest.raises(ValidationError, match="urll"):
        Settings(urll="amqp://localhost")  # type: ignore[call-arg]


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://localhost", ("amqp://localhost/",)),
        ("amqp://a:b@one:5672/", ("amqp://a:b@one:5672/",)),
        ("amqps://a:b@one/shop", ("amqps://a:b@one/shop",)),
        ("amqp://a:b@one:5672,two:5673/shop", ("amqp://a:b@one:5672/shop", "amqp://a:b@two:5673/shop")),
        ("amqp://a:p%40ss@one, two/", ("amqp://a:p%40ss@one/", "amqp://a:p%40ss@two/")),
        ("amqp://one/%2F", ("amqp://one/%2F",)),
        ("amqp://one/a%2Fb", ("amqp://one/a%2Fb",)),
        ("amqp://one/shop?heartbeat=5", ("amqp://one/shop?heartbeat=5",)),
        ("amqp://a:b@[::1]:5672/", ("amqp://a:b@[::1]:5672/",)),
        ("amqp://a:b@one/x,amqps://c:d@two,three/x", ("amqp://a:b@one/x", "amqps://c:d@two/x", "amqps://c:d@three/x")),
        ("amqp://one , amqp://two", ("amqp://one/", "amqp://two/")),
    ],
)
def test_one_address_for_each_host(url: str, hosts: tuple[str, ...]) -> None:
    assert hosts_of(url) == hosts
    assert Settings(url=SecretStr(url)).hosts == hosts


@pytest.mark.parametrize(
    "url",
    ['["amqp://a:b@one/x", "amqp://a:b@two/x"]', ["amqp://a:b@one/x", "amqp://a:b@two/x"], "amqp://a:b@one,two/x"],
)
def test_the_nodes_of_a_cluster_may_be_a_list(url: str | list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Broker(url, source="test").settings.hosts == ("amqp://a:b@one/x", "amqp://a:b@two/x")
    if isinstance(url, str):
        monkeypatch.setenv("BROKER_URL", url)
        assert Settings().hosts == ("amqp://a:b@one/x", "amqp://a:b@two/x")
        assert Settings().server == "one,two, virtual host 'x'"


@pytest.mark.parametrize("url", [[], "[]", [1], "[1]", "[", '["amqp://u:{}@h:x"]', '["{}"'])
def test_a_list_that_is_none_is_refused_without_its_password(url: str | list[object]) -> None:
    text = url.format(SECRET) if isinstance(url, str) else url
    with pytest.raises(ValidationError) as caught:
        Broker(text, source="test")  # type: ignore[arg-type]
    assert "amqp://user:password@host" in settings_problem(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


WRONG = ["amqp://u:{}@", "amqp://u:{}@h:x/", "http://u:{}@h/", "amqp://u:{}@a,,b/", "amqp://u:{}@[h/", "//u:{}@h", "{}"]


@given(password=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), url=st.sampled_from(WRONG))
@example(password="a@b:c/d?e#f", url="amqp://u:{}@h:x/")
@example(password="9", url="amqp://u:{}@h:99999/")
def test_a_wrong_address_never_shows_its_password(password: str, url: str) -> None:
    address = url.format(f"{SECRET}{password}")
    told = ""
    try:
        hosts_of(address)  # with some passwords it is right after all
    except ValueError as error:
        told = "".join(traceback.format_exception(error))
    assert SECRET not in told


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"amqp://user:{SECRET}@one:5672/", "one:5672, virtual host '/'"),
        (f"amqp://user:{SECRET}@one,two/shop", "one,two, virtual host 'shop'"),
        (f"amqp://user:{SECRET}@one/%2Fshop", "one, virtual host '/shop'"),
    ],
)
def test_people_see_the_server_without_the_login(url: str, text: str) -> None:
    assert readable(url) == text
    settings = Settings(url=SecretStr(url), management_url=SecretStr(f"http://user:{SECRET}@one"))
    assert settings.server == text
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
