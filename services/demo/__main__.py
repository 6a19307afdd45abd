"""``python -m services.demo``: see ``--help``."""

import sys

if __name__ == "__main__":
    try:
        from services.demo.cli import app  # here, so that Ctrl-C while it loads is no traceback either

        app()
    except KeyboardInterrupt:
        sys.exit(130)
