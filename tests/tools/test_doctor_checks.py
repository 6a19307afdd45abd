"""What ``broker doctor`` finds, in snapshots made up here: each check says the thing, its weight, and what helps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import Envelope, Retry, Service
from broker.settings import Settings
from broker.tools.checks import (
    CHECKS,
    check_alarms,
    check_clock,
    check_connection,
    check_consumers,
    check_dead_letters,
    check_flags,
    check_log,
    check_schemas,
    check_versions,
)
from broker.tools.doctor import outdated, read_code, skew
from broker.tools.drift import check_leftovers, check_topology, difference, leftovers, maker, missing
from broker.tools.management import (
    Activity,
    Binding,
    Exchange,
    FeatureFlag,
    Node,
    Permission,
    Policy,
    Queue,
    TopicPermission,
)
from broker.tools.policies import check_limits, check_policies
from broker.tools.rights import check_permissions, from_management, permissions_of
from broker.tools.snapshot import Access, Door, Finding, Logged, LogTail, Snapshot
from broker.topology import Queue as Declared
from broker.topology import Topology, handlings_topology, retry_topology, service_topology, shared_topology
from tests.parcels import ParcelSent, ParcelWeighed

SETTINGS = Settings(_env_file=None, url="amqp://broker.example/", log=True, exchange="events")


def packing(*, retry: Retry | None = None, backfill: str | None = None) -> Service:
    """It packs what was weighed."""
    service = Service("packing", retry=retry, backfill=backfill)

    @service.on(ParcelWeighed)
    def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    return service


def watching() -> Service:
    service = Service("watching")

    @service.on("parcel.*")
    def watch(event: Envelope) -> None: ...

    return service


def live(queue: Declared, ready: int = 0) -> Queue:
    """A declared queue, as RabbitMQ tells of it."""
    kind = str(queue.arguments.get("x-queue-type", "classic"))
    return Queue(name=queue.name, type=kind, arguments=dict(queue.arguments), ready=ready, consumers=0)


def standing(topology: Topology, services: Iterable[Service], **more: Any) -> Snapshot:
    """A snapshot of a RabbitMQ on which just this stands."""
    snapshot = Snapshot(
        settings=SETTINGS,
        services=list(services),
        listed=True,
        queues={it.name: live(it) for it in topology.queues},
        exchanges={it.name: Exchange(name=it.name, type=it.kind, durable=True) for it in topology.exchanges},
        bindings=[
            Binding(source=it.exchange, destination=it.queue, destination_type="queue", key=it.key)
            for it in topology.bindings
        ],
        activity={},
    )
    return replace(snapshot, **more)


def declared(*services: Service) -> Topology:
    """All that these services declare."""
    topology = shared_topology(SETTINGS) | handlings_topology(SETTINGS)
    for service in services:
        topology |= service_topology(service.name, service.handlers.bindings, "events")
    return topology


def healthy(**more: Any) -> Snapshot:
    services = [packing(), watching()]
    return standing(declared(*services), services, **more)


def without(topology: Topology, *names: str) -> Topology:
    """Less these queues, exchanges, and bindings by key or to or from them."""
    return Topology(
        tuple(it for it in topology.exchanges if it.name not in names),
        tuple(it for it in topology.queues if it.name not in names),
        tuple(it for it in topology.bindings if not {it.exchange, it.queue, it.key} & set(names)),
    )


def said(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(it.severity, it.what) for it in findings]


def the_one(findings: Iterable[Finding], *words: str) -> Finding:
    """The only finding, which names all of it."""
    (it,) = findings
    for word in words:
        assert word in it.what, it
    assert it.why
    return it


# -- topology --------------------------------------------------------------------------------------------------------


def test_what_is_as_the_code_declares_it_is_not_mentioned() -> None:
    assert said(check_topology(healthy())) == []
    assert said(check_leftovers(healthy())) == []
    assert missing(healthy()) == Topology()


@pytest.mark.parametrize(
    ("gone", "word"),
    [("packing.dead", "packing.dead"), ("parcel.weighed", "parcel.weighed"), ("watching", "watching")],
)
def test_what_is_missing_is_a_problem_that_fix_mends(gone: str, word: str) -> None:
    services = [packing(), watching()]
    topology = declared(*services)
    snapshot = standing(
        Topology(
            topology.exchanges,
            tuple(it for it in topology.queues if it.name != gone),
            tuple(it for it in topology.bindings if gone not in (it.queue, it.key)),
        ),
        services,
    )
    found = list(check_topology(snapshot))
    assert found
    assert all(it.severity == "problem" and "broker doctor --fix" in it.commands for it in found)
    assert any(word in it.what for it in found)
    absent = missing(snapshot)
    assert standing_with(snapshot, absent) == Topology()


def standing_with(snapshot: Snapshot, added: Topology) -> Topology:
    """What is missing still, once this is declared."""
    more = standing(added, snapshot.services or [])
    assert snapshot.queues is not None and more.queues is not None  # noqa: PT018
    assert snapshot.exchanges is not None and more.exchanges is not None  # noqa: PT018
    return missing(
        replace(
            snapshot,
            queues={**snapshot.queues, **more.queues},
            exchanges={**snapshot.exchanges, **more.exchanges},
            bindings=[*(snapshot.bindings or ()), *(more.bindings or ())],
        )
    )


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_is_missing_fix_declares_all_of_it(data: st.DataObject) -> None:
    services = [packing(), watching()]
    topology = declared(*services)
    some = Topology(
        tuple(data.draw(st.lists(st.sampled_from(topology.exchanges), unique=True))),
        tuple(data.draw(st.lists(st.sampled_from(topology.queues), unique=True))),
        tuple(data.draw(st.lists(st.sampled_from(topology.bindings), unique=True))),
    )
    snapshot = standing(some, services)
    assert standing_with(snapshot, missing(snapshot)) == Topology()


def test_a_service_that_would_backfill_is_left_for_its_first_start() -> None:
    services = [packing(backfill="7d"), watching()]
    snapshot = standing(declared(watching()), services)
    assert not {"packing", "packing.dead"} & {it.name for it in missing(snapshot).queues}
    the_one(check_topology(snapshot), "packing")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"type": "classic"}, ("x-queue-type", "classic", "quorum")),
        ({"arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}}, ("x-delivery-limit 5", "20")),
    ],
)
def test_another_queue_under_the_name_is_a_problem(changed: dict[str, Any], words: tuple[str, ...]) -> None:
    snapshot = healthy()
    queues = dict(snapshot.queues or {})
    queues["packing"] = queues["packing"].model_copy(update=changed)
    it = the_one(check_topology(replace(snapshot, queues=queues)), "packing", *words)
    assert it.severity == "problem"
    assert any("delete_queue" in command for command in it.commands)


def test_another_queue_that_holds_events_is_not_to_be_deleted() -> None:
    snapshot = healthy()
    queues = dict(snapshot.queues or {})
    queues["packing"] = queues["packing"].model_copy(update={"type": "classic", "ready": 3})
    it = the_one(check_topology(replace(snapshot, queues=queues)), "packing")
    assert not any("delete" in command for command in it.commands)
    assert "3" in it.why


def test_an_exchange_of_another_type_is_a_problem() -> None:
    snapshot = healthy()
    exchanges = dict(snapshot.exchanges or {})
    exchanges["packing"] = Exchange(name="packing", type="fanout", durable=True)
    assert the_one(check_topology(replace(snapshot, exchanges=exchanges)), "fanout").severity == "problem"


# -- left over -------------------------------------------------------------------------------------------------------


def bound(snapshot: Snapshot, queue: str, key: str) -> Snapshot:
    more = Binding(source="events", destination=queue, destination_type="queue", key=key)
    return replace(snapshot, bindings=[*(snapshot.bindings or ()), more])


def test_a_stale_binding_is_pruned() -> None:
    it = the_one(check_leftovers(bound(healthy(), "packing", "parcel.lost")), "packing", "parcel.lost")
    assert (it.severity, it.commands) == ("warning", ("broker doctor --prune",))


def test_a_stale_binding_that_brings_nothing_more_is_a_note() -> None:
    assert the_one(check_leftovers(bound(healthy(), "watching", "parcel.sent")), "parcel.sent").severity == "note"


def test_a_retry_queue_of_no_ladder_is_named_with_what_waits() -> None:
    services = [packing(retry=Retry("5s"))]
    old = retry_topology("packing", Retry("1s").delays[0])
    snapshot = standing(declared(*services) | old, services)
    assert the_one(check_leftovers(snapshot), "packing.retry.1s").commands == ("broker doctor --prune",)
    kept = standing(declared(*services) | retry_topology("packing", Retry("5s").delays[0]), services)
    assert said(check_leftovers(kept)) == []


def test_a_service_that_no_code_has_is_named_once() -> None:
    old = service_topology("crm", ["parcel.sent"], "events")
    snapshot = standing(declared(packing()) | old, [packing()])
    it = the_one(check_leftovers(snapshot), "crm")
    assert "broker doctor --prune" in it.commands
    full = dict(snapshot.queues or {})
    full["crm"] = full["crm"].model_copy(update={"ready": 7})
    it = the_one(check_leftovers(replace(snapshot, queues=full)), "crm", "7 events")
    assert it.severity == "problem"
    assert "broker doctor --prune" not in it.commands


def test_a_service_that_listens_no_more_is_not_one_that_no_code_has() -> None:
    old = service_topology("crm", ["parcel.sent"], "events")
    it = the_one(check_leftovers(standing(declared(packing()) | old, [packing(), Service("crm")])), "crm")
    assert "the code of this service subscribes to nothing" in it.what


def test_commands_look_for_the_code_where_this_one_did() -> None:
    old = service_topology("crm", ["parcel.sent"], "events")
    gone = without(declared(packing(), watching()) | old, "packing.dead", "events.log")
    snapshot = standing(gone, [packing(), watching()], looked_in=("shop", "more events"))
    found = [finding for check in CHECKS.values() for finding in check(snapshot)]
    ours = {command for it in found for command in it.commands if command.startswith("broker doctor")}
    assert ours == {
        "broker doctor --fix --from shop --from 'more events'",
        "broker doctor --prune --from shop --from 'more events'",
        "broker doctor --from shop --from 'more events' --from MODULE",
    }


def test_what_broker_modules_says_is_not_repeated() -> None:
    settings = SETTINGS.model_copy(update={"modules": ("tests.weighing",)})
    assert read_code(Snapshot(settings=settings), ["tests.weighing"]).looked_in == ()
    assert read_code(Snapshot(settings=SETTINGS), ["tests.weighing"]).looked_in == ("tests.weighing",)


def test_code_elsewhere_is_named_beside_the_code_here() -> None:
    settings = SETTINGS.model_copy(update={"modules": ("services", "more")})
    assert Snapshot(settings=settings, services=[packing()]).with_module == (
        "broker doctor --from services --from more --from MODULE"
    )
    assert Snapshot(settings=settings, services=None).with_module == "broker doctor --from MODULE"


def test_locks_of_services_elsewhere_are_no_queues_of_others() -> None:
    theirs = service_topology("crm", ["parcel.sent"], "events")
    snapshot = standing(declared(packing()) | theirs, [packing()])
    locks = {name: Queue(name=name) for name in ("crm.replay", "crm.backfill.lock", "replay", "nobody.replay")}
    found = leftovers(replace(snapshot, queues={**(snapshot.queues or {}), **locks}))
    assert {queue.name for queue in found.foreign} == {"replay", "nobody.replay"}


def test_queues_of_others_are_never_taken_for_ours() -> None:
    foreign = {
        "crm-orders": Queue(name="crm-orders"),
        "crm.dead": Queue(name="crm.dead", type="quorum"),
        "x.retry.soon": Queue(name="x.retry.soon", type="quorum"),
    }
    snapshot = healthy()
    snapshot = replace(snapshot, queues={**(snapshot.queues or {}), **foreign})
    found = leftovers(snapshot)
    assert not found.orphans
    assert {queue.name for queue in found.foreign} == set(foreign)


def test_another_system_in_the_same_virtual_host_is_left_alone() -> None:
    theirs = service_topology("crm", ["parcel.sent"], "facts")
    found = leftovers(standing(declared(packing()) | theirs, [packing()]))
    assert not found.orphans
    assert {queue.name for queue in found.foreign} == {"crm", "crm.dead"}


@given(st.text(max_size=30), st.sampled_from(["classic", "quorum", "stream"]))
def test_only_what_our_topology_makes_is_taken_for_ours(name: str, kind: str) -> None:
    assert maker(Queue(name=name, type=kind)) is None  # it has none of our arguments


def test_without_code_nothing_is_left_over() -> None:
    old = service_topology("crm", ["parcel.sent"], "events")
    assert said(check_leftovers(standing(declared() | old, []))) == []
    assert said(check_leftovers(replace(standing(declared() | old, []), services=None))) == []


def test_a_difference_is_told_in_words() -> None:
    declared = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    told = difference(declared, Queue(name="q", type="quorum", arguments={"x-max-length": 5}))
    assert "x-overflow" in told
    assert "reject-publish" in told
    assert "x-max-length 5" in told
    assert difference(declared, Queue(name="q", type="quorum", arguments={"x-overflow": "reject-publish"})) == ""


# -- permissions -----------------------------------------------------------------------------------------------------

AS_OURSELVES = Access(address="broker.example:5672", user="app")


def permitted(configure: str, write: str, read: str, *topics: tuple[str, str]) -> Snapshot:
    rights = from_management(
        "/",
        [Permission(user="app", configure=configure, write=write, read=read)],
        [TopicPermission(user="app", exchange="events", write=write, read=read) for write, read in topics],
    )
    services = [packing()]
    return standing(declared(*services), services, amqp=AS_OURSELVES, rights=rights)


def test_least_privilege_is_enough_and_not_too_much() -> None:
    least = permissions_of(packing(), SETTINGS)
    snapshot = permitted(least.configure, least.write, least.read, (least.topic_write, least.topic_read))
    assert said(check_permissions(snapshot)) == []


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda may: replace(may, read="^packing"), "events"),
        (lambda may: replace(may, write="^packing"), "events"),
        (lambda may: replace(may, topic_write="^other$"), "parcel.sent"),
        (lambda may: replace(may, topic_read="^other$"), "parcel.weighed"),
        (lambda may: replace(may, configure="^packing$"), "packing.dead"),
    ],
)
def test_what_a_user_may_not_is_a_problem_with_the_commands_that_grant_it(
    spoil: Callable[[Any], Any], word: str
) -> None:
    may = spoil(permissions_of(packing(), SETTINGS))
    snapshot = permitted(may.configure, may.write, may.read, (may.topic_write, may.topic_read))
    it = the_one(check_permissions(snapshot), "packing", word)
    assert it.severity == "problem"
    assert it.commands[0].startswith("rabbitmqctl set_permissions app")


def test_whoever_may_do_everything_is_a_note() -> None:
    assert the_one(check_permissions(permitted(".*", ".*", ".*")), "app", "everything").severity == "note"


def test_an_expression_that_python_cannot_read_is_not_judged() -> None:
    found = list(check_permissions(permitted("(*UCP)(", ".*", ".*")))
    assert not [it for it in found if it.severity == "problem"]


# -- connection ------------------------------------------------------------------------------------------------------


def test_rabbitmq_that_does_not_answer_is_a_problem_at_its_address() -> None:
    door = Door("broker.example:5672", why="connection refused")
    it = the_one(check_connection(Snapshot(settings=SETTINGS, doors=[door])), "AMQP", "broker.example:5672", "refused")
    assert it.severity == "problem"
    assert it.commands


def test_one_host_of_several_that_does_not_answer_is_a_warning() -> None:
    doors = [Door("one:5672", "4.0.5"), Door("two:5672", why="connection refused")]
    assert the_one(check_connection(Snapshot(settings=SETTINGS, doors=doors)), "two:5672").severity == "warning"


def test_tls_on_one_side_only_is_a_setting_that_holds_no_password() -> None:
    url = "amqp://app:word@one,two:5673/shop?cafile=ca.pem"
    doors = [Door("one:5672", why="it speaks TLS", instead="amqps://"), Door("two:5673", "4.0.5")]
    settings = Settings(_env_file=None, url=url)
    it = the_one(check_connection(Snapshot(settings=settings, doors=doors)), "AMQP", "one:5672", "TLS")
    (command,) = it.commands
    helps = "amqps://app:PASSWORD@one:5672/shop?cafile=ca.pem,amqp://app:PASSWORD@two:5673/shop?cafile=ca.pem"
    assert shlex.split(command) == ["export", f"BROKER_URL={helps}"]
    assert [urlsplit(host).scheme for host in Settings(_env_file=None, url=helps).hosts] == ["amqps", "amqp"]
    assert "word" not in str(it)


def test_a_certificate_that_ends_soon_is_a_warning() -> None:
    doors = [Door("broker.example:5671", "4.0.5", expires=days) for days in (13.5, 14.5)]
    assert the_one(check_connection(Snapshot(settings=SETTINGS, doors=doors)), "13 days").severity == "warning"


@pytest.mark.parametrize("trouble", ["silent", "login", "vhost", "tag", "other"])
def test_amqp_and_management_are_named_each_by_itself(trouble: Any) -> None:
    access = Access("broker.example", "app", trouble, why="as it was answered")
    amqp = the_one(check_connection(Snapshot(settings=SETTINGS, amqp=access)), "AMQP")
    management = the_one(check_connection(Snapshot(settings=SETTINGS, management=access)), "Management")
    assert {amqp.severity, management.severity} == {"problem"}
    assert "as it was answered" in amqp.what
    assert amqp.commands or trouble in ("silent", "tag")  # which management alone knows
    assert management.commands


def test_management_that_answers_elsewhere_is_a_setting() -> None:
    access = Access("http://broker.example:15672", "app", "silent", instead="http://broker.example:8080")
    it = the_one(check_connection(Snapshot(settings=SETTINGS, management=access)), "Management")
    assert it.commands == ("export BROKER_MANAGEMENT_URL=http://broker.example:8080",)


def test_a_management_plugin_that_is_off_is_switched_on() -> None:
    access = Access("http://broker.example:15672", "app", "silent", why="ConnectError")
    it = the_one(check_connection(Snapshot(settings=SETTINGS, management=access)), "Management")
    assert it.commands == ("rabbitmq-plugins enable rabbitmq_management",)
    assert "BROKER_MANAGEMENT_URL" in it.why


# -- RabbitMQ itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "found"),
    [("3.9.29", 1), ("3.10.0", 0), ("3.13.7", 0), ("4.0.5", 0), ("4.3.0-rc.1", 0), ("2.8", 1), ("unknown", 0)],
)
def test_a_rabbitmq_before_3_10_is_a_problem(version: str, found: int) -> None:
    told = list(check_versions(Snapshot(settings=SETTINGS, version=version)))
    assert [it.severity for it in told] == ["problem"] * found
    flags = ("rabbitmqctl enable_feature_flag all",)
    assert [it.commands for it in told] == [() if version == "2.8" else flags] * found


def test_queue_types_that_are_switched_off_are_a_problem() -> None:
    flags = [
        FeatureFlag(name="quorum_queue", state="enabled"),
        FeatureFlag(name="stream_queue", state="disabled"),
        FeatureFlag(name="user_limits", state="disabled"),
        FeatureFlag(name="khepri_db", state="disabled"),
    ]
    problem, note = check_flags(Snapshot(settings=SETTINGS, flags=flags))
    assert (problem.severity, problem.commands) == ("problem", ("rabbitmqctl enable_feature_flag stream_queue",))
    assert note.severity == "note"
    assert "user_limits" in note.what
    assert "khepri_db" not in note.what  # a choice, and there is no way back


@pytest.mark.parametrize(
    ("state", "severity", "word"),
    [
        ({"running": False}, "problem", "down"),
        ({"mem_alarm": True}, "problem", "memory"),
        ({"disk_free_alarm": True}, "problem", "disk"),
        ({"partitions": ("rabbit@two",)}, "problem", "rabbit@two"),
        ({"mem_used": 95, "mem_limit": 100}, "warning", "memory"),
        ({"disk_free": 150, "disk_free_limit": 100}, "warning", "disk"),
    ],
)
def test_alarms_and_nodes_that_are_down(state: dict[str, Any], severity: str, word: str) -> None:
    nodes = [Node(name="rabbit@one"), Node(name="rabbit@two", **state)]
    it = the_one(check_alarms(Snapshot(settings=SETTINGS, nodes=nodes)), "rabbit@two", word)
    assert it.severity == severity
    assert it.commands


def test_clocks_may_differ_by_five_seconds() -> None:
    for ahead in (None, 0.0, 4.9, -4.9):
        assert said(check_clock(Snapshot(settings=SETTINGS, skew=ahead))) == []
    assert the_one(check_clock(Snapshot(settings=SETTINGS, skew=61.0)), "61 s").what.startswith("RabbitMQ's clock")
    assert the_one(check_clock(Snapshot(settings=SETTINGS, skew=-61.0)), "61 s").what.startswith("This machine's")


# -- policies and limits ---------------------------------------------------------------------------------------------


def with_policies(*policies: Policy) -> Snapshot:
    return healthy(policies=policies)


def policy(pattern: str, definition: dict[str, Any], **more: Any) -> Policy:
    return Policy(name="short", pattern=pattern, definition=definition, **more)


@pytest.mark.parametrize(
    ("pattern", "definition", "severity"),
    [
        ("^packing$", {"message-ttl": 60_000}, "problem"),
        (r"\.dead$", {"max-length": 1000}, "problem"),
        (r"\.dead$", {"delivery-limit": 20}, "problem"),
        ("^packing$", {"expires": 1000}, "problem"),
        (r"^events\.log$", {"max-age": "1D"}, "warning"),
        ("^events$", {"alternate-exchange": "lost"}, "warning"),
    ],
)
def test_a_policy_that_changes_what_we_rely_on(pattern: str, definition: dict[str, Any], severity: str) -> None:
    (key,) = definition
    it = the_one(check_policies(with_policies(policy(pattern, definition))), "short", key)
    assert (it.severity, it.commands) == (severity, ("rabbitmqctl clear_policy short",))


@pytest.mark.parametrize(
    ("pattern", "definition", "more"),
    [
        ("^invoices", {"message-ttl": 1}, {}),
        ("^packing$", {"delivery-limit": 100}, {}),  # ours is lower, and counts
        ("^packing$", {"message-ttl": 1}, {"apply_to": "exchanges"}),
        ("^packing$", {"queue-leader-locator": "balanced"}, {}),
        ("(", {"message-ttl": 1}, {}),
        (r"^events\.log$", {"max-age": "30D"}, {}),
    ],
)
def test_a_policy_that_changes_nothing_of_ours(pattern: str, definition: dict[str, Any], more: dict[str, Any]) -> None:
    assert said(check_policies(with_policies(policy(pattern, definition, **more)))) == []


def test_of_policies_the_first_by_priority_counts_and_the_operators_beside_it() -> None:
    mild = Policy(name="mild", pattern=".*", definition={}, priority=9)
    short = policy("^packing$", {"message-ttl": 1}, priority=1)
    assert said(check_policies(with_policies(mild, short))) == []
    operators = short.model_copy(update={"operator": True})
    it = the_one(check_policies(with_policies(mild, operators)), "operator policy")
    assert it.commands == ("rabbitmqctl clear_operator_policy short",)


def changed(snapshot: Snapshot, name: str, **update: Any) -> Snapshot:
    """With a queue changed, or one more."""
    queues = dict(snapshot.queues or {})
    queues[name] = queues.get(name, Queue(name=name)).model_copy(update=update)
    return replace(snapshot, queues=queues)


def test_a_log_without_cap_is_a_warning_unless_a_policy_caps_it() -> None:
    bare = changed(healthy(policies=()), "events.log", arguments={"x-queue-type": "stream", "x-max-age": "7D"})
    it = the_one(check_limits(bare), "events.log")
    assert it.severity == "warning"
    assert it.commands[0].startswith("rabbitmqctl set_policy")
    capped = replace(bare, policies=[policy("^events.log$", {"max-length-bytes": 10**9})])
    assert said(check_limits(capped)) == []
    assert said(check_limits(healthy(policies=()))) == []


def test_queues_of_others_that_take_our_events_without_limits_are_named() -> None:
    snapshot = bound(changed(healthy(policies=()), "crm-orders", type="quorum"), "crm-orders", "parcel.weighed")
    assert the_one(check_limits(snapshot), "crm-orders", "delivery limit", "dead-letter exchange").severity == "warning"
    limits = {"x-delivery-limit": 20, "x-dead-letter-exchange": "crm"}
    assert said(check_limits(changed(snapshot, "crm-orders", arguments=limits))) == []
    full = limits | {"x-max-length": 10, "x-overflow": "reject-publish"}
    assert the_one(check_limits(changed(snapshot, "crm-orders", arguments=full)), "refuses").severity == "problem"
    assert said(check_limits(changed(healthy(policies=()), "crm-orders", type="quorum"))) == []  # not bound


# -- the event log ---------------------------------------------------------------------------------------------------


def test_an_event_log_that_is_missing_or_not_bound() -> None:
    assert said(check_log(healthy())) == []
    services = [packing()]
    gone = standing(without(declared(*services), "events.log"), services)
    assert the_one(check_log(gone), "events.log").commands == ("broker doctor --fix",)
    topology = declared(*services)
    unbound = Topology(topology.exchanges, topology.queues, tuple(it for it in topology.bindings if it.key != "#"))
    told = list(check_log(standing(unbound, services)))
    assert [it.severity for it in told] == ["problem", "warning"]
    assert all(it.commands == ("broker doctor --fix",) for it in told)


def test_an_event_log_that_is_a_queue_is_a_problem() -> None:
    assert the_one(check_log(changed(healthy(), "events.log", type="quorum")), "stream").severity == "problem"


def test_a_log_that_is_switched_off_is_a_note() -> None:
    off = replace(healthy(), settings=Settings(_env_file=None, log=False))
    it = the_one(check_log(off), "BROKER_LOG")
    assert (it.severity, it.commands) == ("note", ("export BROKER_LOG=on",))


def test_versions_in_the_log_that_no_code_knows() -> None:
    def told(*events: Logged, foreign: int = 0) -> list[Finding]:
        versions = {"Parcel Weighed": frozenset({1})}
        return list(check_schemas(healthy(versions=versions, log=LogTail(10, foreign, events))))

    assert told(Logged("Parcel Weighed", 1, 3, ("scales",)), Logged("Parcel Weighed", None, 3, ("scales",))) == []
    it = the_one(told(Logged("Parcel Weighed", 2, 3, ("scales",))), "Parcel Weighed", "2", "scales", "1")
    assert (it.severity, it.commands) == ("warning", ("broker events 'Parcel Weighed'",))
    assert the_one(told(Logged("Crate Moved", 1, 3, ("crane",))), "Crate Moved", "crane").severity == "note"
    assert the_one(told(foreign=4), "4 of the latest 10").severity == "note"


# -- what waits ------------------------------------------------------------------------------------------------------


def attended(**more: Any) -> Snapshot:
    """Each service has a consumer."""
    snapshot = healthy(modules={"packing": "shop.packing"}, **more)
    queues = {name: it.model_copy(update={"consumers": 1}) for name, it in (snapshot.queues or {}).items()}
    return replace(snapshot, queues=queues)


def test_queues_that_are_consumed_and_empty_are_not_mentioned() -> None:
    assert said(check_consumers(attended())) == []
    assert said(check_dead_letters(attended())) == []


def test_a_queue_that_nobody_consumes_names_the_command_that_runs_its_service() -> None:
    idle = changed(attended(), "packing", consumers=0)
    it = the_one(check_consumers(idle), "packing")
    assert (it.severity, it.commands) == ("warning", ("broker run shop.packing",))
    waiting = changed(idle, "packing", ready=3, consumers=0)
    assert the_one(check_consumers(waiting), "packing", "3 events").severity == "problem"


def test_a_backfill_that_nobody_goes_on_with_names_the_command_that_does() -> None:
    left_off = with_queues(attended(), "packing.backfill")
    it = the_one(check_consumers(left_off), "packing", "backfill is unfinished")
    assert (it.severity, it.commands) == ("warning", ("broker run shop.packing --backfill 7d",))
    assert said(check_consumers(with_queues(left_off, "packing.backfill.lock"))) == []


def with_queues(snapshot: Snapshot, *names: str) -> Snapshot:
    return replace(snapshot, queues=dict(snapshot.queues or {}) | {name: Queue(name=name) for name in names})


def test_a_queue_that_grows_is_a_warning() -> None:
    activity = {"packing": Activity(published=50, acknowledged=20, consumers=1)}
    growing = changed(attended(activity=activity), "packing", ready=5000)
    assert the_one(check_consumers(growing), "packing", "5000", "50.0", "20.0").severity == "warning"
    shrinking = {"packing": Activity(published=20, acknowledged=50, consumers=1)}
    assert said(check_consumers(replace(growing, activity=shrinking))) == []


def test_dead_letters_are_counted() -> None:
    it = the_one(check_dead_letters(changed(attended(), "packing.dead", ready=2, unacked=1)), "packing", "3 dead")
    assert it.commands == ("broker dead show packing",)
    assert said(check_dead_letters(changed(attended(), "foreign.dead", ready=2))) == []


# -- all of them -----------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_not_judged() -> None:
    for check in CHECKS.values():
        assert said(check(Snapshot(settings=SETTINGS, services=[packing(), watching()]))) == []


HOSTILE = "packing\x1b[31m'; rm -rf ~ #"


def test_names_from_elsewhere_stay_one_word_of_a_command() -> None:
    snapshot = with_policies(Policy(name=HOSTILE, pattern="packing", definition={"message-ttl": 1}))
    for it in check_policies(snapshot):
        assert shlex.split(it.commands[0])[-1] == HOSTILE


# -- what the checks go by ---------------------------------------------------------------------------------------------


def test_packages_older_than_this_one_requires_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["pydantic>=999.1", "structlog >= 1.0", "uvloop>=999; extra == 'fast'"]
    monkeypatch.setattr("broker.tools.doctor.requires", lambda _: needed)
    assert outdated() == {"pydantic": "pydantic>=999.1"}


@pytest.mark.parametrize("ahead", [-90.0, 0.0, 3600.0])
async def test_by_how_much_the_clock_of_rabbitmq_is_ahead(ahead: float) -> None:
    class Clock:
        async def clock(self) -> datetime:
            return (datetime.now(UTC) + timedelta(seconds=ahead)).replace(microsecond=0)  # as HTTP tells the time

    management: Any = Clock()
    told = await skew(management)
    assert told is not None
    assert abs(told - ahead) <= 1
