"""``broker asyncapi`` as people run it, and what AsyncAPI's own parser says of what it writes.

The parser is ``@asyncapi/parser`` from npm, at the versions of ``asyncapi/package-lock.json``. It needs Node.js; where
the machine has none, pip brings it: see `tests.node`. Nothing here needs RabbitMQ.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.acceptance.running import ROOT, Ended, broker, command
from tests.node import find_node, install

NOWHERE = "amqp://user:secret@127.0.0.1:1/shop"
"""A server that nobody asks."""
PROJECT = Path(__file__).with_name("asyncapi")
INFORMATION = 2
"""Diagnostics of this severity and above are neither errors nor warnings."""

HOSTILE = '''
"""What nobody would write, and everything that a model can hold."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Callable, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, JsonValue

from broker import Envelope, Event, Service

NAME = "<script>alert(1)</script> *b* [x](javascript:1) | `c` # {{7*7}} $ref ~1 / : & - 'q\\" ${x} \\N{GRINNING FACE}"
T = TypeVar("T")


class Colour(Enum):
    RED = "red"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    tags: set[str] = {"b", "a"}


class Tree(BaseModel):
    value: int
    children: list[Tree] = []
    parent: Tree | None = None


class Page(BaseModel, Generic[T]):
    items: list[T]


class One:
    class Same(BaseModel):
        x: int


class Two:
    class Same(BaseModel):
        y: str


class CloudEvent(BaseModel):
    x: int


class Hostile(Event, name=NAME, key="hostile.names", subject="reference"):
    """<b>bold</b>: "yes", # no comment

    - a | list
      ```
    no: {fence}
    """

    reference: str = Field(alias="$ref")
    slash: int = Field(alias="a/b~c")
    payload: int = Field(alias="payload", description="<img src=x onerror=alert(1)> | *")
    schema_: int = Field(alias="schema")
    control: int = Field(alias="\\u2028 \\x00 \\x85")
    internal: int = Field(alias="x-parser-schema-id")
    given: dict[str, str] = {"$ref": "#/nowhere"}


class Everything(Event, name="Everything Happened", key="everything.happened"):
    dec: Annotated[Decimal, Field(gt=0, max_digits=6, decimal_places=2)]
    when: datetime
    day: date
    at: time
    took: timedelta
    colour: Colour
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    either: int | str | None
    tree: Tree
    pages: Page[Page[str]]
    pair: tuple[int, str]
    tags: set[str] = Field(min_length=3)
    codes: dict[Annotated[str, Field(pattern="^[A-Z]{3}$")], float] = Field(min_length=2)
    anything: Any
    json_: JsonValue
    event: CloudEvent = Field(description="beside a reference")
    one: One.Same
    two: Two.Same
    raw: bytes
    infinite: dict[str, float] = {"x": float("inf")}
    call: Callable[[], int] | None = None


class Endless(Event, name="Endless", key="end.less"):
    again: Endless


class First(Event, name="Versions Differ", key="versions.differ", version=1):
    a: int


class Second(Event, name="Versions Differ", key="versions.differ", version=2):
    b: Page[int]


class Ours(Event, name="Opinions Differ", key="opinions.differ"):
    a: int


class Theirs(Event, name="Opinions Differ", key="opinions.differ"):
    b: str


class SameKeyAsAQueue(Event, name="Same Key As A Queue", key="reader"):
    a: int


class Unused(Event, name="Nobody Cares", key="nobody.cares"):
    a: int


writer = Service("writer", publishes=[Hostile, Everything, Endless, First, Second, Ours, SameKeyAsAQueue])
other = Service("other", publishes=[Theirs])
reader = Service("reader")


@reader.on(First)
async def first(event: First) -> None:
    pass


@reader.on("hostile.*")
async def hostile(envelope: Envelope) -> None:
    pass


