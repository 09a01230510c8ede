"""``python -m wirestate`` is the command ``wirestate``."""

from wirestate.cli import main

if __name__ == "__main__":
    main()
