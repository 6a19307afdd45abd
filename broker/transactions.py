"""What the core asks of a service's database, and what it may rely on: one small protocol.

The implementation is `broker.sql`. The contract of one delivery:

1. Its inbox entry (service, source, event id), whatever the handler did through ``context.transaction``, and what it
   published are stored together, or nothing of it is. Only then is the delivery acknowledged.
2. An event with an inbox entry is a duplicate: its handler is not called.
3. What failed for the database's sake is handled again as a whole: at once, when another writer was faster; when the
   database is back, when it is away. None of this counts as an attempt.
4. What the handler itself raises rolls everything back, and is raised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Union

from broker.envelope import Envelope
from broker.errors import ContractError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from broker.publisher import Publication

Database = Union[str, "AsyncEngine", Callable[[], "str | AsyncEngine | Awaitable[str | AsyncEngine]"]]
"""A URL, an engine, or a function, ``async`` or not, that is called for either when the service starts."""


class Transactions(Protocol):
    """The database of a service at work."""

    async def run(
        self,
        envelope: Envelope,
        handle: Callable[[AsyncSession], Awaitable[Sequence[Publication]]],
        *,
        again: bool = False,
    ) -> bool:
        """Handle a delivery in one transaction; False if it is a duplicate and nothing was done.

        Args:
            envelope: what was delivered.
            handle: calls the handler with the transaction's session, and returns what it publishes. It may be called
                again after it was rolled back.
            again: handle it even if it has an inbox entry, which is then replaced.

        Raises:
            Exception: what the handler raised. Nothing was stored.
            TooLarge, ContractError: what it published cannot be sent. Nothing was stored.
        """

    async def unpublished(self) -> int:
        """How many events are in the outbox and wait to be published."""

    def problems(self) -> list[str]:
        """What is wrong right now, in words; empty when all is well."""


class NoTransaction:
    """Stands where a handler has no transaction, and says why when it is used."""

    def __init__(self, why: str) -> None:
        self.__why = why

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for these by itself
            raise AttributeError(name)
        raise ContractError(self.__why)

    def __repr__(self) -> str:
        return f"<no transaction: {self.__why}>"


NO_DATABASE: Any = NoTransaction(
    "This service has no database. Write Service(..., database=...), or Context(transaction=...)."
)
ENDED: Any = NoTransaction("The handler has ended, and its transaction with it. Use it before the handler returns.")
