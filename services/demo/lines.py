"""The log lines of the services: what they say they did."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError


class LogLine(BaseModel):
    """One line of a service's log, as far as the demo reads it."""

    model_config = ConfigDict(frozen=True)

    event: str
    """What happened: ``started``, ``published``, ``handled``, ``retrying``, ``dead`` …"""
    timestamp: datetime
    service: str = ""
    event_name: str = ""
    event_id: UUID | None = None
    correlation_id: UUID | None = None
    source: str = ""
    """Who published the event."""
    error: str = ""


class LogFile:
    """A log file that grows: gives each complete line once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def new_lines(self) -> list[LogLine]:
        """The lines written since the last call. What is no log line, a traceback say, is left out."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._read += len(complete) + len(newline)
        return [line for line in map(parse, complete.splitlines()) if line is not None]

    def last_words(self) -> str:
        """The end of the file, for saying why its process died."""
        if not self.path.exists():
            return ""
        lines = self.path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""


def parse(line: bytes) -> LogLine | None:
    """A log line, or None."""
    try:
        return LogLine.model_validate_json(line)
    except ValidationError:
        return None
