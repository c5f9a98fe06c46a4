"""A store in an object store (S3, Google Cloud Storage, Azure), by obstore; its failures in words, without secrets.

In: a URL; credentials, region and endpoint from the environment, as obstore reads them (AWS_..., GOOGLE_..., AZURE_).
Out: an `ObjectPlace`. Imports errors and keys; obstore and zarr inside functions.

Two rules make lost answers harmless. A plain PUT is whole or not at all, and the same bytes put twice are the same
object. A conditional PUT is not repeatable: after a lost answer it says that the object exists, although it is ours;
so whoever creates looks at what is there, and content unique to its writer tells (icechunk's design document 017).
"""

from __future__ import annotations

import math
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pipeline.errors import PipelineError, StorageError, StoreUnreachable, UsageError
from pipeline.store.keys import LEASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obstore.store import ObjectStore as Client
    from zarr.abc.store import Store


PATIENCE_ENV = "SEN2FINE_STORE_PATIENCE_S"
_PATIENCE_S = 90.0  # of one request, over all its tries; less than the grace of a job that is asked to stop
_LISTED = 1000  # objects that one request lists or deletes
_TRIES = 3  # of a conditional PUT, each with its own patience
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_")
_OWN_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE", "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SKIP_SIGNATURE",
    "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE", "AZURE_SKIP_SIGNATURE",
)  # fmt: skip
_HOST = re.compile(r"Error performing \w+ https?://([^/\s?]+)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
_FULL = re.compile(r"status code: 507|QuotaExceeded|StorageFull|NoSpace")
_METADATA = re.compile(r"//169\.254\.|/latest/(?:api|meta-data)|computeMetadata|metadata/identity|MissingAccount")
_PLAIN_HTTP = re.compile(r"BadScheme|URL scheme is not allowed")
_CURE = "run the same command again later, it continues where it stopped"


@dataclass(frozen=True)
class ObjectPlace:
    """A prefix of a bucket, by its URL."""

    url: str
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    hands = 32

    def __str__(self) -> str:
        return self.url

    @property
    def _client(self) -> Client:
        return _client(self.url, self.url, _environment(), _patience_s())

    @property
    def picture(self) -> Path:
        """In the working folder, named as the store."""
        return Path(unquote(PurePosixPath(urlsplit(self.url).path).name)).with_suffix(".png")

    def absolute(self) -> ObjectPlace:
        """The same: URLs are absolute."""
        return self

    def shown(self, key: str) -> str:
        """The object's URL."""
        return f"{self.url}/{key}"

    def exists(self) -> bool:
        """True when any object lies under the prefix."""
        import obstore

        with self.reading():
            return any(len(batch) > 0 for batch in obstore.list(self._client, chunk_size=1))

    def guarded(self, guard: Callable[[], None]) -> ObjectPlace:
        """The same prefix."""
        return ObjectPlace(self.url, guard)

    def walk(self) -> Iterator[str]:
        """All objects under the prefix; there are no folders."""
        import obstore

        with self.reading():
            for batch in obstore.list(self._client, chunk_size=_LISTED):
                yield from (meta["path"] for meta in batch)

    def read(self, key: str) -> bytes | None:
        """Content of one object."""
        import obstore

        with self.reading():
            try:
                return bytes(obstore.get(self._client, key).bytes())
            except FileNotFoundError as error:
                self._require_bucket(error)
        return None

    def size(self, key: str) -> int | None:
        """Bytes of one object, by HEAD."""
        import obstore

        with self.reading():
            try:
                return int(obstore.head(self._client, key)["size"])
            except FileNotFoundError:  # a HEAD has no body that could say more
                return None

    def age_s(self, key: str) -> float | None:
        """Seconds by the object store's clock, which is asked for by an object written now."""
        import obstore

        now = f"{LEASES}.clock-{uuid4().hex}"
        with self.reading():
            try:
                written = obstore.head(self._client, key)["last_modified"]
            except FileNotFoundError:
                return None
            self.write(now, b"what time is it?")
            seconds = (obstore.head(self._client, now)["last_modified"] - written).total_seconds()
        self.delete(now)
        return float(seconds)

    def names(self, folder: str) -> list[str]:
        """Objects directly under a prefix."""
        import obstore

        with self.reading():
            return sorted(meta["path"] for meta in obstore.list_with_delimiter(self._client, folder)["objects"])

    def write(self, key: str, content: bytes) -> None:
        """One PUT."""
        import obstore

        with self.writing():
            obstore.put(self._client, key, content, use_multipart=False)

    def create(self, key: str, content: bytes) -> bool:
        """A conditional PUT; whoever's content is there afterwards has made it."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError

        self._require()
        for last in (*[False] * (_TRIES - 1), True):
            try:
                obstore.put(self._client, key, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, BaseError, OSError) as error:
                found = self.read(key)
                if found is not None:
                    return found == content
                if isinstance(error, AlreadyExistsError):  # and deleted since
                    return False
                if isinstance(error, NotSupportedError) or "status code: 501" in str(error):
                    self.write(key, content)  # a server without conditional PUT: the last of two wins
                    return self.read(key) == content
                explained = _explained(error, self.url)
                if last or not isinstance(explained, StoreUnreachable):
                    raise explained from None
            else:
                return True
        return False

    def delete(self, key: str) -> None:
        """One DELETE."""
        import obstore

        with self.writing(), suppress(FileNotFoundError):
            obstore.delete(self._client, key)

    def clear(self, kept: tuple[str, ...]) -> None:
        """Delete objects, as many at once as one request takes; the guard is asked before each."""
        batch: list[str] = []
        for key in self.walk():
            if not key.startswith(kept):
                batch.append(key)
            if len(batch) == _LISTED:
                self._delete(batch)
                batch = []
        self._delete(batch)

    def _delete(self, keys: list[str]) -> None:
        import obstore

        if keys:
            with self.writing():
                obstore.delete(self._client, keys)

    def tidy(self, *, whole: bool) -> None:
        """Nothing: there are no folders."""

    def sweep(self) -> int:
        """Nothing: an interrupted PUT leaves no object."""
        return 0

    def zarr_store(self, group: str = "") -> Store:
        """A Zarr store over the group's prefix."""
        from zarr.storage import ObjectStore

        url = f"{self.url}/{group}" if group else self.url
        store = ObjectStore(_client(url, self.url, _environment(), _patience_s()))
        if self.guard is None:
            return store
        from pipeline.store.guarded import guarded_store

        return guarded_store(store, self.guard)

    def _require(self) -> None:
        if self.guard is not None:
            self.guard()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """An object store's failures as PipelineErrors; FileNotFoundError passes, unless the bucket is missing."""
        from obstore.exceptions import BaseError

        try:
            yield
        except PipelineError:
            raise
        except FileNotFoundError as error:
            self._require_bucket(error)
            raise
        except (BaseError, OSError) as error:
            raise _explained(error, self.url) from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Like `reading`; an object that cannot be put because something is not found is a failure as well."""
        from obstore.exceptions import BaseError

        self._require()
        try:
            yield
        except PipelineError:
            raise
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and not _HOST.search(str(error)):
                raise  # zarr's, of a group that is not there
            raise _explained(error, self.url) from None

    def _require_bucket(self, error: FileNotFoundError) -> None:
        if _NO_BUCKET.search(str(error)):
            raise _explained(error, self.url) from None


def _environment() -> frozenset[tuple[str, str]]:
    """Settings that obstore reads; part of the clients' key, so that renewed credentials are used."""
    return frozenset(item for item in os.environ.items() if item[0].startswith(_SETTINGS))


def _patience_s() -> float:
    text = os.environ.get(PATIENCE_ENV, "")
    try:
        seconds = float(text or _PATIENCE_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"{PATIENCE_ENV}={text}", "seconds, more than 0, such as 90")
    return seconds


@lru_cache(maxsize=16)
def _client(url: str, store: str, environment: frozenset[tuple[str, str]], patience_s: float) -> Client:
    """The client of one prefix, kept for its connections. `environment` tells when another one is needed."""
    import obstore
    from obstore.exceptions import BaseError

    names = {name for name, _ in environment}
    try:
        if not names.intersection(_OWN_CREDENTIALS):
            probe = _connect(url, environment, 3.0)
            try:  # the machine itself may hold credentials; where it does not, nobody should wait long to hear so
                obstore.head(probe, "zarr.json")
            except FileNotFoundError:
                pass
            except BaseError as error:
                if _METADATA.search(str(error)):
                    raise
        return _connect(url, environment, patience_s)
    except (BaseError, ValueError) as error:
        raise _explained(error, store) from None


def _connect(url: str, environment: frozenset[tuple[str, str]], patience_s: float) -> Client:
    from obstore.store import from_url

    plain = any(
        (name.endswith("ALLOW_HTTP") and value.lower() in ("true", "1", "yes"))
        or ("ENDPOINT" in name and value.startswith("http://"))
        for name, value in environment
    )
    pause, longest = timedelta(seconds=_FIRST_PAUSE_S), timedelta(seconds=_LONGEST_PAUSE_S)
    return from_url(
        url,
        retry_config={
            "max_retries": 30,
            "backoff": {"init_backoff": pause, "max_backoff": longest, "base": 2},
            "retry_timeout": timedelta(seconds=patience_s),
        },
        client_options={"connect_timeout": "10s", "timeout": "120s", "allow_http": plain},
    )


def _explained(error: Exception, store: str) -> PipelineError:
    """The failure in one line that holds host, status and the store's code only: bodies of answers may hold keys."""
    text = str(error)
    host, code, status = (found[1] if (found := p.search(text)) else "" for p in (_HOST, _CODE, _STATUS))
    said = " ".join(filter(None, (status, code)))
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or their like for gs and az, in the environment"
    if _NO_BUCKET.search(text):
        return StorageError(f"{store}: there is no such bucket", cure="create it, or mend its name, region or endpoint")
    if _METADATA.search(text):
        return StorageError(f"{store}: no credentials found", keys)
    if _PLAIN_HTTP.search(text):
        return UsageError(f"{store}: the endpoint is not https", cure="AWS_ALLOW_HTTP=true, if that is meant")
    if _FULL.search(text):
        return StorageError(f"no space left while writing {store} ({said})", cure="free space and run again")
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{store}: {host} refuses this machine's clock ({said})", cure="set the clock")
    if status in ("401", "403") or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return StorageError(f"{store}: {host} denies access ({said})", keys, "check them and the bucket's policy")
    if "configured region" in text or status.startswith("3"):
        return StorageError(f"{store}: the bucket is elsewhere", cure="set AWS_REGION to the bucket's region")
    if status.startswith("4") and status not in ("408", "409", "425", "429") and code != "NoSuchUpload":
        return StorageError(f"{store}: {host} refuses ({said})", cure="check the address, the region and the endpoint")
    if not host:
        return StorageError(f"{store} cannot be opened ({type(error).__name__})", "an address that obstore knows", keys)
    waited = f"{_patience_s():g} s of tries"
    return StoreUnreachable(f"{store}: {host} does not answer ({said or 'no connection'}, after {waited})", cure=_CURE)
