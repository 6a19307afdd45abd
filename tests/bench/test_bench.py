"""The benchmark's own arithmetic and pictures; and that what it claims is checked."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.plot import curve
from bench.report import Floor, exponent, floors, page, paired, points, text
from bench.rows import ALL, ROWS
from bench.runner import Bench, Wrong
from tests.acceptance.running import ROOT

MACHINE = {
    "date": "2026-01-01",
    "cpu": "a cpu",
    "cores": "2",
    "system": "Linux",
    "python": "3.11",
    "rabbitmq": "4.0.5",
    "run": "run",
}
RESULTS: list[dict[str, Any]] = [
    {"row": "publish", "contender": "publish_many", "x": None, "rate": 9000.0, "cpu": 20.0},
    {"row": "publish", "contender": "publish_many", "x": None, "rate": 11000.0, "cpu": 22.0},
    {"row": "publish", "contender": "faststream", "x": None, "rate": 2000.0, "cpu": 300.0},
    {"row": "publish", "contender": "limit", "x": None, "rate": 20000.0, "cpu": 1.0},
    {"row": "patterns", "contender": "ours", "x": 1, "cpu": 20.0},
    {"row": "patterns", "contender": "ours", "x": 200, "cpu": 30.0},
]


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_that_power(power: float) -> None:
    assert exponent([(x, 7 * x**power) for x in (1.0, 10.0, 100.0)]) == pytest.approx(power)


def test_ratios_are_of_medians_and_what_is_missed_or_not_measured_says_so() -> None:
    told = {floor.what: floor.told for floor in floors(RESULTS)}
    assert told["`publish_many`, × FastStream"][1:] == ("≥ 4.5", "5.00")
    assert told["`publish_many`, share of the limit"][1:] == ("≥ 0.85", "0.50 (missed)")
    assert told["1 → 200 patterns in a service, dispatch cost, deviation"][1:] == ("≤ 0.1", "0.50 (missed)")
    assert told["a backlog consumed, × FastStream"][1:] == ("≥ 9", "not measured")
    assert Floor("x", 1.0, 1, True).kept
    assert points(RESULTS, "patterns", "ours", "cpu") == [(1, 20.0), (200, 30.0)]


def test_turns_are_held_against_those_beside_them_whatever_the_trend() -> None:
    """A rate that grows along the run is nobody's merit."""
    trend = [10_000.0 + 500 * turn for turn in range(7)]
    recorded = [0.9 * rate for rate in trend[::2]]
    results: list[Any] = [
        {"row": "handlings", "contender": "recorded", "x": None, "turns": recorded},
        {"row": "handlings", "contender": "not recorded", "x": None, "turns": trend[1::2]},
    ]
    assert paired(results, "handlings", "recorded", "not recorded") == pytest.approx(0.9)
    assert paired([], "handlings", "recorded", "not recorded") is None


def test_the_page_names_the_machine_and_every_contender() -> None:
    run = {"machine": MACHINE, "results": RESULTS}
    assert "a cpu (2 cores, Linux)" in page(run)
    assert "| FastStream | 2,000 | 300.0 | – |" in page(run)
    assert "not measured" in text(run)


def test_a_curve_is_well_formed_and_names_its_axes() -> None:
    drawn = curve({"ours <b>": [(1, 5.0), (10, 6.0)], "theirs": [(1, 500.0), (10, 60.0)]}, "events & more", "µs")
    texts = [it.text for it in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"events & more", "µs", "ours <b>", "theirs"} <= set(texts)


def test_each_contender_reads_on_one_screen() -> None:
    for name in ALL:
        assert len((ROOT / "bench" / "contenders" / f"{name}.py").read_text().splitlines()) < 160, name


def test_what_is_measured_is_so_and_what_is_not_is_found(vhost_url: str) -> None:
    with closing(Bench(vhost_url, scale=0.02, rounds=1, contenders=("ours", "limit"))) as bench:
        measure(bench)


def measure(bench: Bench) -> None:
    bench.declare("bench")
    ROWS[1](bench)
    ROWS[3](bench)
    rates = {(it["row"], it["contender"]): it["rate"] for it in bench.results}
    publishers = {("publish", name) for name in ("ours", "publish_many", "limit")}
    assert set(rates) == publishers | {("consume", "ours"), ("consume", "limit")}
    assert min(rates.values()) > 0
    bench.fill("ours", 3)
    with pytest.raises(Wrong, match="holds 3 messages, not 4"):
        bench.check(4, patience=0.1)
    with pytest.raises(Wrong, match="ours did not nonsense: exit code 1"):
        bench.run("ours", "nonsense")


@pytest.mark.parametrize("wrong", [["--rows", "99"], ["--rows", "x"], ["--contenders", "rabbits"]])
def test_wrong_wishes_are_refused_before_anything_is_started(wrong: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-m", "bench", *wrong], cwd=Path(ROOT), capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"error: argument" in ended.stderr
