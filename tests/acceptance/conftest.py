"""Processes that end with their test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.acceptance.running import ROOT, Process, environment


class Start(Protocol):
    """Starts a process that goes on running."""

    def __call__(
        self, *words: str, url: str, folder: Path = ROOT, environ: Mapping[str, str] | None = None
    ) -> Process: ...


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts processes, ``start("broker", "run", "sorting", url=url)``. They are killed at the test's end."""
    output = tmp_path_factory.mktemp("output")
    started: list[Process] = []

    def start(*words: str, url: str, folder: Path = ROOT, environ: Mapping[str, str] | None = None) -> Process:
        told = environment(url) | dict(environ or {})
        started.append(Process(words, folder, told, output / str(len(started))))
        return started[-1]

    yield start
    for process in started:
        process.kill()
