"""Where the command line finds events and services."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import ContractError
from broker.tools.discover import find_services, load_service

SERVICE = "from broker import Service\nservice = Service({name!r})\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_module_in_the_current_folder_is_found(folder: Path) -> None:
    write(folder, "lone.py", SERVICE.format(name="lone"))
    assert load_service("lone").name == "lone"


def test_packages_are_searched_but_nothing_is_run(folder: Path) -> None:
    write(folder, "depot/__init__.py", "")
    write(folder, "depot/one.py", SERVICE.format(name="one"))
    write(folder, "depot/deep/__init__.py", SERVICE.format(name="two"))
    write(folder, "depot/__main__.py", "raise SystemExit('ran')")
    assert [service.name for service in find_services(["depot"])] == ["one", "two"]


def test_a_service_is_chosen_by_its_variable_or_its_name(folder: Path) -> None:
    write(folder, "pair.py", "from broker import Service\na = Service('first')\nb = Service('second')\n")
    assert load_service("pair:b").name == "second"
    assert load_service("pair:first").name == "first"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "no module 'nowhere'"),
        ("nowhere.inside", "no module 'nowhere.inside'"),
        ("empty", "holds no service"),
        ("pair", r"holds 2 services\. Say pair:first"),
        ("pair:frist", "Did you mean 'first'"),
        ("broken", "ZeroDivisionError"),
        ("quits", "SystemExit"),
        ("needy", "No module named 'not_installed'"),
        ("badname", "'Bad Name' is not a service name"),
    ],
)
def test_what_cannot_be_loaded_is_said(folder: Path, target: str, message: str) -> None:
    write(folder, "empty.py", "")
    write(folder, "pair.py", "from broker import Service\na = Service('first')\nb = Service('second')\n")
    write(folder, "broken.py", "1 / 0")
    write(folder, "quits.py", "raise SystemExit('no')")
    write(folder, "needy.py", "import not_installed")
    write(folder, "badname.py", SERVICE.format(name="Bad Name"))
    with pytest.raises(ContractError, match=message):
        load_service(target)


def test_two_services_of_one_name_are_refused(folder: Path) -> None:
    write(folder, "twins/__init__.py", "")
    write(folder, "twins/one.py", SERVICE.format(name="twin"))
    write(folder, "twins/two.py", SERVICE.format(name="twin"))
    with pytest.raises(ContractError, match="Two services are named 'twin'"):
        find_services(["twins"])
