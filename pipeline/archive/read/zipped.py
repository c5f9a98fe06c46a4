"""Files inside zip archives, written as paths through the archive: /data/X.SAFE.zip/X.SAFE/MTD_MSIL2A.xml."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path

from pipeline.errors import UsageError

MAX_MEMBERS = 200_000  # of one archive; a SAFE product has about 150
_KEPT_OPEN = 8


def split(path: Path) -> tuple[Path, str] | None:
    """(archive, name inside) of a path that leads through a zip file; None for an ordinary path."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def names(archive: Path) -> tuple[str, ...]:
    """Names of the files in an archive. UsageError when it is damaged, encrypted or too large."""
    return tuple(_sizes(str(archive), archive.stat().st_mtime_ns))


def read(path: Path, limit: int) -> bytes | None:
    """Content of a small file, ordinary or inside an archive; None if absent. UsageError above `limit`."""
    inside = split(path)
    if inside is None:
        if not path.is_file():
            return None
        size = path.stat().st_size
    else:
        sizes = _sizes(str(inside[0]), inside[0].stat().st_mtime_ns)
        if inside[1] not in sizes:
            return None
        size = sizes[inside[1]]
    if size > limit:
        raise UsageError(f"{path} has {size} bytes", f"at most {limit}")
    if inside is None:
        return path.read_bytes()
    try:
        with zipfile.ZipFile(inside[0]) as opened:
            return opened.read(inside[1])
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:  # RuntimeError: encrypted
        raise UsageError(f"{path} cannot be read: {error}", "an intact zip file without a password") from error


def exists(path: Path) -> bool:
    """True for an ordinary file and for a file inside an archive."""
    inside = split(path)
    if inside is None:
        return path.is_file()
    return inside[1] in _sizes(str(inside[0]), inside[0].stat().st_mtime_ns)


@lru_cache(maxsize=_KEPT_OPEN)
def _sizes(archive: str, _mtime_ns: int) -> dict[str, int]:
    """{name: bytes when unpacked}, in the order of the names."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{archive} cannot be read: {error}", "an intact zip file") from error
    if len(members) > MAX_MEMBERS:
        raise UsageError(f"{archive} holds {len(members)} files", f"at most {MAX_MEMBERS}")
    if any(info.flag_bits & 1 for info in members):
        raise UsageError(f"{archive} is encrypted", "a zip file without a password")
    kept = [info for info in members if ".." not in Path(info.filename).parts and not info.filename.startswith("/")]
    return {info.filename: info.file_size for info in sorted(kept, key=lambda info: info.filename)}
