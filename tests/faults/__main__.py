"""The full matrix, ``make faults``: on the RabbitMQ installed here and on the one in a container, as far as there are.

Arguments go to pytest; with any, rows that did not run keep their results. Writes docs/reliability.json and the table
in docs/reliability.md. Exits 0 when every row passed on at least one RabbitMQ and failed on none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from broker.tools.container import IMAGE, docker
from broker.tools.node import NodeFailed, installed
from tests.acceptance.running import ROOT
from tests.faults.matrix import load, merge, write

KINDS: dict[str, tuple[str, Callable[[], object]]] = {
    "installed": ("the rabbitmq-server of this machine", installed),
    "container": (f"{IMAGE} in a container", lambda: docker("image", "inspect", IMAGE)),
}


def main(arguments: list[str]) -> int:
    """Run the matrix on each kind of RabbitMQ there is."""
    codes: dict[str, int] = {}
    for kind, (name, find) in KINDS.items():
        try:
            find()
        except NodeFailed as why:
            say(f"NOT RUN on {name}: {why}")
            continue
        say(f"Running on {name}.")
        codes[kind] = run(kind, arguments)
    if not codes:
        say("FAILED: there is no RabbitMQ to break. Install rabbitmq-server, or start Docker and pull the image.")
        return 1
    for kind, code in codes.items():
        say(f"{'passed' if code == 0 else 'FAILED'} on {KINDS[kind][0]}")
    return max(codes.values())


def run(kind: str, arguments: list[str]) -> int:
    """Run pytest on one kind, and take its results over; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        code = subprocess.call(
            [
                *(sys.executable, "-m", "pytest", str(ROOT / "tests" / "faults")),
                *("-m", "full or not full", f"--rabbitmq={kind}", f"--results={results}", *arguments),
            ],
            cwd=ROOT,
        )
        lines = results.read_text().splitlines() if results.exists() else []
    write(merge(load(), lines, whole=not arguments))
    return code


def say(line: str) -> None:
    """Tell people."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
