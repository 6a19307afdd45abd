"""``broker doctor`` on a RabbitMQ of its own: an alarm is told, and the commands of RabbitMQ that are named exist."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import SecretStr

from broker.settings import Settings
from broker.tools.container import ContainerNode
from broker.tools.doctor import diagnose, examine
from broker.tools.node import Node
from broker.tools.snapshot import Finding
from tests.waiting import until

NAMED = [
    "add_user", "add_vhost", "authenticate_user", "clear_operator_policy", "clear_policy", "cluster_status",
    "delete_queue", "enable_feature_flag", "purge_queue", "set_permissions", "set_policy", "set_topic_permissions",
    "set_user_tags", "status",
]  # fmt: skip
"""All of ``rabbitmqctl`` that a finding may name."""


async def test_an_alarm_is_a_problem_and_commands_of_rabbitmq_that_are_named_exist(
    node: Callable[[], Node | ContainerNode],
) -> None:
    rabbit = node()
    settings = Settings(url=SecretStr(rabbit.url), management_url=SecretStr(rabbit.management_url))

    async def alarms() -> list[Finding]:
        found = diagnose(await examine(settings, ["tests.weighing"], log=0)).findings
        return [it for it in found if it.check == "alarms" and it.severity == "problem"]

    assert await alarms() == []
    rabbit.control("set_vm_memory_high_watermark", "0.00001")
    (it,) = await until(alarms, every=0.2)
    assert "is low on memory" in it.what
    known = rabbit.control("help").split()
    assert set(NAMED) <= set(known)
