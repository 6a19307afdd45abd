"""On what faults are injected: which RabbitMQ, and which event loop services choose there."""

from __future__ import annotations

from importlib.util import find_spec

from broker.tools.container import ContainerNode
from broker.tools.node import Node
from broker.tools.server import node_to_break
from tests.faults.world import AnyNode

KINDS = ("any", "installed", "container")
"""The RabbitMQ to break: any that can be had, the one installed here, or one in a container."""


def start(kind: str) -> AnyNode:
    """A node of that kind, which the caller closes."""
    if kind == "any":
        return node_to_break()
    node = Node() if kind == "installed" else ContainerNode()
    try:
        node.start()
    except BaseException:
        node.close()
        raise
    return node


def loop_name() -> str:
    """The event loop that services choose by themselves."""
    return "uvloop" if find_spec("uvloop") is not None else "asyncio"
