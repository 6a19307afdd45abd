"""The map as one HTML page: publishers, events, subscribers in three columns, joined by lines.

The columns are lists of buttons, so that a keyboard and a screen reader find everything; the lines are drawn over them
by a script that also filters and highlights. Without scripts the columns and the table beneath say the same. Pure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator

from broker.tools.map import Drift, EventNode, Map, ServiceNode
from broker.tools.page import clean, document
from broker.topology import is_pattern

STYLE = """
.map header { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: baseline; }
.map header p, .map header span { color: var(--soft); margin: 0; }
.map header span:empty { position: absolute; }
.map header label { margin-left: auto; display: flex; gap: .6rem; align-items: baseline; }
.map input { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .35rem .7rem;
  width: 16rem; max-width: 100%; }
.map .note { border-left: 3px solid var(--retry); padding-left: .8rem; }
.map .drift { border: 1px solid var(--line); border-left: 3px solid var(--bad); border-radius: 6px; margin: 1rem 0;
  padding: .6rem 1rem; }
.map .drift summary { cursor: pointer; font-weight: 600; color: var(--bad); }
.map .drift table { margin-top: .4rem; }
.map .drift th { min-width: 11rem; max-width: 24rem; }
.map .columns { position: relative; display: grid;
  grid-template-columns: minmax(0, 1fr) minmax(0, 1.5fr) minmax(0, 1.25fr);
  column-gap: clamp(2rem, 9vw, 9rem); margin-top: 1rem; }
.map .columns > svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none;
  overflow: visible; }
.map section { display: grid; grid-template-rows: auto 1fr; }
.map .columns h2 { margin: 0 0 .5rem; font-size: .85rem; color: var(--soft); font-weight: 400; }
.map ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 6px; align-content: space-around; }
.map .columns button { position: relative; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .8rem;
  width: 100%; text-align: left; padding: .3rem .65rem; background: var(--box); border: 1px solid var(--line);
  border-radius: 6px; cursor: pointer; overflow-wrap: anywhere; }
.map .columns button:hover, .map .columns button[aria-pressed=true] { border-color: var(--well); }
.map .columns button[aria-pressed=true] { box-shadow: 0 0 0 1px var(--well); }
.map .columns small { color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums; }
.map .columns .bad, .map .columns .bad small { border-color: var(--bad); color: var(--bad); }
.map .columns .code { border-style: dashed; }
.map path { fill: none; stroke: var(--soft); stroke-width: 1.2; opacity: .55; }
.map path.live { stroke: var(--bad); opacity: .9; }
.map path.code { stroke: var(--retry); stroke-dasharray: 5 4; opacity: .9; }
.map .some path { opacity: .07; }
.map .some path.on { opacity: 1; stroke: var(--well); stroke-width: 1.8; }
.map .some button:not(.on) { opacity: .35; }
.map table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.map th, .map td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0; font-weight: 400;
  overflow-wrap: anywhere; }
.map thead th { color: var(--soft); border-bottom: 1px solid var(--line); }
.map .number { text-align: right; }
.map .legend { color: var(--soft); font-size: .85rem; }
.map .legend svg { vertical-align: middle; width: 28px; height: 8px; }
.map details.all { margin-top: 2.5rem; }
.map details.all > summary { cursor: pointer; color: var(--soft); }
@media (max-width: 1250px) { .map .event { flex-direction: column; } }
@media (max-width: 620px) {
  .map .columns { column-gap: 1.2rem; font-size: .85rem; }
  .map header label { margin-left: 0; }
}
"""

NOTHING = "\N{REPLACEMENT CHARACTER}"
"""What stands for a name that cannot be seen."""

SCRIPT = """
'use strict';
const columns = document.querySelector('.columns'), svg = columns.querySelector('svg');
const items = [...columns.querySelectorAll('button')], at = new Map(items.map(it => [it.dataset.id, it]));
const links = JSON.parse(document.getElementById('links').textContent);
const near = new Map(items.map(it => [it.dataset.id, new Set()]));
for (const [from, to] of links) { near.get(from).add(to); near.get(to).add(from); }
const text = new Map(items.map(it => [it.dataset.id, it.textContent.toLowerCase()]));
const filter = document.getElementById('filter'), told = document.getElementById('told');
let pinned = null, alone = false, paths = [];

