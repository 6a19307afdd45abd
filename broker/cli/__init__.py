"""The command ``broker``: arguments in, ``broker.tools`` or ``broker.service`` called, results shown; no logic.

Each module registers its commands with the app of `common`; help lists them in the order of the imports below.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from broker.cli import (  # noqa: F401  (they register their commands)
    asyncapi,
    database,
    dead,
    doctor,
    everyday,
    log,
    map,  # noqa: A004
    replay,
    status,
    story,
)
from broker.cli.common import app, fail
from broker.errors import BrokerError, ContractError
from broker.service import settings_problem


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one line on stderr and its exit code."""
    try:
        app()
    except BrokerError as error:
        fail(str(error), error.exit_code)
    except ValidationError as error:
        fail(settings_problem(error), ContractError.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the rest of it fails again
        fail(f"The output cannot be written: {error.strerror}.", 1)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Options of the command itself."""
    if version:
        print(installed_version("business-events"))  # noqa: T201
        raise typer.Exit
