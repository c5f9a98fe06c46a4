"""The exceptions of the pipeline, by exit code. Each has found / expected / cure.

Messages are one line without control characters, whatever they quote.
"""

from __future__ import annotations

from pipeline.plain import plain

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_NO_DATA = 3
EXIT_QUARANTINE = 4  # complete except for quarantined units
EXIT_UPSTREAM = 5
EXIT_STORAGE = 6
EXIT_INTEGRITY = 7
EXIT_INTERRUPTED = 130  # by a second Ctrl-C, as shells say of SIGINT
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h; Slurm's RequeueExit uses the same number


class PipelineError(Exception):
    """A failure that is explained to the user in one line, without a stack trace.

    `found` states what was found, `expected` what would have been right, and `cure` what to do about it.
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
        """Keep the three parts when pickled between processes."""
        return type(self), (self.found, self.expected, self.cure)


class UsageError(PipelineError):
    """Bad arguments, AOI, configuration, weights, or a plan that does not fit the store. Exit code 2."""

    exit_code = EXIT_USAGE


class NoDataError(PipelineError):
    """The request is valid but no scene matches it. Exit code 3."""

    exit_code = EXIT_NO_DATA


class UpstreamError(PipelineError):
    """An archive refused, permanently or for longer than the retries last. Exit code 5."""

    exit_code = EXIT_UPSTREAM


class ReadError(UpstreamError):
    """A scene's pixels could not be read: the file is missing, truncated or damaged. They never become nodata."""


class Unreachable(ReadError):
    """An archive did not answer, or was busy, for longer than the retries of one unit last. Exit code 75."""

    exit_code = EXIT_RESUMABLE


class StorageError(PipelineError):
    """The output cannot be written: disk full, denied, not a directory. Exit code 6."""

    exit_code = EXIT_STORAGE


class StoreUnreachable(StorageError):
    """The object store of the output did not answer for longer than the retries of one request last. Exit code 75."""

    exit_code = EXIT_RESUMABLE


class IntegrityError(PipelineError):
    """Stored bytes differ from what was written. Exit code 7."""

    exit_code = EXIT_INTEGRITY


class Interrupted(PipelineError):
    """Stopped before the end, resumable by the same command. Exit code 75."""

    exit_code = EXIT_RESUMABLE


class StoreHeld(Interrupted):
    """Another run holds the store, or the requested part of it. Exit code 75."""


class LeaseLost(Interrupted):
    """Another run took over the store or began it anew. This run writes nothing more. Exit code 75."""