@reader.on("nothing.#")
async def nothing(envelope: Envelope) -> None:
    pass
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with services that try what they can."""
    folder = tmp_path_factory.mktemp("asyncapi")
    (folder / "hostile.py").write_text(HOSTILE)
    return folder


async def asyncapi(*words: str, folder: Path = ROOT, **environ: str) -> Ended:
    return await broker("asyncapi", *words, url=NOWHERE, folder=folder, environ=environ)


async def check(documents: list[Path], cache: Path) -> list[dict[str, Any]]:
    """What the parser says of each."""
    node = await asyncio.to_thread(find_node, cache)
    packages = await asyncio.to_thread(install, node, PROJECT, cache)
    words = (*node.node, str(PROJECT / "check.mjs"), str(packages), *map(str, documents))
    done = await command(*words, url=NOWHERE)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def documents(folder: Path) -> dict[str, Path]:
    """Written by the command, each in a process of its own."""
    wanted = {
        "shop.yaml": (ROOT, ()),
        "shop.json": (ROOT, ("--from", "services")),
        "packing.yaml": (ROOT, ("packing", "--title", "Packing: *fast*", "--version", "2.1")),
        "server.json": (ROOT, ("packing", "--server")),
        "hostile.yaml": (folder, ("--from", "hostile")),
        "hostile.json": (folder, ("--from", "hostile")),
        "reader.yaml": (folder, ("reader", "--from", "hostile", "--server")),
    }
    work = [
        asyncapi(*words, "--output", str(folder / name), folder=place, PYTHONHASHSEED=str(seed))
        for seed, (name, (place, words)) in enumerate(wanted.items(), 1)
    ]
    for done in await asyncio.gather(*work):
        assert (done.code, done.err) == (0, "")
    return {name: folder / name for name in wanted}


async def test_the_official_parser_accepts_them(documents: dict[str, Path], pytestconfig: pytest.Config) -> None:
    """No error and no warning, for people's YAML and programs' JSON, the shop's and the worst we could think of."""
    assert pytestconfig.cache is not None
    said = await check(list(documents.values()), Path(pytestconfig.cache.mkdir("asyncapi")))
    found = dict(zip(documents, said, strict=True))
    for name, it in found.items():
        serious = [diagnostic for diagnostic in it["diagnostics"] if diagnostic["severity"] < INFORMATION]
        assert serious == [], name
        assert {diagnostic["code"] for diagnostic in it["diagnostics"]} <= {"asyncapi-latest-version"}, name
    shop, packing, hostile = found["shop.yaml"], found["packing.yaml"], found["hostile.yaml"]
    assert len(shop["messages"]) == 6
    assert len([it for it in shop["operations"] if ".receives." in it]) == 14
    assert len([it for it in shop["channels"] if it.startswith("Queue.")]) == 5
    assert packing["messages"] == ["New Order Placed", "Order Packed"]
    assert packing["operations"] == ["packing.receives.order.placed", "packing.sends.order.packed"]
    assert any(name.startswith("<script>") for name in hostile["messages"])
    assert {"reader", "Queue.reader"} <= set(hostile["channels"])
    assert "reader.receives" in found["reader.yaml"]["operations"]


async def test_yaml_and_json_say_the_same_each_time(documents: dict[str, Path]) -> None:
    """Each was written in a process with hashes of its own, so it is the same each time, too."""
    for name in ("shop", "hostile"):
        in_yaml, in_json = (documents[f"{name}.{form}"].read_text() for form in ("yaml", "json"))
        assert json.dumps(yaml.safe_load(in_yaml)) == json.dumps(json.loads(in_json))


async def test_the_server_is_told_only_when_asked_for_and_never_its_login(documents: dict[str, Path]) -> None:
    assert "127.0.0.1" not in documents["shop.json"].read_text()
    assert "secret" not in documents["server.json"].read_text()
    told = json.loads(documents["server.json"].read_text())
    server = told["servers"]["rabbitmq"]
    assert (server["protocol"], server["host"], server["pathname"]) == ("amqp", "127.0.0.1:1", "/shop")
    assert told["components"]["channelBindings"]["event"]["amqp"]["exchange"]["vhost"] == "shop"


async def test_it_is_printed_unless_a_file_is_named(documents: dict[str, Path]) -> None:
    assert (await asyncapi()).out == documents["shop.yaml"].read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pcking",), "There is no service 'pcking'. Did you mean 'packing'?"),
        (("--output", "missing/file.yaml"), "--output missing/file.yaml: No such file or directory."),
    ],
    ids=("a service", "a folder"),
)
async def test_what_is_not_there_is_said(words: tuple[str, ...], said: str) -> None:
    done = await asyncapi(*words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
