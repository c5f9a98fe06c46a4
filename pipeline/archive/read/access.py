"""How the files of one archive are reached: allowed by policy, signed when they are opened, retried, rate limited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.archive.read import gdal
from pipeline.archive.read.host_policy import HostPolicy
from pipeline.archive.read.rate_limit import HostSlot, host_of
from pipeline.archive.read.retry import retrying
from pipeline.archive.read.signing import (
    CDSE_S3_ENDPOINT,
    PLANETARY_TOKEN_URL,
    SIGNINGS,
    forget_token,
    require_s3_keys,
    takes_token,
    token_for,
)
from pipeline.archive.read.url_policy import UrlPolicy
from pipeline.errors import PipelineError, ReadError, UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import SplitResult

    from pipeline.archive.read.url_policy import Kind

T = TypeVar("T")

READ_TRIES = 6  # of a file whose host is down or busy


@dataclass(frozen=True)
class Access:
    """How the files of one archive may be reached. It holds no secret, and can be pickled.

    https files are read through `gateway`, which checks redirects and the addresses that names resolve to.
    `hosts`: allowed "host", "*.suffix", "127.0.0.1:8080" (also over http), "s3://bucket", or "*" (any public https
    host). `roots`: folders under which plain paths may lie. `connections`: limit per host, over all processes.
    """

    signing: str = "none"
    hosts: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    token_url: str = PLANETARY_TOKEN_URL
    s3_endpoint: str = CDSE_S3_ENDPOINT  # only for cdse-s3
    connections: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", tuple(self.hosts))  # JSON gives lists
        object.__setattr__(self, "roots", tuple(self.roots))
        if self.signing not in SIGNINGS:
            raise UsageError(f"signing {self.signing!r} is unknown", f"one of {', '.join(SIGNINGS)}")
        if type(self.connections) is not int or self.connections < 1:
            raise UsageError(f"limits.connections = {self.connections!r}", "a number of connections, at least 1")

    @property
    def _reads_s3(self) -> bool:
        return any(host.startswith("s3://") for host in self.hosts)

    @property
    def policy(self) -> HostPolicy:
        """Which hosts may be contacted."""
        return HostPolicy(self.hosts)

    def href(self, href: str) -> str:
        """Path that GDAL may open, signed where the archive requires it. UsageError when the policy refuses `href`."""
        kind, parts = self._admitted(href)
        if kind == "path":
            return parts.path
        if kind == "s3":
            if self.signing in ("cdse-s3", "s3-env"):
                require_s3_keys(self.signing)
            return f"/vsis3/{parts.netloc}{parts.path}"
        from pipeline.archive.read.gateway import gdal_path

        return gdal_path(self._identity(href), self.address(href), self.policy, self.connections)

    def address(self, href: str) -> str:
        """Signed address of an https file. UsageError when the policy refuses `href`."""
        _, parts = self._admitted(href)
        if self.signing == "planetary-computer" and takes_token(parts):
            return f"{parts.scheme}://{parts.netloc}{parts.path}?{token_for(parts, self.token_url)}"
        return parts.geturl()

    def _admitted(self, href: str) -> tuple[Kind, SplitResult]:
        return UrlPolicy(self.hosts, self.roots).admit(href)

    def _identity(self, href: str) -> str:
        return f"{self!r} {href}"

    def check(self, href: str) -> None:
        """Raise UsageError when the policy refuses `href`; needs neither network nor credentials."""
        self._admitted(href)

    def lists(self, host: str) -> bool:
        """True where a host is allowed by its name or a pattern, not only as any public host."""
        return self.policy.lists(host)

    def refresh(self, href: str) -> None:
        """Forget the token for `href`: call it when the archive answered 401 or 403."""
        kind, parts = self._admitted(href)
        if kind == "https" and self.signing == "planetary-computer" and takes_token(parts):
            forget_token(parts, self.token_url)

    def forget(self, href: str) -> None:
        """Ask the archive for the file when it is next read, instead of using bytes that are kept of it."""
        from pipeline.archive.read.gateway import forget

        forget(self._identity(href))

    def reading(self, href: str, call: Callable[[], T], *, what: str) -> T:
        """Result of `call`, which reads the file at `href`: rate limited, retried, signed anew once if refused.

        ReadError, or Unreachable, with `what` and the file in the message.
        """
        place = f"{what} at {redact(href)}"

        def attempt() -> T:
            try:
                return call()
            except PipelineError:
                raise
            except Exception:
                explained = self._explained(href, place)
                self.forget(href)
                if explained is None:
                    raise
                raise explained from None  # GDAL's error tells of the gateway, not of the archive

        return retrying(
            attempt, what=place, tries=READ_TRIES, on_auth=lambda: self.refresh(href), slot=self._slot(href)
        )

    def _explained(self, href: str, place: str) -> Exception | None:
        """The gateway's account of a failure, if it has one. A refused redirect is final."""
        from pipeline.archive.read.gateway import last_failure

        known = last_failure(self._identity(href))
        if known.get("refused"):
            found, expected, cure = known["refused"]
            return ReadError(f"{place}: {found}", expected, cure)
        return ConnectionError(known["trouble"]) if known.get("trouble") else None

    def _slot(self, href: str) -> HostSlot | None:
        """Slot at the host of `href`; None for a local path."""
        from pipeline.archive.read.gateway import last_failure

        kind, parts = self._admitted(href)
        if kind == "path":
            return None
        if kind == "s3":
            return HostSlot(host_of(parts.netloc), self.connections)
        host = host_of(parts.netloc.lower())
        return HostSlot(host, self.connections, lambda: float(last_failure(self._identity(href)).get("wait_s", 0.0)))

    def gdal_env(self) -> dict[str, str]:
        """GDAL options as environment variables; see `gdal.gdal_env`."""
        return gdal.gdal_env(self.signing, self.s3_endpoint, reads_s3=self._reads_s3)

    def fence(self) -> dict[str, str]:
        """GDAL options that restrict network files; see `gdal.fence`."""
        return gdal.fence(reads_s3=self._reads_s3)
