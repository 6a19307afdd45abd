"""Waiting for a condition: as long as it takes, and no longer than its deadline."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T | None]], timeout: float = 10.0, every: float = 0.01) -> T: ...
@overload
async def until(condition: Callable[[], T | None], timeout: float = 10.0, every: float = 0.01) -> T: ...
async def until(condition: Callable[[], Any], timeout: float = 10.0, every: float = 0.01) -> Any:
    """Return the first true value of a condition.

    Raises:
        AssertionError: there was none within ``timeout`` seconds; it names the condition and its last value.
    """
    deadline = monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if monotonic() > deadline:
            where = inspect.getsource(condition).strip() if inspect.isfunction(condition) else repr(condition)
            raise AssertionError(f"still {value!r} after {timeout:g} s: {where}")
        await asyncio.sleep(every)
