"""Waiting for a condition: as long as it takes, and no longer than its deadline.

That something does not happen is shown by how often it was tried meanwhile: see `counted`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from time import monotonic
from typing import Any, TypeVar, overload

import pytest

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T | None]], timeout: float = 30.0, every: float = 0.01) -> T: ...
@overload
async def until(condition: Callable[[], T | None], timeout: float = 30.0, every: float = 0.01) -> T: ...
async def until(condition: Callable[[], Any], timeout: float = 30.0, every: float = 0.01) -> Any:
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


def counted(patch: pytest.MonkeyPatch, owner: object, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a method, or of a module's function, from now on; a call counts when it begins.

    Of tries that follow one another, all but the last have ended: once n + 1 are counted, n are over.
    """
    calls: list[tuple[Any, ...]] = []
    function = getattr(owner, name)

    @wraps(function)
    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **named)

    patch.setattr(owner, name, counting)
    return calls
