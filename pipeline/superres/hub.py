"""Weights on the Hugging Face Hub: hf://OWNER/REPO[@REVISION]/PATH.safetensors[@SHA256].

A plan records the address pinned to its commit, so that workers elsewhere find the same bytes in the hub's cache or
fetch them again. Messages quote no server response, since its URLs may be signed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from pipeline.errors import IntegrityError, PipelineError, StorageError, Unreachable, UpstreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEME = "hf://"
GRAMMAR = "hf://OWNER/REPO[@REVISION]/PATH.safetensors[@SHA256]"
DEFAULT_REVISION = "main"
_PART = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(
    rf"hf://(?P<repo>{_PART}/{_PART})(@(?P<revision>[^@/\s]+))?"
    r"/(?P<path>[^@\s?#]+\.safetensors)(@(?P<sha256>[0-9a-fA-F]{64}))?"
)
_OTHER_KINDS = ("datasets", "spaces", "models", "kernels", "buckets")  # path prefixes of the hub, not owners
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOCAL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR})
_HTTP_CLIENTS = ("httpx", "httpcore", "hf_xet")  # their errors are not wrapped; hf_xet raises RuntimeError too
_LATER = "run the same command again later"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubFile:
    """A file in a model repository of the hub; `revision` is a branch, tag or commit, `sha256` may be empty."""

    repo: str
    path: str
    revision: str = DEFAULT_REVISION
    sha256: str = ""

    def __str__(self) -> str:
        """The address, without sha256."""
        at = "" if self.revision == DEFAULT_REVISION else "@" + quote(self.revision, safe="")
        return f"{SCHEME}{self.repo}{at}/{self.path}"


def is_address(weights: str) -> bool:
    """Return whether the weights are named by a hub address rather than a path."""
    return weights.startswith(SCHEME)


def parse(address: str) -> HubFile:
    """Return the parts of an address. Raises UsageError if it is invalid.

    >>> parse("hf://some/where@v1/sr.safetensors")
    HubFile(repo='some/where', path='sr.safetensors', revision='v1', sha256='')
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or found["repo"].split("/")[0] in _OTHER_KINDS:
        plain = address.split("@")[0]
        cure = "convert other formats once with python -m training.convert" if "." in plain.rsplit("/", 1)[-1] else ""
        found_text = f"{address} is not a valid address of weights on the hub"
        raise UsageError(found_text, GRAMMAR, "" if ".safetensors" in address else cure)
    if any(part in ("", ".", "..") for part in found["path"].split("/")):
        raise UsageError(f"{address} has empty, . or .. path components", GRAMMAR)
    revision = unquote(found["revision"] or DEFAULT_REVISION)
    return HubFile(found["repo"], found["path"], revision, (found["sha256"] or "").lower())


def settle(address: str) -> tuple[str, Path]:
    """Return the address pinned to its commit, and its verified file, fetched unless the cache has it. For planning.

    Raises UsageError for a wrong address or digest, UpstreamError if the hub refuses, Unreachable if it does not
    answer, IntegrityError if the bytes do not match the hub's digest, StorageError for a full disk.
    """
    file = parse(address)
    path = _fetched(file)
    commit = path.parents[file.path.count("/")].name  # .../snapshots/COMMIT/PATH
    if not _COMMIT.fullmatch(commit):
        raise UpstreamError(f"{file} was answered without a commit", "a commit of 40 hexadecimal digits")
    _verify(file, path)
    return str(replace(file, revision=commit)), path


def located(pinned: str) -> Path:
    """Return the file of an address pinned by `settle`: from the cache without a request, or else fetched again.

    For workers; the caller compares the plan's digest. Raises as `settle`.
    """
    return _fetched(parse(pinned))


