"""The pictures of a story: its arrows, what they look like, and that nothing in a name can be more than a name."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from broker.tools.page import for_mermaid
from broker.tools.story import Story
from broker.tools.story_drawing import UNKNOWN, cut, drawing, layout_of, mermaid
from tests.stories import Tale, order, standing, troubled

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></svg><script>alert(1)</script>",
    "&lt;b&gt; &#60; ]]> <!-- --",
    "end",
    "a; participant x #35; -->> p1: b",
    "two\nlines\r\x1b[31mred\x00",
    "\N{RIGHT-TO-LEFT OVERRIDE}detsurt",
    "%%{init: {}}%%",
    "x" * 5000,
    "\N{PILE OF POO}\N{COMBINING ACUTE ACCENT}山田",
    "",
]


def arrows(svg: str) -> list[Element]:
    return [it for it in ElementTree.fromstring(svg).iter(f"{SVG}g") if "arrow" in it.get("class", "").split()]


def said(svg: str) -> list[tuple[str | None, ...]]:
    """Of each arrow: who told whom what, and how it ended."""
    of = ("data-publisher", "data-event", "data-subscriber", "data-outcome")
    return [tuple(it.get(name) for name in of) for it in arrows(svg)]


def hostile(text: str) -> Story:
    """A story in which everything is called so."""
    tale = Tale(**{text: ["#"]}) if text else Tale()
    tale.event(name=text or "?", source=text or "?", subject=text, data=b'{"data": {}}')
    tale.handling(text or "crm", outcome="retrying", error=text, delay=text, handler=text)
    tale.handling("packing", "lost", name=text or "?")
    return tale.told()


# -- SVG -------------------------------------------------------------------------------------------------------------


def test_an_order_has_its_ten_arrows_each_from_its_publisher_to_its_subscriber() -> None:
    told = order().told()
    svg = drawing(told)
    assert said(svg) == [(*arrow, "handled") for arrow in told.arrows()]
    columns = layout_of(told).columns
    for arrow in arrows(svg):
        line, tip = arrow.findall(f"{SVG}path")
        begin, end = (int(float(it)) for it in re.fullmatch(r"M(\d+) \d+H(\d+)", line.get("d", "")).groups())  # type: ignore[union-attr]
        assert begin == columns[arrow.get("data-publisher", "")]
        assert abs(end - columns[arrow.get("data-subscriber", "")]) < 12
        assert tip.get("class") == "tip"
    assert [it.findtext(f"{SVG}title") for it in arrows(svg)] == [str(arrow) for arrow in told.arrows()]


def test_what_did_not_simply_go_well_is_said_in_words_and_looks_different() -> None:
    svg = drawing(troubled().told(standing(), at=100))
    assert [(it.get("class"), it.findtext(f"{SVG}text[@class='words']")) for it in arrows(svg)] == [
        ("arrow retrying", "failed, again in 1s: CartonMissing"),
        ("arrow dead", "dead letter: Reject"),
        ("arrow handled", None),
        ("arrow duplicate", "duplicate, no second effect"),
        ("arrow retrying", "attempt 2: failed, again in 30s: Cart…"),
        ("arrow handled", "attempt 3: handled"),
        ("arrow unrecorded", "no record"),
        ("arrow retrying", "failed, again in 10m: SMTPError"),
        ("arrow handled", None),
        ("arrow waiting", "waiting until 12:10:31 UTC"),
        ("arrow unrecorded", "no record"),
        ("arrow waiting", "waiting: 3 in its queue, no consumer"),
    ]
    titles = [it.findtext(f"{SVG}title") or "" for it in arrows(svg)]
    assert titles[4] == (
        "order ─ New Order Placed → packing: attempt 2: failed after 10 ms, again in 30s: "
        "CartonMissing: no carton is large enough for a grand piano"
    )


def test_a_service_that_hears_itself_and_an_event_that_nobody_handles() -> None:
    tale = Tale().event().handling("order").event("b", at=1, name="Order Forgotten", key="order.forgotten")
    assert said(drawing(tale.told())) == [
        ("order", "New Order Placed", "order", "handled"),
        ("order", "Order Forgotten", "", "unrecorded"),
    ]


def test_who_published_what_is_not_in_the_log_has_a_lifeline() -> None:
    svg = drawing(Tale().handling("crm").told())
    assert said(svg) == [(UNKNOWN, "New Order Placed", "crm", "handled")]


def test_events_lead_to_their_details_on_a_page_and_nowhere_alone() -> None:
    links = re.compile(r'<a href="([^"]*)"')
    assert links.findall(drawing(order().told(), linked=True)) == ["#event-1", "#event-2", "#event-3"]
    assert links.findall(drawing(order().told())) == []


def test_no_text_runs_into_another() -> None:
    """Each lifeline's box ends before the next begins, and its name is no longer than it."""
    tale = Tale().event(source="a-service-with-a-name-that-never-ends-and-then-goes-on")
    for position in range(30):
        tale.handling(f"service-{position}-" + "x" * position)
    root = ElementTree.fromstring(drawing(tale.told()))
    boxes = [it for it in root.iter(f"{SVG}g") if it.get("class") == "lifeline"]
    spans = []
    for it in boxes:
        rect, text = it.find(f"{SVG}rect"), it.findtext(f"{SVG}text")
        assert rect is not None
        assert text is not None
        x, width = int(rect.get("x", "")), int(rect.get("width", ""))
        assert cell_len(text) * 7.4 <= width
        spans.append((x, x + width))
    assert all(one[1] < other[0] for one, other in pairwise(spans))


