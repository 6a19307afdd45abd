"""The eight services as eight processes. None of them outlives the demo, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

from broker.tools.node import Watchdog
from services.demo.lines import LogFile, LogLine

OWNERS = ("customer", "catalog", "address")
LISTENERS = ("order", "packing", "dispatch", "crm", "reporting")
SERVICES = OWNERS + LISTENERS

STOP_TIMEOUT = 30.0
"""Seconds in which a service told to stop must have ended by itself."""

ROOT = Path(__file__).resolve().parent.parent.parent

State = Literal["starting", "running", "killed", "stopping", "stopped", "failed"]


class DemoFailed(Exception):
    """Something is not as it should be; the message says what."""


class Guard:
    """Sees to it that no process outlives the demo, even when the demo is killed (-9). A ``with`` block.

    All of them join one process group, which a watchdog kills when the demo has died: one that has just been started
    is a member before it does anything.

    Attributes:
        group: the process group, for whoever starts one.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "group"

    def keep(self) -> None:
        """From here on they may outlive the demo."""
        self._watchdog.release()

    def __enter__(self) -> Self:
        self._watchdog = Watchdog("kill -9 -$$")
        self.group = self._watchdog.group
        self._file.write_text(str(self.group))
        return self

    def __exit__(self, *exc: object) -> None:
        self._watchdog.release()


class Process:
    """One service's process and what it has logged."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], guard: Guard) -> None:
        self.name = name
        self.state: State = "stopped"
        self.log = LogFile(folder / f"{name}.log")
        self.lines: list[LogLine] = []
        self.handled: Counter[str] = Counter()
        """How many events of each name it says it handled."""
        self.last = ""
        self._environment = environment
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Start the process, for the first time or again."""
        with self.log.path.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - one of the eight
                [sys.executable, "-m", f"services.{self.name}"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=self._guard.group,  # Ctrl-C is the demo's to handle
            )
        self.state = "starting"

    def read(self) -> None:
        """Take in what it has logged since."""
        for line in self.log.new_lines():
            self.lines.append(line)
            if line.event == "started" and self.state == "starting":
                self.state = "running"
            if line.event == "handled":
                self.handled[line.event_name] += 1
            if line.event in ("published", "handled", "retrying", "dead"):
                self.last = (
                    line.event_name if line.event in ("handled", "published") else f"{line.event}: {line.event_name}"
                )

    def check(self) -> None:
        """Raises :exc:`DemoFailed` when it ended by itself."""
        if self.state in ("starting", "running") and self._process is not None and self._process.poll() is not None:
            self.state = "failed"
            raise DemoFailed(f"{self.name} ended with status {self._process.returncode}: {self.log.last_words()}")

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.state = "killed"

    def terminate(self) -> None:
        """SIGTERM: it may finish what it has in hand."""
        if self._process is not None and self.pid is not None:
            self._process.terminate()
            self.state = "stopping"

    def wait(self, deadline: float) -> int | None:
        """Its exit status once it has ended, or None if it runs on at the deadline (of ``time.monotonic``)."""
        if self._process is None or self.state in ("killed", "failed"):
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
            self.state = "stopped" if status == 0 else "failed"
            return status
        return None


class Processes:
    """The eight. Leaving the ``with`` block ends them, unless :meth:`keep` was called."""

    def __init__(self, folder: Path, environment: Mapping[str, str], guard: Guard) -> None:
        self._all = {name: Process(name, folder, environment, guard) for name in SERVICES}
        self._guard = guard
        self._kept = False

    def __getitem__(self, name: str) -> Process:
        return self._all[name]

    def __iter__(self) -> Iterator[Process]:
        return iter(self._all.values())

    def start(self, *names: str) -> None:
        """Start the named services."""
        for name in names:
            self[name].start()

    def kill(self, name: str) -> None:
        """``kill -9`` one of them."""
        self[name].kill()

    def stop(self) -> None:
        """Stop all in an orderly way; raises :exc:`DemoFailed` naming those that did not end well."""
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in self:
            process.terminate()
        ended = {process.name: process.wait(deadline) for process in self}
        bad = [
            f"{name} did not stop within {STOP_TIMEOUT:.0f} s"
            if status is None
            else f"{name} ended with status {status}"
            for name, status in ended.items()
            if status != 0
        ]
        if bad:
            raise DemoFailed(f"{'; '.join(bad)} after SIGTERM.")

    @property
    def pids(self) -> str:
        """The ids of those that run, as a shell takes them."""
        return " ".join(str(process.pid) for process in self if process.pid is not None)

    def keep(self) -> None:
        """Let them outlive the demo."""
        self._kept = True
        self._guard.keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self:
            if process.pid is not None and not self._kept:
                self.kill(process.name)


def environment(folder: Path, url: str) -> dict[str, str]:
    """What the services are told: this RabbitMQ, files in this folder, and none of the caller's own settings."""
    settings = ("BROKER_", *(f"{name.upper()}_" for name in SERVICES))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(settings)},
        **{f"{name.upper()}_DATABASE": f"sqlite+aiosqlite:///{folder / name}.db" for name in SERVICES},
        "CRM_OUTBOX": str(folder / "outbox"),
        "BROKER_URL": url,
        "BROKER_LOGGING_LEVEL": "debug",
        "BROKER_LOGGING_FORMAT": "json",
    }


def terminate_as_interrupt() -> None:
    """SIGTERM ends this process as Ctrl-C does, so that everything is cleaned up. (asyncio cancels what runs then.)"""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