def _verify(file: HubFile, path: Path) -> None:
    """Compare the file with the digest in the address and with the name under which the hub caches it."""
    named = os.readlink(path).rsplit("/", 1)[-1] if path.is_symlink() else ""  # the cache names large files by sha256
    if not file.sha256 and not _SHA256.fullmatch(named):
        return
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if _SHA256.fullmatch(named) and digest != named:
        cure = f"delete {path.resolve()} and run again: it will be fetched anew"
        raise IntegrityError(f"{file} has sha256 {digest} in the cache", f"{named}, the digest given by the hub", cure)
    if file.sha256 and digest != file.sha256:
        cure = "check the address, or pin the revision that it was taken from with @REVISION"
        raise UsageError(f"{file} has sha256 {digest}", file.sha256, cure)


def _fetched(file: HubFile) -> Path:
    """Return the file in the hub's cache. A commit that is cached needs no network."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise UsageError(
            f"{file} needs the package huggingface_hub, which is not installed",
            cure="python -m pip install 'sen2fine[hub]', or download the file and give its path",
        ) from None
    try:
        with _one_line():
            return Path(hf_hub_download(file.repo, file.path, revision=file.revision))
    except HFValidationError:
        raise UsageError(f"{file.repo} is not a valid repository name", GRAMMAR) from None
    except Exception as error:
        explained = _explained(file, error)
        if explained is None:
            raise
        raise explained from None


@contextmanager
def _one_line() -> Iterator[None]:
    """Silence the library's warnings about each retry; our own message reports the failure once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _explained(file: HubFile, error: Exception) -> PipelineError | None:
    """Return the error as one of ours; None if it is not a failure of network, hub or disk."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError | errors.DisabledRepoError):
        return UpstreamError(f"{file.repo} is gated or disabled", cure=f"accept its terms on its page, then {_LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        cure = f"check the address; if the repository is private, {_LOG_IN}"
        return UsageError(f"the hub shows no repository {file.repo}", GRAMMAR, cure)
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{file.repo} has no revision {file.revision}", "a branch, tag or commit of it")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _absent(file, error.__cause__)
    if isinstance(error, errors.EntryNotFoundError):
        return UsageError(f"{file.repo} has no file {file.path} at {file.revision}", "one of its files")
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(file, error.response.status_code)
    if isinstance(error, OSError) and error.errno in _LOCAL_ERRNO:
        cure = "free space or permissions, or set HF_HOME to a folder of yours"
        return StorageError(f"{file} cannot be kept in the hub's cache: {error.strerror}", cure=cure)
    if isinstance(error, OSError | RuntimeError) or type(error).__module__.startswith(_HTTP_CLIENTS):
        return Unreachable(f"{file} was not downloaded completely ({type(error).__name__})", cure=_LATER)
    return None


def _absent(file: HubFile, cause: BaseException | None) -> PipelineError:
    """Return why a file that is not in the cache could not be requested."""
    from huggingface_hub import errors

    if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
        cure = "unset HF_HUB_OFFLINE, or run once where there is a network, or give a file's path"
        return UsageError(f"{file} is not in the cache and HF_HUB_OFFLINE forbids to fetch it", cure=cure)
    if isinstance(cause, errors.FileMetadataError):
        return UpstreamError(f"what answers for {file} is no hub", cure="check HF_ENDPOINT and the proxy settings")
    if isinstance(cause, errors.HfHubHTTPError):
        return _answered(file, cause.response.status_code)
    cure = f"check the network, HF_ENDPOINT and proxy settings, or give a file's path; else {_LATER}"
    return Unreachable(f"the hub does not answer for {file} ({type(cause).__name__})", cure=cure)


def _answered(file: HubFile, status: int) -> PipelineError:
    """Return the error for an HTTP status."""
    if status in _BUSY:
        return Unreachable(f"the hub is busy: status {status} for {file}", cure=_LATER)
    if status in (401, 403):
        return UpstreamError(
            f"the hub refuses {file} with status {status}", cure=f"{_LOG_IN}; a token may be wrong or old"
        )
    return UpstreamError(f"the hub answers {file} with status {status}", "the file", "check the address")
