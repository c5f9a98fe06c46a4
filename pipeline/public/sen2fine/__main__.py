"""The command `sen2fine`, also as `python -m sen2fine`."""

from __future__ import annotations

import sys

import sen2fine


def main() -> int:
    """Run a subcommand and return its exit code."""
    sen2fine._claim("training")
    from pipeline.api.command import main as command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
