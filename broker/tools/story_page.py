"""A story as one HTML page that needs nothing beside: the sequence diagram, the same as a table, and every event.

It works without scripts. Times are UTC, since a page travels. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

from broker.tools.page import clean, document
from broker.tools.story import Attempt, Delivered, Step, Story, elapsed, how_it_ended, what_is_open
from broker.tools.story_drawing import drawing

EVENTS_MOST = 2000
"""Events on a page, at most."""
DATA_MOST = 20_000
"""Characters of a payload that are shown."""

STYLE = """
main.story { width: fit-content; max-width: min(1400px, 100%); }
.story > :not(figure) { max-width: 60rem; }
.story figure { margin: 1.5rem 0; width: fit-content; max-width: 100%; overflow-x: auto;
  border: 1px solid var(--line); border-radius: 8px; }
.story figure svg { display: block; }
.story table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.story caption { text-align: left; }
.story th, .story td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; font-weight: 400; }
.story tbody th, .story tbody td:last-child { overflow-wrap: anywhere; min-width: 8rem; }
.story thead th { white-space: nowrap; color: var(--soft); border-bottom: 1px solid var(--line); }
.story .number { text-align: right; white-space: nowrap; }
.story tr.event > * { padding-top: 1rem; }
.story tr.event th { font-weight: 600; }
.story tbody tr:not(.event) th { padding-left: 1.2rem; }
.story .retrying { color: var(--retry); }
.story .dead { color: var(--bad); }
.story .waiting, .story .unrecorded, .story .soft { color: var(--soft); }
.story .error { display: block; }
.story .notes { border-left: 3px solid var(--retry); padding-left: .8rem; list-style: none; }
.story dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
.story dt { color: var(--soft); }
.story dd { margin: 0; overflow-wrap: anywhere; }
.story details { border-top: 1px solid var(--line); padding: .5rem 0; }
.story summary { cursor: pointer; overflow-wrap: anywhere; }
.story pre { overflow-x: auto; background: var(--box); padding: .8rem; border-radius: 6px; }
"""


def page(story: Story) -> str:
    """The page of one story."""
    return document(title=f"{story.title}: the story of {story.correlation_id}", style=STYLE, body=body(story))


def body(story: Story) -> str:
    """What stands on it."""
    steps = story.steps[:EVENTS_MOST]
    left = len(story.steps) - len(steps)
    more = f"<p>{left} more events are not shown: <code>broker story … --json</code> prints them all.</p>"
    return "\n".join(
        [
            '<main class="story">',
            *_head(story),
            '<figure tabindex="0" role="group" aria-label="Sequence diagram; the table below says the same">',
            drawing(story, linked=True),
            "</figure>",
            *_table(story, steps),
            *([more] if left else []),
            '<h2 id="events">The events</h2>',
            *(_details(story, step, number) for number, step in enumerate(steps, 1)),
            "</main>",
        ]
    )


def _head(story: Story) -> Iterator[str]:
    about = f" · about <code>{clean(story.subject)}</code>" if story.subject else ""
    yield f"<h1>{clean(story.title)}</h1>"
    yield f"<p>{_utc(story.begun)} UTC{about}<br>"
    yield f"{story.summary}</p>"
    if story.notes:
        yield f'<ul class="notes">{"".join(f"<li>{clean(note)}</li>" for note in story.notes)}</ul>'


def _table(story: Story, steps: tuple[Step, ...]) -> Iterator[str]:
    yield "<table><caption>What happened, causes first. <i>after</i> counts from the cause, or the attempt before."
    yield "</caption>"
    yield (
        '<thead><tr><th scope="col" class="number">at</th><th scope="col" class="number">after</th>'
        '<th scope="col">event, and who got it</th><th scope="col"></th></tr></thead><tbody>'
    )
    for number, step in enumerate(steps, 1):
        after = elapsed(step.after) if step.after is not None else ""
        yield (
            f'<tr class="event"><td class="number">{_since(story, step.at, moved=step.moved)}</td>'
            f'<td class="number soft">{after}</td>'
            f'<th scope="row"><a href="#event-{number}">{clean(step.name)}</a></th>'
            f'<td class="soft">{_published(step)}</td></tr>'
        )
        for delivered, attempt in step.rows:
            yield _handling(story, delivered, attempt)
        if not step.deliveries:
            yield '<tr><td></td><td></td><th></th><td class="soft">nobody has handled it</td></tr>'
    yield "</tbody></table>"


def _handling(story: Story, delivered: Delivered, attempt: Attempt | None) -> str:
    """One attempt of a service; None: what is still to come, or has no record."""
    service = f'<th scope="row">{clean(delivered.service)}</th>'
    if attempt is None:
        ending = "unrecorded" if delivered.ending == "unrecorded" else "waiting"
        return f'<tr><td></td><td></td>{service}<td class="{ending}">{clean(what_is_open(delivered))}</td></tr>'
    it = attempt.handling
    error = f'<span class="error">{clean(it.error)}</span>' if it.error else ""
    return (
        f'<tr><td class="number">{_since(story, attempt.began, moved=attempt.moved)}</td>'
        f'<td class="number soft">{elapsed(attempt.after)}</td>{service}'
        f'<td class="{it.outcome}">{clean(how_it_ended(attempt))}{error}</td></tr>'
    )


def _details(story: Story, step: Step, number: int) -> str:
    """All that is known of one event. The place that links lead to is within: so browsers open it."""
    envelope = step.envelope
    facts = {"id": str(step.id)}
    if envelope is not None:
        facts |= {
            "published": f"{_utc(envelope.time, exactly=True)} UTC, by {envelope.source}",
            "routing key": envelope.key,
            "version": str(envelope.version) if envelope.version is not None else "not said",
            "subject": envelope.subject or "none",
        }
        position = story.position(step.cause) if step.cause is not None else None
        if position is not None:
            facts["caused by"] = f"{story.steps[position].name} {step.cause}"
        elif step.cause is not None:
            facts["caused by"] = str(step.cause)
    handlers = {it.service: it.attempts[-1].handling.handler for it in step.deliveries if it.attempts}
    facts |= {
        "handlers": ", ".join(f"{who}: {handler}" for who, handler in handlers.items() if handler) or "none known"
    }
    listed = "".join(f"<dt>{name}</dt><dd>{clean(value)}</dd>" for name, value in facts.items())
    return (
        f'<details><summary>{number}. {clean(step.name)} <span class="soft">{_published(step)}</span></summary>'
        f'<div id="event-{number}"><dl>{listed}</dl><pre tabindex="0">{clean(_data(step), lines=True)}</pre></div>'
        "</details>"
    )


def _data(step: Step) -> str:
    """The payload, as people write JSON."""
    if step.envelope is None:
        return "Only its handlings are in the event log."
    try:
        text = json.dumps(step.data, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "The payload cannot be shown."
    return text if len(text) <= DATA_MOST else f"{text[:DATA_MOST]}\n… {len(text) - DATA_MOST} characters more"


def _published(step: Step) -> str:
    if step.publisher is None:
        return "not in the event log"
    return f"published by {clean(step.publisher)}{f', {step.times} times' if step.times > 1 else ''}"


def _since(story: Story, at: datetime, *, moved: bool) -> str:
    return f'<time datetime="{at.astimezone(UTC).isoformat()}">{"~" if moved else ""}{elapsed(at - story.begun)}</time>'


def _utc(at: datetime, *, exactly: bool = False) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S{'.%f' if exactly else ''}}"
