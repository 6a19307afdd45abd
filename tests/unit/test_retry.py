"""Delays, ladders, and what becomes of a delivery."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ContractError, Malformed, Reject, Retry, Unhandled
from broker.retry import LONGEST, Acknowledge, DeadLetter, Delay, RetryAfter, decide, length, moment

DELAYS = st.integers(1, LONGEST).map(Delay)
NOW = datetime(2026, 7, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "milliseconds", "back"),
    [
        ("1ms", 1, "1ms"),
        ("250ms", 250, "250ms"),
        ("1s", 1000, "1s"),
        ("1000ms", 1000, "1s"),
        ("90s", 90_000, "90s"),
        ("1.5m", 90_000, "90s"),
        ("60s", 60_000, "1m"),
        ("2h", 7_200_000, "2h"),
        ("24h", 86_400_000, "1d"),
        ("28d", LONGEST, "28d"),
        ("0.25s", 250, "250ms"),
    ],
)
def test_reading_and_writing(text: str, milliseconds: int, back: str) -> None:
    delay = Delay.parse(text)
    assert (delay.milliseconds, str(delay), delay.seconds) == (milliseconds, back, milliseconds / 1000)


@given(DELAYS)
def test_what_is_written_reads_as_the_same(delay: Delay) -> None:
    assert Delay.parse(str(delay)) == delay


@pytest.mark.parametrize(
    "text",
    ["", "1", "s", "1 s", "-1s", "0s", "0.0001s", "1w", "29d", "1e3s", "1S", "١s", "1s\n", ".5s", "9" * 400 + "s"],
)
def test_what_is_not_a_delay(text: str) -> None:
    with pytest.raises(ContractError, match="not a delay"):
        Delay.parse(text)


@pytest.mark.parametrize("value", [None, 1, 1.5, b"1s", timedelta(seconds=1)])
def test_a_delay_is_text(value: object) -> None:
    with pytest.raises(ContractError, match="not a delay"):
        Delay.parse(value)  # type: ignore[arg-type]


@given(st.text(max_size=10))
def test_any_text_is_a_delay_or_refused(text: str) -> None:
    try:
        delay = Delay.parse(text)
    except ContractError:
        return
    assert 1 <= delay.milliseconds <= LONGEST


@pytest.mark.parametrize(
    ("text", "long"),
    [
        ("0s", timedelta()),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5m", timedelta(seconds=90)),
        ("90d", timedelta(days=90)),  # longer than any delay
        ("36500d", timedelta(days=36500)),
    ],
)
def test_how_long(text: str, long: timedelta) -> None:
    assert length(text) == long
    assert moment(text, NOW) == NOW - long


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 d", "1w", "1s\n", "999999999999d", None, 7])
def test_what_does_not_say_how_long(text: Any) -> None:
    with pytest.raises(ValueError, match=r"number and a unit|longer than"):
        length(text)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-07-01T12:30:00+00:00", datetime(2026, 7, 1, 12, 30, tzinfo=UTC)),
        ("2026-07-01T14:30+02:00", datetime(2026, 7, 1, 12, 30, tzinfo=UTC)),
        ("2026-07-01 12:30Z", datetime(2026, 7, 1, 12, 30, tzinfo=UTC)),
        ("2026-07-01", datetime(2026, 7, 1).astimezone()),
        ("0001-01-01T00:00+00:00", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_when(text: str, at: datetime) -> None:
    found = moment(text, NOW)
    assert (found, found.tzinfo) == (at, UTC)


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "last week", "first", "-7d", "2026-13-01", "999999999d", "999999999999d",
        "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00", None, 7, b"7d",
    ],
)  # fmt: skip
def test_what_does_not_say_when(text: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        moment(text, NOW)


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{1,14}(ms|s|m|h|d)", fullmatch=True) | st.datetimes().map(str))
def test_every_text_says_when_or_is_refused(text: str) -> None:
    try:
        found = moment(text, NOW)
    except ValueError:
        return
    assert found.tzinfo is UTC


def test_a_ladder_says_what_it_is() -> None:
    ladder = Retry("1s", "30s", "600s", never=[KeyError])
    assert repr(ladder) == "Retry('1s', '30s', '10m', never=['KeyError'])"
    assert ladder.longest == timedelta(minutes=10, seconds=31)
    assert Retry("1s", "1s").delays == (Delay(1000), Delay(1000))


def test_a_ladder_without_delays_is_refused() -> None:
    with pytest.raises(ContractError, match="at least one"):
        Retry()


def test_a_ladder_that_goes_down_is_refused() -> None:
    with pytest.raises(ContractError, match="1s comes after 30s"):
        Retry("30s", "1s")


@pytest.mark.parametrize("wrong", ["KeyError", KeyError("a"), int, BaseException, KeyboardInterrupt])
def test_never_takes_exception_classes(wrong: type[Exception]) -> None:
    with pytest.raises(ContractError, match="exception class"):
        Retry("1s", never=[wrong])


class CardError(Exception):
    """A failure of the user's own."""


class CardDeclined(CardError):
    """A kind of it."""


LADDER = Retry("1s", "30s", never=[CardDeclined])


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        (None, 1, Acknowledge()),
        (None, 99, Acknowledge()),
        (Reject("no"), 1, DeadLetter()),
        (Malformed("bad"), 1, DeadLetter()),
        (CardDeclined(), 1, DeadLetter()),
        (CardError(), 1, RetryAfter(Delay(1000))),
        (CardError(), 2, RetryAfter(Delay(30_000))),
        (CardError(), 3, DeadLetter()),
        (CardError(), 1000, DeadLetter()),
        (Unhandled("newer"), 1, RetryAfter(Delay(1000))),
        (Unhandled("newer"), 3, DeadLetter()),
        (ValueError(), 1, RetryAfter(Delay(1000))),
        (TimeoutError(), 2, RetryAfter(Delay(30_000))),
    ],
)
def test_the_table(error: Exception | None, attempt: int, decision: object) -> None:
    assert decide(error, attempt, LADDER) == decision


@given(
    delays=st.lists(DELAYS, min_size=1, max_size=5).map(sorted), error=st.sampled_from([ValueError(), Unhandled("x")])
)
def test_a_failure_climbs_every_step_once_and_is_set_aside(delays: list[Delay], error: Exception) -> None:
    ladder = Retry(*map(str, delays))
    steps = [decide(error, attempt, ladder) for attempt in range(1, len(delays) + 2)]
    assert steps == [*map(RetryAfter, delays), DeadLetter()]
