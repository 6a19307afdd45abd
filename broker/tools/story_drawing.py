"""A story as pictures: a sequence diagram in SVG, and the same for Mermaid. Pure.

Each event stands below its cause. An arrow leads from its publisher to each service that got it; a loop on a service's
lifeline is another attempt; what did not simply go well is said in words at the right, and in colour.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len

from broker.tools.page import PALETTE, clean, for_mermaid
from broker.tools.story import Arrow, Attempt, Ending, Step, Story, elapsed, how_it_ended, what_is_open

UNKNOWN = "not in the log"
"""The lifeline of whoever published what only its handlings tell of."""

MARGIN, TIMES = 10, 58
"""Pixels around everything, and of the column of times."""
NARROW, WIDE = 100, 210
"""From one lifeline to the next, at least and at most, as the longest name needs."""
TOP, ROW, GAP = 64, 26, 30
"""Where the first arrow may stand, how far it is to the next, and the room above those of one event."""
CELL = 7.4
"""Pixels of a character in a name."""
WORDS, WORDS_MOST = 216, 38
"""Pixels and characters of the words at the right, where there are any."""
ARROWS_MOST = 1000
"""Arrows in one picture, at most."""
NAME_MOST = 48
"""Characters of an event's name in a picture."""
LABEL_MOST = 160
"""Characters beside an arrow of Mermaid's."""

STYLE = """
.sequence text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
.sequence .paper { fill: var(--paper); }
.sequence .lifeline line { stroke: var(--line); stroke-dasharray: 3 4; }
.sequence .lifeline rect { fill: var(--box); stroke: var(--line); }
.sequence .lifeline text { font-weight: 600; text-anchor: middle; }
.sequence .event { font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.sequence .time { font-size: 11px; fill: var(--soft); text-anchor: end; }
.sequence .words { font-size: 11px; fill: var(--tone); }
.sequence g { --tone: var(--soft); }
.sequence .handled, .sequence .duplicate { --tone: var(--well); }
.sequence .retrying { --tone: var(--retry); }
.sequence .dead { --tone: var(--bad); }
.sequence .arrow path { fill: none; stroke: var(--tone); stroke-width: 1.6; }
.sequence .arrow .tip { fill: var(--tone); stroke: none; }
.sequence .arrow circle { fill: var(--tone); }
.sequence .waiting .line, .sequence .unrecorded .line { stroke-dasharray: 5 4; }
.sequence a:focus-visible { outline: 2px solid var(--well); outline-offset: 2px; border-radius: 2px; }
.sequence a:hover .event, .sequence a:focus-visible .event { text-decoration: underline; }
"""


def drawing(story: Story, *, linked: bool = False) -> str:
    """The sequence diagram as SVG, which needs nothing beside.

    Args:
        linked: each event leads to ``#event-N`` on the same page, N counted from 1.
    """
    layout = layout_of(story)
    bottom, steps, drawn = TOP, [], 0
    for number, step in enumerate(story.steps, 1):
        rows = rows_of(step)
        if drawn + len(rows) > ARROWS_MOST:
            break
        drawn += len(rows)
        parts = [_heading(step, layout, bottom + GAP - 14, number if linked else None)]
        bottom += GAP
        for row in rows:
            parts.append(_arrow(story, step, row, layout, bottom))
            bottom += ROW
        steps.append(f'<g class="step">{"".join(parts)}</g>')
    height = bottom + 6
    heads = [_lifeline(name, x, layout.between, bottom) for name, x in layout.columns.items()]
    size = f'width="{layout.width}" height="{height}" viewBox="0 0 {layout.width} {height}"'
    if linked:  # a page may be narrower: a little smaller is legible, too
        size += f' style="max-width: 100%; min-width: {layout.width * 4 // 5}px; height: auto"'
    label = clean(f"The story of {story.title}: who published what, and who handled it")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sequence" {size} role="group" aria-label="{label}">',
            f"<style>{PALETTE}{STYLE}</style>",
            f'<rect class="paper" width="{layout.width}" height="{height}" rx="8"/>',
            *heads,
            *steps,
            "</svg>\n",
        ]
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand, in pixels.

    Attributes:
        columns: where the lifelines are, by name.
        between: from one to the next.
        words: where the words begin.
        width: of all of it.
    """

    columns: dict[str, int]
    between: int
    words: int
    width: int


def layout_of(story: Story) -> Layout:
    """Room for the names, and for words if there is anything to say."""
    longest = max(cell_len(name or UNKNOWN) for name in story.lifelines)
    between = min(max(NARROW, round(longest * CELL) + 34), WIDE)
    first = MARGIN + TIMES + between // 2
    columns = {name: first + between * place for place, name in enumerate(story.lifelines)}
    words = max(columns.values()) + between // 2 + 8
    said = any(row.words for step in story.steps for row in rows_of(step))
    return Layout(columns, between, words, words + WORDS if said else words)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the picture: an arrow, a loop, or that there is none.

    Attributes:
        subscriber: None: nobody got the event.
        ending: how it ended there, which is what it looks like.
        words: what is to be said about it; empty when it simply went well.
        told: the same at length.
        again: not the first attempt.
        attempt: None: it is still to come.
    """

    subscriber: str | None
    ending: Ending
    words: str = ""
    told: str = ""
    again: bool = False
    attempt: Attempt | None = None


