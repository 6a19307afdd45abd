"""What was measured, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One test's figures: what was done, and on which RabbitMQ; counts; the longest time without any, in seconds."""

    fault: str
    version: str
    confirmed: int
    lost: int
    falsely_confirmed: int
    twice: int
    failed: int
    confirm_gap: float
    handling_gap: float
    limit: float


def table(rows: list[Measured]) -> str:
    """The figures as a Markdown table."""
    return "\n".join(
        [
            "| three nodes | RabbitMQ | confirmed | lost | falsely confirmed | handled twice | publishes that failed "
            "| longest time without a confirm | … without a handling | allowed |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(
                f"| {it.fault} | {it.version} | {it.confirmed:,} | {it.lost} | {it.falsely_confirmed} | {it.twice} "
                f"| {it.failed} | {it.confirm_gap:.1f} s | {it.handling_gap:.1f} s | {it.limit:.0f} s |"
                for it in rows
            ),
        ]
    )
