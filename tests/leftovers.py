"""Finding what a test's processes have left behind, however they are related by now."""

from __future__ import annotations

import uuid
from pathlib import Path

VARIABLE = "LEFTOVERS_OF"


class Mark:
    """A variable to put in a process's environment: all its descendants inherit it, those that left its group, too."""

    def __init__(self) -> None:
        self._value = uuid.uuid4().hex
        self.environment = {VARIABLE: self._value}

    def processes(self) -> dict[int, str]:
        """The running processes that carry the mark, with their command lines. Zombies have ended."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{VARIABLE}={self._value}".encode() in (folder / "environ").read_bytes()
                zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended just now
                continue
            if marked and not zombie:
                found[int(folder.name)] = command
        return found