def rows_of(step: Step) -> list[Row]:
    """The lines of one event."""
    rows, seen = [], set[str]()
    for delivered, attempt in step.rows:
        service = delivered.service
        if attempt is None:
            ending: Ending = "unrecorded" if delivered.ending == "unrecorded" else "waiting"
            brief, full = what_is_open(delivered, brief=True), what_is_open(delivered)
            rows.append(Row(service, ending, brief, full, service in seen))
            continue
        it = attempt.handling
        brief, full = how_it_ended(attempt, brief=True), how_it_ended(attempt)
        if it.error:
            brief, full = f"{brief}: {it.error.partition(':')[0]}", f"{full}: {it.error}"
        plain = it.outcome == "handled" and service not in seen
        rows.append(Row(service, it.outcome, "" if plain else brief, full, service in seen, attempt))
        seen.add(service)
    return rows or [Row(None, "unrecorded", "nobody has handled it")]


def _lifeline(name: str, x: int, between: int, bottom: int) -> str:
    width = between - 8
    text = cut(name or UNKNOWN, int((width - 12) / CELL))
    return (
        f'<g class="lifeline" data-service="{clean(name)}"><title>{clean(name or UNKNOWN)}</title>'
        f'<line x1="{x}" y1="44" x2="{x}" y2="{bottom}"/>'
        f'<rect x="{x - width // 2}" y="14" width="{width}" height="30" rx="6"/>'
        f'<text x="{x}" y="34">{clean(text)}</text></g>'
    )


def _heading(step: Step, layout: Layout, y: int, number: int | None) -> str:
    """The event's name above its arrows, beside its publisher: at the side where there is room."""
    x = layout.columns[step.publisher or ""]
    right = layout.words - x > x
    room = int((layout.words - x if right else x) / CELL) - 2
    text = clean(cut(step.name, min(max(room, 12), NAME_MOST)))
    anchor = "" if right else ' text-anchor="end"'
    shown = f'<text class="event" x="{x + (9 if right else -9)}" y="{y}"{anchor}>{text}</text>'
    title = f"<title>{clean(step.name)}</title>"
    if number is None:
        return f"<g>{title}{shown}</g>"
    return f'<a href="#event-{number}">{title}{shown}</a>'


def _arrow(story: Story, step: Step, row: Row, layout: Layout, y: int) -> str:
    """One line of the picture, with its time at the left and its words at the right."""
    start, publisher, subscriber = layout.columns[step.publisher or ""], step.publisher or UNKNOWN, row.subscriber or ""
    told = str(Arrow(publisher, step.name, subscriber)) + (f": {row.told}" if row.words else "")
    time = words = ""
    if row.attempt is not None:
        since = f"{'~' if row.attempt.moved else '+'}{elapsed(row.attempt.began - story.begun)}"
        time = f'<text class="time" x="{MARGIN + TIMES}" y="{y + 4}">{since}</text>'
    if row.words:
        words = f'<text class="words" x="{layout.words}" y="{y + 4}">{clean(cut(row.words, WORDS_MOST))}</text>'
    if row.subscriber is None:
        shape = f'<circle cx="{start}" cy="{y}" r="3.5"/>'
    else:
        end = layout.columns[row.subscriber]
        shape = _loop(end, y, row.ending) if row.again or end == start else _straight(start, end, y, row.ending)
    return (
        f'<g class="arrow {row.ending}" data-publisher="{clean(publisher)}" data-event="{clean(step.name)}" '
        f'data-subscriber="{clean(subscriber)}" data-outcome="{row.ending}"><title>{clean(told)}</title>'
        f"{time}{shape}{words}</g>"
    )


def _straight(start: int, end: int, y: int, ending: Ending) -> str:
    way = 1 if end > start else -1
    tip = end - 2 * way
    return (
        f'<circle cx="{start}" cy="{y}" r="3.5"/><path class="line" d="M{start} {y}H{tip - 7 * way}"/>'
        f"{_tip(tip, y, way, ending)}"
    )


def _loop(x: int, y: int, ending: Ending) -> str:
    """Another attempt: from the service's own retry queue back to it."""
    return f'<path class="line" d="M{x} {y - 7}h22v13h-13"/>{_tip(x + 2, y + 6, -1, ending)}'


def _tip(x: int, y: int, way: int, ending: Ending) -> str:
    """How an arrow ends: where the event was handled, with its head; where it failed, with a cross."""
    if ending in {"retrying", "dead"}:
        return f'<path d="M{x - 9 * way} {y - 4.5}l{9 * way} 9m0 -9l{-9 * way} 9"/>'
    return f'<path class="tip" d="M{x} {y}l{-9 * way} -4.5v9z"/>'


# -- Mermaid ---------------------------------------------------------------------------------------------------------


def mermaid(story: Story) -> str:
    """The same as a sequence diagram for Mermaid."""
    names = {name: f"p{place}" for place, name in enumerate(story.lifelines, 1)}
    lines = ["sequenceDiagram"]
    lines += [
        f"    participant {short} as {for_mermaid(cut(name or UNKNOWN, LABEL_MOST))}" for name, short in names.items()
    ]
    for step in story.steps:
        sender = names[step.publisher or ""]
        for row in rows_of(step):
            text = for_mermaid(cut(f"{step.name}: {row.words}" if row.words else step.name, LABEL_MOST))
            if row.subscriber is None:
                lines.append(f"    Note over {sender}: {text}")
                continue
            receiver = names[row.subscriber]
            arrow = {"retrying": "-x", "dead": "-x", "waiting": "--)", "unrecorded": "--)"}.get(row.ending, "->>")
            lines.append(f"    {receiver if row.again else sender}{arrow}{receiver}: {text}")
    return "\n".join(lines) + "\n"


# -- text ------------------------------------------------------------------------------------------------------------


def cut(text: str, cells: int) -> str:
    """Its beginning, as far as there is room for: some characters take the room of two."""
    if cell_len(text) <= cells:
        return text
    while cell_len(text) >= max(cells, 1):
        text = text[: min(len(text) - 1, cells)]
    return f"{text}…"
