"""Log lines: one for each thing that happened, with fixed names that people can alert on.

``started connected consuming published handled retrying dead disconnected draining stopped``. Successful events are
DEBUG. Lines go to stderr, for people on a terminal and as JSON otherwise.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from broker.settings import Settings


def configure(settings: Settings) -> None:
    """Set up logging for a process that is ours: a service or a command."""
    for name in ("aio_pika", "aiormq", "asyncio"):  # what they say of broken connections would repeat ours
        logging.getLogger(name).setLevel(logging.CRITICAL if name != "asyncio" else logging.ERROR)
    _configure_structlog(settings)


def _configure_structlog(settings: Settings) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_rendering(settings),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.logging_level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _rendering(settings: Settings) -> list[Processor]:
    console = settings.logging_format == "console" or (settings.logging_format == "auto" and sys.stderr.isatty())
    if console:
        return [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=12, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def logger(settings: Settings, **context: Any) -> FilteringBoundLogger:
    """A logger that carries a context. An application that configured structlog itself keeps its configuration."""
    if not structlog.is_configured():
        _configure_structlog(settings)
    log: FilteringBoundLogger = structlog.get_logger(**context)
    return log
