"""The services' commands, without any RabbitMQ: what they store, leave to be published, print, and how they end."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from tests.services.commands import Commands, outgoing

UNKNOWN = str(uuid4())


@pytest.fixture
def run() -> Commands:
    return Commands()


ADD = {
    "customer": ["--name", "Ada", "--email", "ada@example.com"],
    "catalog": ["--name", "Lamp", "--price", "19.9"],
    "address": ["--customer", UNKNOWN, "--street", "A 1", "--city", "Berlin", "--postcode", "10115"],
}
CHANGE = {"customer": ["--name", "Eve"], "catalog": ["--price", "21.50"], "address": ["--city", "Wien"]}
OWNERS = pytest.mark.parametrize("owner", list(ADD))


@OWNERS
def test_an_owner_adds_changes_lists_and_announces(owner: str, run: Commands) -> None:
    added = run.json(owner, "add", *ADD[owner])
    key = next(iter(added))
    changed = run.json(owner, "change", added[key], *CHANGE[owner])
    assert (added["revision"], changed["revision"], changed[key]) == (1, 2, added[key])
    assert run.json(owner, "list") == [changed]
    assert run.json(owner, "announce") == {"announced": 1}
    told = outgoing(owner)
    assert [event["data"] for event in told] == [added, changed, changed]
    assert {event["source"] for event in told} == {owner}
    assert len({event["id"] for event in told}) == 3


@OWNERS
def test_people_get_a_table(owner: str, run: Commands) -> None:
    for result in (run(owner, "add", *ADD[owner]), run(owner, "list")):
        assert result.exit_code == 0
        assert "revision" in result.stdout
    assert "Announced 1" in run(owner, "announce").stdout


@OWNERS
def test_an_owner_adds_many_from_a_file_or_none(owner: str, run: Commands) -> None:
    lines: dict[str, list[Any]] = {
        "customer": [{"name": f"Ada {n}", "email": "ada@example.com"} for n in range(3)],
        "catalog": [{"name": f"Lamp {n}", "price": {"amount": "1.5", "currency": "EUR"}} for n in range(3)],
        "address": [
            {"customer_id": UNKNOWN, "street": f"A {n}", "city": "B", "postcode": "C", "country": "DE"}
            for n in range(3)
        ],
    }
    text = "\n".join(json.dumps(line) for line in lines[owner]) + "\n\n"
    result = run(owner, "add", "--file", "-", "--json", stdin=text)
    assert result.exit_code == 0, result.output
    assert len({json.dumps(json.loads(line)) for line in result.stdout.splitlines()}) == 3
    assert len(outgoing(owner)) == 3
    broken = run(owner, "add", "--file", "-", "--json", stdin=f'{text}{{"name": 7}}')
    assert (broken.exit_code, len(outgoing(owner)), len(run.json(owner, "list"))) == (2, 3, 3)
    assert "line 5: " in broken.stderr


@OWNERS
def test_an_id_may_be_chosen_once(owner: str, run: Commands) -> None:
    chosen = str(uuid4())
    assert chosen in run.json(owner, "add", *ADD[owner], "--id", chosen).values()
    again = run(owner, "add", *ADD[owner], "--id", chosen)
    assert (again.exit_code, len(outgoing(owner))) == (2, 1)
    assert f"{chosen} already" in again.stderr


@OWNERS
def test_an_unknown_id_is_an_error_that_names_it(owner: str, run: Commands) -> None:
    result = run(owner, "change", UNKNOWN, *CHANGE[owner])
    assert (result.exit_code, outgoing(owner)) == (2, [])
    assert UNKNOWN in result.stderr


@OWNERS
@pytest.mark.parametrize("arguments", [["add"], ["add", "--file", "/no/file"], ["change", "no-id"], ["nonsense"]])
def test_calling_it_wrongly_is_exit_code_2(owner: str, arguments: list[str], run: Commands) -> None:
    assert run(owner, *arguments).exit_code == 2


@OWNERS
def test_a_change_of_nothing_is_exit_code_2(owner: str, run: Commands) -> None:
    assert run(owner, "change", UNKNOWN).exit_code == 2


@pytest.mark.parametrize(
    ("owner", "arguments", "what"),
    [
        ("customer", ["--name", "Ada", "--email", "nowhere"], "email"),
        ("customer", ["--name", " ", "--email", "ada@example.com"], "name"),
        ("catalog", ["--name", "Lamp", "--price", "cheap"], "price.amount"),
        ("catalog", ["--name", "Lamp", "--price", "1.999"], "price.amount"),
        ("catalog", ["--name", "Lamp", "--price", "-1"], "price.amount"),
        ("catalog", ["--name", "Lamp", "--price", "1", "--currency", "euro"], "price.currency"),
        ("address", [*ADD["address"], "--country", "Germany"], "country"),
    ],
)
def test_what_cannot_be_is_refused_by_name(owner: str, arguments: list[str], what: str, run: Commands) -> None:
    result = run(owner, "add", *arguments)
    assert (result.exit_code, run.json(owner, "list"), outgoing(owner)) == (2, [], [])
    assert f"{what}: " in result.stderr


@pytest.mark.parametrize("service", [*ADD, "order", "crm", "reporting"])
def test_a_database_that_cannot_be_used_is_said(service: str, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{service.upper()}_DATABASE", "sqlite+aiosqlite:////proc/shop.db")
    result = run(service, "show" if service == "reporting" else "list")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "/proc/shop.db cannot be used: unable to open database file" in result.stderr


@pytest.mark.parametrize("service", [*ADD, "order", "crm", "reporting"])
def test_help_says_what_there_is(service: str, run: Commands) -> None:
    result = run(service, "--help")
    assert result.exit_code == 0
    assert "Without a command" in result.stdout


def test_hostile_names_do_not_steer_the_terminal(run: Commands) -> None:
    hostile = "\x1b[2J[bold]Ada[/nonsense]\x07"
    run("customer", "add", "--name", hostile, "--email", "ada@example.com")
    result = run("customer", "list")
    assert result.exit_code == 0
    assert "\x1b[2J" not in result.stdout
    assert "[bold]" in result.stdout
