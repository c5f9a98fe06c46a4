"""What the pipeline says when it cannot go on: one exception per exit code, each with found / expected / cure.

Messages are one line without control characters, whatever they quote. May be imported from every room.
"""

from __future__ import annotations

from pipeline.plain import plain

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_NO_DATA = 3
EXIT_QUARANTINE = 4  # complete but for units that were set aside
EXIT_UPSTREAM = 5
EXIT_STORAGE = 6
EXIT_INTEGRITY = 7
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h; Slurm's RequeueExit uses the same number


class PipelineError(Exception):
    """A failure that is explained to the user in one line and never as a stack trace.

    `found` says what was seen, `expected` what would have been right, `cure` what to do about it.
    """

    exit_code = 1

    def __init__(self, found: str, expected: str = "", cure: str = "") -> None:
        found, expected, cure = (plain(part, lines=True) for part in (found, expected, cure))
        self.found, self.expected, self.cure = found, expected, cure
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        if cure:
            parts.append(f"cure: {cure}")
        super().__init__(plain("; ".join(parts)))

    def __reduce__(self) -> tuple[type[PipelineError], tuple[str, str, str]]:
        """Exceptions cross process borders by pickle; keep the three parts."""
        return type(self), (self.found, self.expected, self.cure)


class UsageError(PipelineError):
    """Bad arguments, AOI, configuration, weights, or a plan that does not fit the store. Exit code 2."""

    exit_code = EXIT_USAGE


class NoDataError(PipelineError):
    """The request is fine but no scene answers it. Exit code 3."""

    exit_code = EXIT_NO_DATA


class UpstreamError(PipelineError):
    """An archive refused, for good or for longer than we wait. Exit code 5."""

    exit_code = EXIT_UPSTREAM


class ReadError(UpstreamError):
    """A scene's pixels could not be read: missing, truncated or damaged file. Never becomes nodata."""


class Unreachable(ReadError):
    """An archive does not answer, or answers that it is busy, for longer than one unit's patience. Exit code 75."""

    exit_code = EXIT_RESUMABLE


class StorageError(PipelineError):
    """The output cannot be written: disk full, denied, not a directory. Exit code 6."""

    exit_code = EXIT_STORAGE


class StoreUnreachable(StorageError):
    """An object store that holds the output does not answer for longer than one request's patience. Exit code 75."""

    exit_code = EXIT_RESUMABLE


class IntegrityError(PipelineError):
    """Stored bytes are not what was written. Exit code 7."""

    exit_code = EXIT_INTEGRITY


class Interrupted(PipelineError):
    """Stopped before the end, resumable by the same command. Exit code 75."""

    exit_code = EXIT_RESUMABLE


class StoreHeld(Interrupted):
    """Another run holds the store, or what is asked of it. Exit code 75."""


class LeaseLost(Interrupted):
    """Another run took the store over, or began it anew; this one writes nothing more. Exit code 75."""
