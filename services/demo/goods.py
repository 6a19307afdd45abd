"""Customers, items, addresses and orders to play with. The same every time, but for their ids."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from uuid import uuid4

PEOPLE = (
    ("Ada Lovelace", "ada@example.com"),
    ("Grace Hopper", "grace@example.com"),
    ("Käthe & Söhne <Müller>", "kaethe@example.com"),  # must come out right in HTML, too
    ("Alan Turing", "alan@example.com"),
    ("山田 花子", "hanako@example.com"),
)
ITEMS = (
    ("Lamp", "19.99"),
    ("Kettle", "34.50"),
    ("Notebook, ruled", "3.20"),
    ("Chair", "129.00"),
    ("Tea, 250 g", "7.95"),
    ("Pencil", "0.85"),
)
PLACES = (
    ("12 St James's Square", "London", "SW1Y 4LE", "GB"),
    ("1 Navy Way", "Arlington", "22202", "US"),
    ("Am Markt 3", "Weimar", "99423", "DE"),
    ("Bletchley Park", "Milton Keynes", "MK3 6EB", "GB"),
    ("1-1 Chiyoda", "Tokyo", "100-8111", "JP"),
)

Entity = dict[str, object]


@dataclass(frozen=True)
class Goods:
    """What the three owners are given, as their commands read it."""

    customers: list[Entity]
    items: list[Entity]
    addresses: list[Entity]

    def orders(self, count: int) -> list[Entity]:
        """So many orders of one to three lines each, as ``order place`` reads them."""
        chance = random.Random(20)  # noqa: S311 - the same every time, and no secret
        return [self._order(chance, number) for number in range(count)]

    def _order(self, chance: random.Random, number: int) -> Entity:
        who = number % len(self.customers)
        return {
            "customer_id": self.customers[who]["customer_id"],
            "address_id": self.addresses[who]["address_id"],
            "lines": [
                {"item_id": item["item_id"], "quantity": chance.randint(1, 5)}
                for item in chance.sample(self.items, chance.randint(1, 3))
            ],
        }


def invent() -> Goods:
    """New ids for everybody and everything."""
    customers: list[Entity] = [{"customer_id": _id(), "name": name, "email": email} for name, email in PEOPLE]
    return Goods(
        customers=customers,
        items=[
            {"item_id": _id(), "name": name, "price": {"amount": amount, "currency": "EUR"}} for name, amount in ITEMS
        ],
        addresses=[
            {
                "address_id": _id(),
                "customer_id": customer["customer_id"],
                "street": street,
                "city": city,
                "postcode": postcode,
                "country": country,
            }
            for customer, (street, city, postcode, country) in zip(customers, PLACES, strict=True)
        ],
    )


def as_lines(entities: list[Entity]) -> str:
    """JSON Lines, as ``add --file`` reads them."""
    return "".join(json.dumps(entity) + "\n" for entity in entities)


def _id() -> str:
    return str(uuid4())
