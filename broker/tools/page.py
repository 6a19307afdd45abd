"""One HTML page that needs nothing beside it: no font, no script and no picture from elsewhere, from ``file://`` too.

All pages share this frame: one typeface, a few colours, light or dark as the reader's system is. What is put into it
is escaped by whoever puts it there, with `clean`; the policy in its head keeps everything else out in any case.
"""

from __future__ import annotations

from html import escape

PALETTE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d7de; --paper: #ffffff; --box: #f6f8fa;
  --well: #1f5fbf; --retry: #9a6700; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --box: #161b22;
    --well: #6ea8fe; --retry: #e3b341; --bad: #ff7b72; }
}
"""
"""The few colours of pages and pictures: ink and what is softer, lines, paper, and how something went."""
STYLE = (
    PALETTE
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2rem 0 .5rem; }
code, pre { font: inherit; font-variant-numeric: tabular-nums; }
a { color: var(--well); }
button, input { font: inherit; color: inherit; }
:focus-visible { outline: 2px solid var(--well); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 1rem; background: var(--paper); padding: .3rem .6rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
@media print { :root { --paper: #fff; --ink: #000; } }
"""
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(*, title: str, body: str, style: str = "", script: str = "") -> str:
    """A page.

    Args:
        title: plain text.
        body: HTML with a ``<main>`` in it; whatever is foreign in it is escaped.
        style, script: CSS and JavaScript of this page; nothing foreign stands in them.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{clean(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<div id="content" tabindex="-1">{body}</div>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def clean(text: object, *, lines: bool = False) -> str:
    """A foreign text for HTML and SVG: escaped, and without what commands a terminal or turns its direction."""
    return escape(printable(str(text), lines=lines))


def printable(text: str, *, lines: bool = False) -> str:
    """Text from elsewhere, without the characters that mean something of their own."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in text)


def for_mermaid(text: str) -> str:
    """A text for a label of Mermaid's, on one line: what could mean something to it stands there by its number.

    So does the word ``end``. Of nothing but blanks Mermaid would make an error.
    """
    words = printable(" ".join(text.split()) or "\N{REPLACEMENT CHARACTER}").split(" ")
    return " ".join(map(_numbered, words))


def _numbered(word: str) -> str:
    if word.lower() == "end":
        return f"#{ord(word[0])};{word[1:]}"
    return "".join(c if c.isalnum() or c in "_.,-" else f"#{ord(c)};" for c in word)
