"""``make bench``: the quick run. ``make bench-full`` (``--full``): the run of docs/performance.md, which it writes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from bench import report
from bench.rows import ALL, ROWS
from bench.runner import PEERS, ROOT, Bench, Wrong
from broker.tools.node import login
from broker.tools.server import NoServer, Server, rabbitmq


def main() -> int:
    """Measure; exits 1 when a contender fails or what it claims is not so, never for a figure."""
    wishes, failed = arguments(), False
    try:
        prepare_peers()
        with rabbitmq(docker="testcontainers", say=tell) as server, vhost(server) as url:
            tell(f"RabbitMQ {server.version}: {server.origin}")
            scale, rounds = (3.0, 3) if wishes.full else (0.5, 1)
            rounds = wishes.rounds or rounds
            with closing(Bench(url, scale, rounds, wishes.contenders)) as bench:
                bench.declare("bench")
                for number in wishes.rows:
                    bench.say(f"{number}. {ROWS[number].__doc__}")
                    try:
                        ROWS[number](bench)
                    except Wrong as why:  # the other rows are measured all the same
                        tell(f"Row {number}: {why}")
                        failed = True
    except (NoServer, Wrong) as why:
        tell(str(why))
        return 1
    kind = f"{'full' if wishes.full else 'quick'} run, {rounds} {'round' if rounds == 1 else 'rounds'}"
    run = {"machine": report.machine(server.version) | {"run": kind}, "results": bench.results}
    whole = wishes.full and wishes.rows == list(ROWS) and wishes.contenders == list(ALL) and not failed
    if whole:
        report.STORE.write_text(json.dumps(run, indent=1) + "\n")
        report.write(run)
    else:
        kept = Path(tempfile.gettempdir()) / "bench.json"
        kept.write_text(json.dumps(run, indent=1))
    print(report.text(run))  # noqa: T201
    tell(f"Written: {report.PAGE.relative_to(ROOT)}" if whole else f"All figures: {kept}")
    return int(failed)


def arguments() -> argparse.Namespace:
    """What is wanted."""
    parser = argparse.ArgumentParser(prog="bench", description="Measures this package beside its peers.")
    parser.add_argument("--full", action="store_true", help="larger counts, three rounds; writes docs/performance.md")
    parser.add_argument("--rows", type=numbers, default=list(ROWS), help=f"1,3: only these rows (1 to {max(ROWS)})")
    parser.add_argument("--rounds", type=int, default=0, help="how often the rows of ratios are measured")
    parser.add_argument("--contenders", type=names, default=list(ALL), help=f"some of {','.join(ALL)}")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Rows, as ``--rows`` takes them."""
    found = sorted({int(part) for part in text.split(",")})
    if not set(found) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"rows are {min(ROWS)} to {max(ROWS)}")
    return found


def names(text: str) -> list[str]:
    """Contenders, as ``--contenders`` takes them."""
    found = [name for name in ALL if name in text.split(",")]
    if len(found) != len(set(text.split(","))):
        raise argparse.ArgumentTypeError(f"contenders are {', '.join(ALL)}")
    return found


def prepare_peers() -> None:
    """An environment of their own for the peers, at the versions pinned."""
    wanted = ROOT / "bench" / "requirements.txt"
    ready = PEERS.parent.parent / ".ready"
    if ready.exists() and ready.read_text() == wanted.read_text():
        return
    tell("Installing the peers into .venv-bench")
    subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS.parent.parent], check=True)  # noqa: S603
    subprocess.run([PEERS, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)  # noqa: S603
    ready.write_text(wanted.read_text())


@contextmanager
def vhost(server: Server) -> Iterator[str]:
    """A virtual host of this run's own."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with httpx.Client(base_url=f"{server.management_url}/api", auth=server.login, timeout=30) as api:
        api.put(f"/vhosts/{name}").raise_for_status()
        user = quote(login(server.url)[0], safe="")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        api.put(f"/permissions/{name}/{user}", json=everything).raise_for_status()
        yield urlsplit(server.url)._replace(path=f"/{name}").geturl()
        api.delete(f"/vhosts/{name}").raise_for_status()


def tell(line: str) -> None:
    """Tell people."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
