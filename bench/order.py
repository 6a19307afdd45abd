"""The event of all measurements, as a plain pydantic model: what each contender's users would write."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import BaseModel

KEY = "order.placed"
LEAN = -1
"""As ``padding``: an order of nothing."""


class Line(BaseModel):
    """What was ordered."""

    isbn: str
    title: str
    quantity: int
    price: Decimal


class Order(BaseModel):
    """An order. ``sent`` is when it was published, in nanoseconds of the machine's monotonic clock."""

    order_id: UUID
    customer: str
    email: str
    lines: list[Line]
    total: Decimal
    sent: int = 0


def size(padding: int) -> int:
    """Bytes of the JSON of an order."""
    return len(Order(**fields(0, padding)).model_dump_json())


def fields(number: int = 0, padding: int = 0) -> dict[str, Any]:
    """An order's fields, some 330 bytes of JSON, and more with ``padding``; 100 if it is `LEAN`."""
    order_id = UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
    if padding == LEAN:
        return {"order_id": order_id, "customer": "A", "email": "a@b.org", "lines": [], "total": "0"}
    return {
        "order_id": order_id,
        "customer": "Ada Lovelace" + "." * padding,
        "email": "ada.lovelace@example.org",
        "lines": [
            {
                "isbn": f"978-0-13-46850{n}-5",
                "title": "The Art of Event-Driven Systems",
                "quantity": n,
                "price": "42.50",
            }
            for n in (1, 2)
        ],
        "total": "127.50",
    }
