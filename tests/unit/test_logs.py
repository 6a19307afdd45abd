"""Log lines: their form, their level, and whose configuration counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from broker import Settings
from broker.logs import configure, logger


@pytest.fixture(autouse=True)
def _unconfigured(lines: list[dict[str, Any]]) -> Iterator[None]:
    structlog.reset_defaults()
    levels = {name: logging.getLogger(name).level for name in ("aio_pika", "aiormq")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_lines_are_json_objects_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log = logger(Settings(), service="crm")
    log.info("handled", event_name="Parcel Weighed", odd=object)
    (line,) = logged(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "handled",
        "level": "info",
        "service": "crm",
        "event_name": "Parcel Weighed",
        "odd": "<class 'object'>",
    }


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", ["debug", "info", "error"]), ("info", ["info", "error"]), ("error", ["error"])],
)
def test_the_level(capsys: pytest.CaptureFixture[str], level: Any, shown: list[str]) -> None:
    log = logger(Settings(logging_level=level))
    for each in ("debug", "info", "error"):
        getattr(log, each)(each)
    assert [line["event"] for line in logged(capsys)] == shown


def test_an_exception_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    log = logger(Settings())
    log.error("dead", exc_info=ValueError("no\ntape"))
    (line,) = logged(capsys)
    assert "ValueError: no\ntape" in line["exception"]


def test_people_get_text(capsys: pytest.CaptureFixture[str]) -> None:
    logger(Settings(logging_format="console"), service="crm").info("started")
    text = capsys.readouterr().err
    assert "started" in text
    assert "crm" in text
    assert "\x1b[" not in text, "no colours where there is no terminal"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_an_application_that_configured_structlog_keeps_its_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    capture = structlog.testing.LogCapture()
    structlog.configure(processors=[capture])
    logger(Settings(), service="crm").info("started")
    assert capture.entries == [{"event": "started", "service": "crm", "log_level": "info"}]
    assert capsys.readouterr().err == ""


def test_a_process_of_ours_configures_itself(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.configure(processors=[structlog.testing.LogCapture()])
    configure(Settings())
    logger(Settings()).info("started")
    assert [line["event"] for line in logged(capsys)] == ["started"]
    assert not logging.getLogger("aiormq").isEnabledFor(logging.ERROR)