function lines() {
  const box = columns.getBoundingClientRect(), drawn = document.createDocumentFragment();
  const place = new Map();
  for (const it of items) if (!it.parentNode.hidden) place.set(it.dataset.id, it.getBoundingClientRect());
  paths = [];
  for (const [from, to, kind] of links) {
    const a = place.get(from), b = place.get(to);
    if (!a || !b) continue;
    const x = a.right - box.left, y = a.top + a.height / 2 - box.top;
    const u = b.left - box.left, v = b.top + b.height / 2 - box.top, bend = Math.max(12, (u - x) / 2);
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', `M${x} ${y}C${x + bend} ${y} ${u - bend} ${v} ${u} ${v}`);
    if (kind) path.setAttribute('class', kind);
    paths.push([path, from, to]);
    drawn.append(path);
  }
  svg.replaceChildren(drawn);
  show(pinned);
}

function reached(id) {
  const found = new Set([id]), event = id[0] === 'e';
  for (const next of near.get(id)) {
    found.add(next);
    if (!event) for (const end of near.get(next)) if (end[0] !== id[0]) found.add(end);
  }
  return found;
}

function show(id) {
  const on = id === null ? null : reached(id);
  columns.classList.toggle('some', on !== null);
  for (const it of items) it.classList.toggle('on', on !== null && on.has(it.dataset.id));
  for (const [path, from, to] of paths) path.classList.toggle('on', on !== null && on.has(from) && on.has(to));
}

function pin(id) {
  const before = pinned, wasAlone = alone;
  pinned = pinned === id ? null : id;
  alone = pinned !== null && (alone || columns.offsetHeight > 2 * innerHeight);
  for (const it of items) it.setAttribute('aria-pressed', it.dataset.id === pinned);
  narrow();
  if (alone || wasAlone) at.get(pinned ?? before).scrollIntoView({block: 'center', behavior: 'instant'});
}

function narrow() {
  const wanted = filter.value.trim().toLowerCase(), shown = new Set();
  for (const it of items) if (text.get(it.dataset.id).includes(wanted)) {
    shown.add(it.dataset.id);
    if (wanted) for (const next of near.get(it.dataset.id)) shown.add(next);
  }
  if (pinned !== null && !shown.has(pinned)) return pin(pinned);
  const kept = alone ? reached(pinned) : shown;
  let count = 0;
  for (const it of items) {
    const here = shown.has(it.dataset.id) && kept.has(it.dataset.id);
    it.parentNode.hidden = !here;
    count += here;
  }
  told.textContent = count < items.length ? `${count} of ${items.length} shown. Escape shows all.` : '';
  lines();
}