def test_a_story_of_thousands_is_drawn_in_part() -> None:
    tale = Tale().event()
    for position in range(3000):
        tale.event(str(position), at=position, cause="first").handling("crm", str(position), at=position)
    svg = drawing(tale.told())
    assert 900 < len(arrows(svg)) <= 1000
    assert len(svg) < 1_000_000


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:20])
def test_hostile_names_are_names(text: str) -> None:
    harmless(hostile(text))


@given(text=st.text(max_size=60))
def test_whatever_stands_in_a_name_the_picture_is_well_formed(text: str) -> None:
    harmless(hostile(text))


def harmless(told: Story) -> None:
    """The picture is well-formed XML of the elements that we draw with, and holds no address but its own parts."""
    svg = drawing(told, linked=True)
    root = ElementTree.fromstring(svg)
    tags = {it.tag.removeprefix(SVG) for it in root.iter()}
    assert tags <= {"svg", "style", "rect", "g", "title", "line", "text", "path", "circle", "a"}
    attributes = {name for it in root.iter() for name in it.attrib if not name.startswith("data-")}
    assert not any(name.startswith("on") for name in attributes)
    assert {it.get("href") for it in root.iter(f"{SVG}a")} <= {f"#event-{number}" for number in range(1, 9)}
    shown = "".join(root.itertext())
    assert all(c.isprintable() or c == "\n" for c in shown)


# -- Mermaid ---------------------------------------------------------------------------------------------------------


def test_an_order_for_mermaid() -> None:
    assert mermaid(order().told()) == Path(__file__).with_name("order.mmd").read_text()


def test_troubles_for_mermaid() -> None:
    lines = mermaid(troubled().told(standing(), at=100)).splitlines()
    assert "    p1-xp2: New Order Placed#58; failed, again in 1s#58; CartonMissing" in lines
    assert "    p2->>p2: New Order Placed#58; attempt 3#58; handled" in lines
    assert "    p2--)p6: Order Packed#58; waiting#58; 3 in its queue, no consumer" in lines


def test_nobody_for_mermaid() -> None:
    told = Tale().event(name="Order Forgotten").told()
    assert mermaid(told).splitlines()[2:] == ["    Note over p1: Order Forgotten#58; nobody has handled it"]


@given(text=st.text(max_size=300))
def test_nothing_means_anything_to_mermaid(text: str) -> None:
    written = for_mermaid(text)
    assert written
    assert re.fullmatch(r"(?:[^\W]|[ .,-]|#[0-9]+;)+", written)
    assert "end" not in written.lower().split()
    assert "\n" not in written


@given(text=st.text(max_size=60))
def test_whatever_stands_in_a_name_mermaid_gets_one_line_for_each_thing(text: str) -> None:
    lines = mermaid(hostile(text)).splitlines()
    assert lines[0] == "sequenceDiagram"
    line = re.compile(r"    (participant p\d+ as .+|p\d+(->>|-x|--\))p\d+: .+|Note over p\d+: .+)")
    assert all(line.fullmatch(it) for it in lines[1:])


# -- text ------------------------------------------------------------------------------------------------------------


@given(text=st.text(), cells=st.integers(1, 40))
def test_what_is_cut_fits(text: str, cells: int) -> None:
    short = cut(text, cells)
    assert cell_len(short) <= cells
    assert short == text or text.startswith(short.removesuffix("…"))
