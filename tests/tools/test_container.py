"""A node in a container: the same verbs as a private node, through the docker command."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.tools import container as container_module
from broker.tools.container import ContainerNode
from broker.tools.node import NodeFailed


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker command that writes down what it is told."""
    log, docker = tmp_path / "log", tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >>{log}\ncase "$1" in exec) echo told;; esac\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(container_module, "answers", lambda *_: True)
    return log


def test_a_container_takes_the_verbs_of_a_node(log: Path) -> None:
    node = ContainerNode()
    node.start()
    node.kill()
    node.start()
    node.pause()
    node.resume()
    node.restart()
    assert node.control("list_queues") == "told\n"
    node.close()
    node.close()
    told = log.read_text().splitlines()
    assert told[0].startswith("create --name=business-events-")
    assert f"--publish=127.0.0.1:{node.url.rpartition(':')[2].strip('/')}:5672" in told[0]
    assert f"--publish=127.0.0.1:{node.management_url.rpartition(':')[2]}:15672" in told[0]
    verbs = [line.split()[0] for line in told[1:]]
    assert verbs == ["start", "kill", "start", "pause", "unpause", "stop", "start", "exec", "rm"]


def test_a_node_that_does_not_answer_is_given_up(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_module, "answers", lambda *_: False)
    node = ContainerNode()
    with pytest.raises(NodeFailed, match="did not answer"):
        node.start(timeout=0.1)
    node.close()
    assert log.read_text().splitlines()[-1].startswith("rm --force --volumes")


def test_what_docker_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho no such container >&2; exit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NodeFailed, match="docker kill: no such container"):
        ContainerNode().kill()
    docker.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeFailed, match="No such file"):
        ContainerNode().kill()
