"""Every service of a test has its files in the test's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

SERVICES = ("customer", "catalog", "address", "order", "packing", "dispatch", "crm", "reporting")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the services' files, which does not exist yet."""
    folder = tmp_path / "data"
    for service in SERVICES:
        monkeypatch.setenv(f"{service.upper()}_DATABASE", f"sqlite+aiosqlite:///{folder}/{service}.db")
    monkeypatch.setenv("CRM_OUTBOX", str(folder / "outbox"))
    monkeypatch.delenv("CRM_SMTP_URL", raising=False)
    monkeypatch.setenv("PACKING_WORKING_TIME", "0")
    monkeypatch.setenv("DISPATCH_WORKING_TIME", "0")
    return folder
