"""A real browser without a window: Chromium, driven by Playwright.

It is the machine's own, or Playwright's, which is downloaded when first needed; on a Debian or Ubuntu where the user is
root it may come from apt. Where none can be had, the tests fail and say what helps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip  # noqa: E501
HELP = (
    "These tests look at pages in Chromium, and none is to be had here. One of these helps:\n"
    "  python -m playwright install chromium\n"
    "  apt-get install chromium"
)


def chromium() -> str:
    """The path of a Chromium.

    Raises:
        pytest.fail.Exception: none is to be had.
    """
    return installed() or downloaded() or from_apt() or pytest.fail(HELP, pytrace=False)


def installed() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def downloaded() -> str | None:
    """Playwright's own, downloaded if it is not there."""
    tried = subprocess.run(
        [sys.executable, "-m", "playwright", "install", "chromium", "--only-shell"],
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    found = sorted(folder.glob("chromium*/*/*hell*")) if tried.returncode == 0 else []
    return str(found[-1]) if found else None


def from_apt() -> str | None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    print("Installing chromium with apt-get", file=sys.stderr, flush=True)  # noqa: T201
    for words in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", "chromium"]):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(["apt-get", *words], env=environment, capture_output=True, check=False).returncode:
            return None
    return installed()


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser."""
    arguments = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield found
        await found.close()


@asynccontextmanager
async def opened(file: Path, *, width: int = 1200, dark: bool = False) -> AsyncIterator[Page]:
    """A page, from its file; nothing may be asked from elsewhere, and nothing may go wrong in it, while it is open."""
    wrong: list[str] = []
    async with browser() as chrome:
        page = await chrome.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        page.on("console", lambda it: wrong.append(it.text) if it.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda it: wrong.append(f"a dialog: {it.message}"))
        page.on("request", lambda it: wrong.append(it.url) if not it.url.startswith(("file:", "data:")) else None)
        await page.goto(file.as_uri())
        yield page
        assert wrong == []


FAINT = """() => {
  const parts = colour => colour.match(/[0-9.]+/g).map(Number);
  const bright = colour => {
    const [r, g, b] = parts(colour).map(part => part / 255)
      .map(part => part <= .04 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b + .05;
  };
  const behind = it => {
    for (; it; it = it.parentElement) {
      const colour = getComputedStyle(it).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const faint = [];
  for (const it of document.querySelectorAll("body *")) {
    const text = [...it.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join(" ").trim();
    if (!text || !it.getClientRects().length || ["SCRIPT", "STYLE"].includes(it.tagName)) continue;
    const style = getComputedStyle(it);
    const [one, other] = [bright(it instanceof SVGElement ? style.fill : style.color), bright(behind(it))];
    const contrast = Math.max(one, other) / Math.min(one, other);
    if (contrast < 4.5) faint.push(`${text.slice(0, 40)}: ${contrast.toFixed(1)}`);
  }
  return faint;
}"""


async def faint(page: Page) -> list[str]:
    """The texts on a page that do not stand out from what is behind them as WCAG asks for, 4.5 to 1."""
    return [str(text) for text in await page.evaluate(FAINT)]
