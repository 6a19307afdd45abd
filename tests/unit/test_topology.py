"""Declarations, permissions and patterns."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ContractError, Settings
from broker.retry import Delay
from broker.topology import (
    Binding,
    Exchange,
    Queue,
    Topology,
    check_pattern,
    check_service_name,
    is_pattern,
    matches,
    overlap,
    publisher_permissions,
    retry_topology,
    service_permissions,
    service_topology,
    shared_topology,
)

# -- what stands on RabbitMQ ---------------------------------------------------------------------------------------


def arguments(topology: Topology) -> dict[str, dict[str, str | int]]:
    return {queue.name: dict(queue.arguments) for queue in topology.queues}


def test_all_share_one_topic_exchange_and_one_log() -> None:
    topology = shared_topology(Settings())
    assert topology.exchanges == (Exchange("events", "topic"),)
    assert arguments(topology) == {
        "events.log": {
            "x-queue-type": "stream",
            "x-max-age": "7D",
            "x-max-length-bytes": 5_000_000_000,
            "x-stream-max-segment-size-bytes": 50_000_000,
        }
    }
    assert topology.queues[0].shared, "a setting must never become a conflict at start"
    assert topology.bindings == (Binding("events", "events.log", "#"),)


def test_the_log_takes_its_size_and_name_from_the_settings() -> None:
    settings = Settings(exchange="facts", log_max_age="12h", log_max_bytes=100_000_000)
    log = arguments(shared_topology(settings))["facts.log"]
    assert (log["x-max-age"], log["x-max-length-bytes"]) == ("12h", 100_000_000)


def test_the_log_may_be_switched_off() -> None:
    assert shared_topology(Settings(log=False)) == Topology((Exchange("events", "topic"),))


def test_a_service_owns_a_queue_a_direct_exchange_and_dead_letters() -> None:
    topology = service_topology("packing", ["parcel.weighed", "van.*"], "events")
    assert topology.exchanges == (Exchange("packing", "direct"),)
    assert arguments(topology) == {
        "packing": {
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": "packing",
            "x-dead-letter-routing-key": "packing.dead",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
        "packing.dead": {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000},
    }
    assert set(topology.bindings) == {
        Binding("packing", "packing", "packing"),
        Binding("packing", "packing.dead", "packing.dead"),
        Binding("events", "packing", "parcel.weighed"),
        Binding("events", "packing", "van.*"),
    }
    assert not any(queue.shared for queue in topology.queues)


def test_dead_letters_are_declared_before_the_queue_that_needs_them() -> None:
    names = [queue.name for queue in service_topology("packing", [], "events").queues]
    assert names == ["packing.dead", "packing"]


def test_a_binding_said_twice_is_one() -> None:
    once, twice = (service_topology("packing", patterns, "events") for patterns in (["a"], ["a", "a"]))
    assert once == twice


@pytest.mark.parametrize(
    ("delay", "queue", "ttl"), [("1s", "1s", 1000), ("30s", "30s", 30_000), ("600s", "10m", 600_000)]
)
def test_a_retry_queue_is_named_for_its_delay(delay: str, queue: str, ttl: int) -> None:
    topology = retry_topology("packing", Delay.parse(delay))
    name = f"packing.retry.{queue}"
    assert arguments(topology) == {
        name: {
            "x-queue-type": "quorum",
            "x-delivery-limit": 1_000_000_000,
            "x-message-ttl": ttl,
            "x-dead-letter-exchange": "packing",
            "x-dead-letter-routing-key": "packing",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
    }
    assert topology.bindings == (Binding("packing", name, name),)
    assert topology.exchanges == ()


def test_everything_of_a_service_matches_one_regular_expression() -> None:
    topology = service_topology("packing", ["a"], "events") | retry_topology("packing", Delay(1000))
    own = re.compile(r"^packing(\.|$)")
    assert all(own.match(name) for name in (*arguments(topology), *(it.name for it in topology.exchanges)))


def test_a_healthy_shop_of_n_services_has_2n_plus_1_queues() -> None:
    shop = shared_topology(Settings())
    for service in ("packing", "crm", "reporting"):
        shop |= service_topology(service, ["parcel.*"], "events")
    assert len(shop.queues) == 2 * 3 + 1


def test_joining_keeps_the_order_and_each_thing_once() -> None:
    one = service_topology("packing", ["a"], "events")
    assert one | one == one
    assert (Topology() | one) == one == (one | Topology())
    assert Queue("a") in {Queue("a")}


# -- permissions ---------------------------------------------------------------------------------------------------


def test_least_privilege_of_a_publisher() -> None:
    it = publisher_permissions(Settings(), ["parcel.weighed", "parcel.sent"])
    assert (it.configure, it.write, it.read) == ("^$", "^events$", "^$")
    assert it.topic_write == r"^(parcel\.sent|parcel\.weighed)$"


def test_least_privilege_of_a_service() -> None:
    it = service_permissions("packing", Settings(), patterns=["parcel.*", "#"], publishes=["parcel.sent"])
    for allowed in ("packing", "packing.dead", "packing.retry.1s"):
        assert all(re.search(regex, allowed) for regex in (it.configure, it.write, it.read))
    for foreign in ("packing2", "crm", "", "xpacking", "packing-2.dead"):
        assert not any(re.search(regex, foreign) for regex in (it.configure, it.write, it.read)), foreign
    assert not re.search(it.configure, "events")
    assert re.search(it.write, "events")
    assert re.search(it.write, "events.handled")
    assert re.search(it.read, "events")
    assert not re.search(it.read, "events.handled")
    assert not re.search(it.read, "events.log")
    assert re.search(it.topic_read, "parcel.*")
    assert not re.search(it.topic_read, "parcel.x")
    assert re.search(it.topic_write, "parcel.sent")
    assert not re.search(it.topic_write, "parcelxsent")


def test_a_service_that_records_no_handlings_may_not_write_them() -> None:
    for settings in (Settings(log=False), Settings(record_handlings=False)):
        it = service_permissions("packing", settings, patterns=["a"], publishes=[])
        assert re.search(it.write, "events")
        assert not re.search(it.write, "events.handled")


def test_a_service_that_publishes_nothing_may_write_no_key() -> None:
    it = service_permissions("packing", Settings(), patterns=["a"], publishes=[])
    assert not re.search(it.topic_write, "parcel.sent")


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["packing", "a", "mi-reporting", "crm2"])
def test_good_service_names(name: str) -> None:
    check_service_name(name)


@pytest.mark.parametrize(
    "name", ["", "Packing", "2crm", "-a", "a.b", "a_b", "a b", "ä", "packing\n", "a" * 101, "events", None, 7]
)
def test_bad_service_names(name: str) -> None:
    with pytest.raises(ContractError, match="service"):
        check_service_name(name)


def test_a_service_cannot_be_named_as_the_exchange() -> None:
    with pytest.raises(ContractError, match="exchange"):
        check_service_name("facts", "facts")


@pytest.mark.parametrize("pattern", ["order.placed", "*", "#", "order.*", "*.placed", "#.a.#", "a-b.c_d"])
def test_good_patterns(pattern: str) -> None:
    check_pattern(pattern)
    assert is_pattern(pattern) == bool(set("*#") & set(pattern))


@pytest.mark.parametrize(
    "pattern", ["", ".", "a.", ".a", "a..b", "Order.*", "order*", "a#", "**", "a b", "a" * 201, "a\n"]
)
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(ContractError, match="pattern"):
        check_pattern(pattern)


# -- matching ------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "b", "c"])
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5).map(".".join)
KEYS = st.lists(WORDS, min_size=1, max_size=6).map(".".join)


def naive(pattern: list[str], words: list[str]) -> bool:
    """The rule as AMQP words it, tried in all ways."""
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(naive(rest, words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and naive(rest, words[1:])


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("order.placed", "order.placed", True),
        ("order.placed", "order.packed", False),
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.now", False),
        ("order.#", "order", True),
        ("order.#", "order.placed.now", True),
        ("#", "anything.at.all", True),
        ("*", "one", True),
        ("*", "one.two", False),
        ("#.now", "now", True),
        ("a.#.b", "a.b", True),
        ("order.placed", "orderxplaced", False),
    ],
)
def test_matching(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


@given(pattern=PATTERNS, key=KEYS)
def test_matching_agrees_with_the_naive_way(pattern: str, key: str) -> None:
    assert matches(pattern, key) == naive(pattern.split("."), key.split("."))


def test_matching_does_not_explode() -> None:
    assert not matches(".".join(["#", "a"] * 50), ".".join(["a"] * 49 + ["b"] * 50))


EVERY_KEY = [list(words) for length in range(1, 7) for words in product("abc", repeat=length)]


@given(one=st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join),
       other=st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join))  # fmt: skip
def test_overlap_agrees_with_trying_every_key(one: str, other: str) -> None:
    tried = any(naive(one.split("."), key) and naive(other.split("."), key) for key in EVERY_KEY)
    assert overlap(one, other) == tried


@given(one=PATTERNS, other=PATTERNS)
def test_overlap_is_symmetric_and_every_pattern_overlaps_itself(one: str, other: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    assert overlap(one, one)
    assert overlap(one, "#")
