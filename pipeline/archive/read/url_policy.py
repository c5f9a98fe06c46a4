"""Which hrefs of a catalogue may be opened, by scheme, host, bucket and folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.archive.read import zipped
from pipeline.archive.read.host_policy import HostPolicy, listing_cure
from pipeline.errors import UsageError
from pipeline.redaction import redact

Kind = Literal["path", "s3", "https"]

MAX_HREF_CHARS = 2048  # real hrefs stay under 400; GDAL itself cuts file names at 2048
_INDIRECT_SUFFIXES = (".vrt", ".gti", ".xml", ".json", ".til", ".zip", ".tar", ".tgz", ".gz")


@dataclass(frozen=True)
class UrlPolicy:
    """Allowed hosts and buckets, as in `Access`, and folders under which plain paths may lie."""

    hosts: tuple[str, ...]
    roots: tuple[str, ...]

    def admit(self, href: str) -> tuple[Kind, SplitResult]:
        """Kind and parts of an allowed href; UsageError names the rule that it breaks."""
        _check_text(href)
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+._-]*):", href)
        if scheme is None:
            return "path", SplitResult("", "", self._local_path(href), "", "")
        name = scheme[1].lower()
        if name == "file":
            return "path", SplitResult("", "", self._local_path(unquote(_split(href).path)), "", "")
        if name not in ("https", "http", "s3"):
            raise _refused(href, f"scheme {name}: is not one of https, s3, file")
        parts = _split(href)
        if ".." in unquote(unquote(parts.path)).split("/"):
            raise _refused(href, "it climbs with '..'")
        if name == "s3":
            if f"s3://{parts.netloc}" not in self.hosts:
                raise _refused(href, f"bucket {parts.netloc!r} is not listed", f"s3://{parts.netloc}")
            return "s3", parts
        self._check_host(href, parts)
        return "https", parts

    def _local_path(self, path: str) -> str:
        if path.startswith("/vsi"):
            raise _refused(path, "GDAL's virtual file systems are not for catalogues to choose")
        if ".." in Path(path).parts:
            raise _refused(path, "it climbs with '..'")
        real = Path(path).resolve()
        if not any(real.is_relative_to(Path(root).resolve()) for root in self.roots):
            rule = f"it lies under none of the folders {list(self.roots)}"
            cure = "list the files with python -m pipeline.index FOLDER, or name their folder in SEN2FINE_ROOTS"
            raise _refused(path, rule, cure=cure)
        # A path through a zip file: the archive itself lies under the roots. Only its own members can be reached,
        # since the path has no "..", and only by the allowed drivers.
        return str(real) if zipped.split(real) is None else f"/vsizip/{real}"

    def _check_host(self, href: str, parts: SplitResult) -> None:
        """Allow hosts by name with port, by name, or by pattern; plain http only for listed loopback addresses."""
        fault = HostPolicy(self.hosts).fault(parts)
        if fault:
            raise _refused(href, *fault)


def _check_text(href: str) -> None:
    if not href.strip():
        raise UsageError("an asset has an empty href", "an address or a path")
    if len(href) > MAX_HREF_CHARS:
        raise UsageError(f"an asset's href has {len(href)} characters", f"at most {MAX_HREF_CHARS}")
    if any(ord(char) <= 0x20 or char in "\\\x7f" for char in href.replace(" ", "")):
        raise _refused(href, "it holds control characters or backslashes")
    if _split(href).path.lower().endswith(_INDIRECT_SUFFIXES):
        raise _refused(href, "files that point to other files are not opened")


def _split(href: str) -> SplitResult:
    try:
        return urlsplit(href)
    except ValueError as error:
        raise _refused(href, f"it is not an address ({error})") from None


def _refused(href: str, rule: str, listing: str = "", cure: str = "") -> UsageError:
    shown = redact(href if len(href) <= 200 else href[:200] + "...")
    return UsageError(f"asset href {shown!a} is refused: {rule}", cure=listing_cure(listing) or cure)
