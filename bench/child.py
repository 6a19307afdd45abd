"""A child process of the benchmark: ``python -m bench.child CONTENDER RESULT``, with the job as JSON on its input."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from pathlib import Path

from bench.job import Job, memory


def main(contender: str, result: str) -> None:
    """Do the job, and write what was measured to a file."""
    job = Job(**json.load(sys.stdin))
    module = importlib.import_module(f"bench.contenders.{contender}")
    doing = getattr(module, job.do)(job)
    if doing is not None:
        asyncio.run(doing)
    Path(result).write_text(json.dumps(job.result | {"memory": memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
