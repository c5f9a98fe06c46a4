"""Stores in an object store (S3, Google Cloud Storage, Azure) through obstore, with errors that hold no secrets.

Credentials, region and endpoint come from the environment, as obstore reads them (AWS_..., GOOGLE_..., AZURE_...).
"""

from __future__ import annotations

import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
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
    from collections.abc import Callable, Iterator, Mapping

    from obstore.store import ObjectStore as Client
    from zarr.abc.store import Store


PATIENCE_ENV = "SEN2FINE_STORE_PATIENCE_S"
_PATIENCE_S = 90.0  # of one request with all retries; shorter than the grace period of a job that is asked to stop
_LISTED = 1000  # objects per list or delete request
_TRIES = 3  # of a conditional PUT, each with its own retry timeout
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
    """A prefix of a bucket, by its URL.

    A plain PUT is atomic, and can be retried because the same bytes give the same object.
    """

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
        """File in the working folder, named after the store."""
        return Path(unquote(PurePosixPath(urlsplit(self.url).path).name)).with_suffix(".png")

    def absolute(self) -> ObjectPlace:
        """Return the same place: URLs are absolute."""
        return self

    def shown(self, key: str) -> str:
        """Return the object's URL."""
        return f"{self.url}/{key}"

    def exists(self) -> bool:
        """Return whether any object lies under the prefix."""
        import obstore

        with self.reading():
            return any(len(batch) > 0 for batch in obstore.list(self._client, chunk_size=1))

    def guarded(self, guard: Callable[[], None]) -> ObjectPlace:
        """Return the same prefix with a guard."""
        return ObjectPlace(self.url, guard)

    def walk(self) -> Iterator[str]:
        """Yield the keys of all objects under the prefix; there are no folders."""
        import obstore

        with self.reading():
            for batch in obstore.list(self._client, chunk_size=_LISTED):
                yield from (meta["path"] for meta in batch)

    def read(self, key: str) -> bytes | None:
        """Read one object."""
        import obstore

        with self.reading():
            try:
                return bytes(obstore.get(self._client, key).bytes())
            except FileNotFoundError as error:
                self._require_bucket(error)
        return None

    def size(self, key: str) -> int | None:
        """Return the size of one object in bytes, by HEAD."""
        import obstore

        with self.reading():
            try:
                return int(obstore.head(self._client, key)["size"])
            except FileNotFoundError:  # a HEAD response has no body that would name a missing bucket
                return None

    def age_s(self, key: str) -> float | None:
        """Return the age in seconds by the object store's clock, which is read from an object written now."""
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
        """Return the objects directly under a prefix."""
        import obstore

        with self.reading():
            return sorted(meta["path"] for meta in obstore.list_with_delimiter(self._client, folder)["objects"])

    def dates(self, folder: str) -> dict[str, float]:
        """Return the modification times of the objects directly under a prefix, from one listing."""
        import obstore

        with self.reading():
            listed = obstore.list_with_delimiter(self._client, folder)["objects"]
        return {meta["path"]: meta["last_modified"].timestamp() for meta in listed}

    def write(self, key: str, content: bytes) -> None:
        """Write one object by one PUT."""
        import obstore

        with self.writing():
            obstore.put(self._client, key, content, use_multipart=False)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write objects concurrently."""
        with ThreadPoolExecutor(self.hands) as pool:
            list(pool.map(self.write, files, files.values()))

    def create(self, key: str, content: bytes) -> bool:
        """Create one object by a conditional PUT.

        A conditional PUT is not repeatable: after a lost answer it reports that the object exists, although we wrote
        it. So compare the content, which is unique to its writer (icechunk's design document 017).
        """
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
                if isinstance(error, AlreadyExistsError):  # and it was deleted since
                    return False
                if isinstance(error, NotSupportedError) or "status code: 501" in str(error):
                    self.write(key, content)  # a server without conditional PUT: the last writer wins
                    return self.read(key) == content
                explained = _explained(error, self.url)
                if last or not isinstance(explained, StoreUnreachable):
                    raise explained from None
            else:
                return True
        return False

    def delete(self, key: str) -> None:
        """Delete one object."""
        import obstore

        with self.writing(), suppress(FileNotFoundError):
            obstore.delete(self._client, key)

    def clear(self, kept: tuple[str, ...]) -> None:
        """Delete objects in batches of one request each, and call the guard before each batch."""
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
        """Do nothing: there are no folders."""

    def sweep(self) -> int:
        """Do nothing: an interrupted PUT leaves no object."""
        return 0

    def zarr_store(self, group: str = "") -> Store:
        """Return a Zarr store over the group's prefix."""
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
        """Raise an object store's errors as PipelineErrors; FileNotFoundError passes, unless the bucket is missing."""
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
        """Like `reading`, but FileNotFoundError on a PUT is an error as well."""
        from obstore.exceptions import BaseError

        self._require()
        try:
            yield
        except PipelineError:
            raise
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and not _HOST.search(str(error)):
                raise  # raised by zarr for a missing group
            raise _explained(error, self.url) from None

    def _require_bucket(self, error: FileNotFoundError) -> None:
        if _NO_BUCKET.search(str(error)):
            raise _explained(error, self.url) from None


def _environment() -> frozenset[tuple[str, str]]:
    """Return the settings that obstore reads. Clients are cached by them, so renewed credentials take effect."""
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
    """Return the client of one prefix, cached to keep its connections. `environment` is part of the cache key."""
    import obstore
    from obstore.exceptions import BaseError

    names = {name for name, _ in environment}
    try:
        if not names.intersection(_OWN_CREDENTIALS):
            probe = _connect(url, environment, 3.0)
            try:  # credentials may come from an instance metadata service; fail soon if there is none
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
    """Return the error with host, status and error code only, since response bodies may hold keys."""
    text = str(error)
    host, code, status = (found[1] if (found := p.search(text)) else "" for p in (_HOST, _CODE, _STATUS))
    said = " ".join(filter(None, (status, code)))
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or their like for gs and az, in the environment"
    if _NO_BUCKET.search(text):
        cure = "create it, or correct its name, region or endpoint"
        return StorageError(f"{store}: there is no such bucket", cure=cure)
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
        return StorageError(f"{store}: the bucket is in another region", cure="set AWS_REGION to the bucket's region")
    if status.startswith("4") and status not in ("408", "409", "425", "429") and code != "NoSuchUpload":
        return StorageError(f"{store}: {host} refuses ({said})", cure="check the address, the region and the endpoint")
    if not host:
        return StorageError(f"{store} cannot be opened ({type(error).__name__})", "an address that obstore knows", keys)
    waited = f"{_patience_s():g} s of tries"
    return StoreUnreachable(f"{store}: {host} does not answer ({said or 'no connection'}, after {waited})", cure=_CURE)
