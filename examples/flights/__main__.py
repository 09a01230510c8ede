"""Run the flights example: ``python -m examples.flights`` from the root of the project."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from examples.flights.demo import main  # takes a second, in which Ctrl-C may come
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