for (const it of items) {
  it.addEventListener('click', () => pin(it.dataset.id));
  it.addEventListener('mouseenter', () => { if (pinned === null) show(it.dataset.id); });
  it.addEventListener('mouseleave', () => { if (pinned === null) show(null); });
}
document.addEventListener('keydown', key => {
  if (key.key !== 'Escape') return;
  if (pinned !== null) pin(pinned);
  filter.value = '';
  narrow();
});
filter.addEventListener('input', narrow);
new ResizeObserver(lines).observe(columns);
narrow();
"""


def page(it: Map) -> str:
    """The page."""
    return document(title="Who publishes what, and who hears it", body="\n".join(_body(it)), style=STYLE, script=SCRIPT)


def _body(it: Map) -> Iterator[str]:
    bad, listening = it.bad, it.listening
    publishers = [service for service in it.services if service.publishes]
    subscribers = _in_order(it, [service for service in it.services if service.name in listening or service.queue])
    left = {service.name: f"p{n}" for n, service in enumerate(publishers)}
    middle = {event.name: f"e{n}" for n, event in enumerate(it.events)}
    right = {service.name: f"s{n}" for n, service in enumerate(subscribers)}
    yield '<main class="map">'
    yield "<header><h1>Who publishes what, and who hears it</h1>"
    yield f"<p>{len(it.services)} services, {len(it.events)} events, {_sources(it)}</p>"
    yield (
        '<span id="told" role="status"></span>'
        '<label>Filter <input id="filter" type="search" placeholder="service, event or key" autocomplete="off"></label>'
        "</header>"
    )
    if it.note:
        yield f'<p class="note">{clean(it.note)}</p>'
    yield from _drift(it.drift)
    yield '<div class="columns"><svg aria-hidden="true"></svg>'
    yield from _column("Publishers", (_publisher(each, left[each.name]) for each in publishers))
    yield from _column("Events", (_event(each, middle[each.name], it, bad) for each in it.events))
    yield from _column("Subscribers", (_subscriber(each, right[each.name], it, bad) for each in subscribers))
    yield "</div>"
    links = [[left[service], middle[event], ""] for service, event in it.published if event in middle]
    links += [[middle[link.event], right[link.service], it.alone(link) or ""] for link in it.subscribed]
    yield f'<script type="application/json" id="links">{json.dumps(links, separators=(",", ":"))}</script>'
    if it.code and it.live:
        yield (
            '<p class="legend">Lines: in the code and on RabbitMQ; '
            '<svg aria-hidden="true"><path class="code" d="M0 4H28"/></svg> in the code alone; '
            '<svg aria-hidden="true"><path class="live" d="M0 4H28"/></svg> on RabbitMQ alone.</p>'
        )
    yield from _table(it)
    yield "</main>"


def _sources(it: Map) -> str:
    return "from the code and from RabbitMQ" if it.code and it.live else "from the code" if it.code else "from RabbitMQ"


def _in_order(it: Map, services: list[ServiceNode]) -> list[ServiceNode]:
    """Each near the middle of the events it gets: fewer lines cross."""
    place = {event.name: n for n, event in enumerate(it.events)}
    places: dict[str, list[int]] = defaultdict(list)
    for link in it.subscribed:
        places[link.service].append(place[link.event])
    return sorted(services, key=lambda each: (sum(places[each.name]) / max(1, len(places[each.name])), each.name))


def _drift(drift: tuple[Drift, ...]) -> Iterator[str]:
    if not drift:
        return
    is_open = " open" if len(drift) <= 12 else ""
    yield f'<details class="drift"{is_open}><summary>{_counted(len(drift))}</summary><table>'
    for each in drift:
        text, helps = clean(each.text), clean(each.help)
        yield f'<tr><th scope="row">{clean(each.about)}</th><td>{text}</td><td>{helps}</td></tr>'
    yield "</table></details>"


def _counted(count: int) -> str:
    return "One thing does not fit" if count == 1 else f"{count} things do not fit"


def _column(title: str, items: Iterable[str]) -> Iterator[str]:
    yield f'<section aria-label="{title}"><h2>{title}</h2><ul>'
    yield from items
    yield "</ul></section>"


def _item(at: str, name: str, small: str, kind: str, title: str = "") -> str:
    tip = f' title="{clean(title)}"' if title else ""
    return (
        f'<li><button type="button" data-id="{at}" aria-pressed="false" class="{kind}"{tip}>'
        f"<span>{clean(name if name.strip() else NOTHING)}</span><small>{clean(small)}</small></button></li>"
    )


def _publisher(it: ServiceNode, at: str) -> str:
    return _item(at, it.name, "", "")


def _event(it: EventNode, at: str, drawn: Map, bad: set[str]) -> str:
    versions = f" v{', '.join(map(str, it.versions))}" if it.versions not in ((), (1,)) else ""
    undeclared = drawn.code and not it.versions
    unnamed = "a pattern" if is_pattern(it.key) else "declared by no code" if undeclared else ""
    small = f"{it.key}{versions}" if it.key != it.name else unnamed
    return _item(at, it.name, small, "event bad" if it.name in bad else "event", it.description)


def _subscriber(it: ServiceNode, at: str, drawn: Map, bad: set[str]) -> str:
    kind = "bad" if it.name in bad else ""
    queue = it.queue
    if queue is None:
        return _item(at, it.name, "no queue yet" if drawn.live else "", f"code {kind}".strip() if drawn.live else kind)
    title = (
        f"{queue.ready} ready, {queue.unacked} in hand, {queue.dead} dead letters, {queue.consumers} consumers, "
        f"{queue.rate_in:.1f} events a second in, {queue.rate_out:.1f} out"
    )
    return _item(at, it.name, " · ".join(queue.told), kind, title)


def _table(it: Map) -> Iterator[str]:
    """The same, to read."""
    publishers: dict[str, list[str]] = defaultdict(list)
    subscribers: dict[str, list[str]] = defaultdict(list)
    for service, event in it.published:
        publishers[event].append(service)
    for link in it.subscribed:
        by = f" ({link.binding})" if link.binding != link.event and is_pattern(link.binding) else ""
        alone = {"code": ", in the code alone", "live": ", on RabbitMQ alone"}.get(it.alone(link) or "", "")
        subscribers[link.event].append(f"{link.service}{by}{alone}")
    yield '<details class="all"><summary>The same as a table</summary><table><thead><tr>'
    yield "".join(f'<th scope="col">{each}</th>' for each in ("event", "key", "publishers", "subscribers"))
    yield "</tr></thead><tbody>"
    for each in it.events:
        cells = (each.key, ", ".join(publishers[each.name]) or "–", "; ".join(subscribers[each.name]) or "nobody")
        yield f'<tr><th scope="row">{clean(each.name)}</th>{"".join(f"<td>{clean(cell)}</td>" for cell in cells)}</tr>'
    yield "</tbody></table></details>"
