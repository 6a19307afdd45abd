"""The services' commands, run as a person would run them: ``python -m services.customer list --json``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from services.demo.processes import ROOT, DemoFailed, Guard

PATIENCE = 60.0
"""Seconds that one command may take. A slow machine needs two."""


class Commands:
    """Runs commands with the environment of the services; what they log goes to files in the folder.

    Leaving the ``async with`` block ends those that still run.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], guard: Guard) -> None:
        self._folder = folder
        self._environment = environment
        self._guard = guard
        self._running: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(*map(self.end, list(self._running)))

    def log(self, service: str) -> Path:
        """The file in which the commands of a service log."""
        return self._folder / f"{service}.commands.log"

    async def run(self, service: str, *arguments: str, stdin: str = "") -> str:
        """Run a command to its end and return what it printed; raises :exc:`DemoFailed` when it fails."""
        return await self.finish(service, await self.start(service, *arguments), stdin)

    async def finish(self, service: str, process: asyncio.subprocess.Process, stdin: str = "") -> str:
        """Give a started command its input and return what it printed; raises as :meth:`run`."""
        try:
            async with asyncio.timeout(PATIENCE):
                output, _ = await process.communicate(stdin.encode())
        except TimeoutError:
            raise DemoFailed(f"A command of {service} did not end within {PATIENCE:.0f} s.") from None
        finally:
            await self.end(process)
        if process.returncode:
            raise DemoFailed(
                f"A command of {service} ended with status {process.returncode}: {self.last_words(service)}"
            )
        return output.decode()

    async def json(self, service: str, *arguments: str) -> Any:
        """What a command prints with ``--json``."""
        return json.loads(await self.run(service, *arguments, "--json"))

    async def start(self, service: str, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command; :meth:`finish` or :meth:`end` is called for it."""
        with self.log(service).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"services.{service}",
                *arguments,
                cwd=ROOT,
                env=dict(self._environment),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                process_group=self._guard.group,
            )
        self._running.add(process)
        return process

    async def end(self, process: asyncio.subprocess.Process, patience: float = 0.0) -> None:
        """End a started command: close its input, let it go on for so many seconds, then kill it."""
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._running.discard(process)

    def emails(self) -> list[Path]:
        """What lies in CRM's outbox."""
        return sorted(Path(self._environment["CRM_OUTBOX"]).rglob("*.eml"))

    def last_words(self, service: str) -> str:
        """The end of what the commands of a service logged."""
        lines = self.log(service).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Placer:
    """One ``order place`` that takes orders through a pipe, at the demo's pace."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Placer:
        self._process = await self._commands.start("order", "place", "--file", "-", "--wait", "30", "--json")
        return self

    async def place(self, order: Mapping[str, object]) -> dict[str, Any]:
        """Place one order; returns it as stored."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise DemoFailed("The command that places orders is not running.")
        process.stdin.write(json.dumps(order).encode() + b"\n")
        try:
            async with asyncio.timeout(PATIENCE):
                await process.stdin.drain()
                answer = await process.stdout.readline()
        except (TimeoutError, OSError):
            answer = b""
        placed: dict[str, Any] = json.loads(answer) if answer else {"refused": self._commands.last_words("order")}
        if "refused" in placed:
            raise DemoFailed(f"An order was not placed: {placed['refused']}")
        return placed

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._process is not None:
            await self._commands.end(self._process, patience=10.0 if kind is None else 0.0)
