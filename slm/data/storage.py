"""Where the bytes of a shard set come from: a local folder, memory-mapped, or a URL, read by ranges."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from slm.artifact import write_atomic
from slm.errors import DataError, SlmError
from slm.remote import is_url, join, open_filesystem, retried

log = logging.getLogger(__name__)

OPEN_FILES = 128
FAULT_AROUND = 1 << 16
"""Bytes, aligned, that Linux maps at once around the page that was touched."""
REQUESTS = 8
"""Requests to a server that are in flight at a time, per shard set."""
Result = TypeVar("Result")


def cache_folder() -> Path:
    """Where remote indexes are kept: `SLM_CACHE`, or `slm` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("SLM_CACHE") or Path(base) / "slm")


class Storage(Protocol):
    """The files of one shard set."""

    def where(self, name: str) -> str:
        """Path or URL of a file."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when asking would cost a request.

        Raises:
            FileNotFoundError: no such file.
        """

    def whole(self, name: str, sha256: str) -> memoryview:
        """A small file that is known by its hash; the caller checks it.

        Raises:
            FileNotFoundError: no such file.
        """

    def part(self, name: str, start: int, size: int) -> memoryview:
        """Bytes of a file; fewer when it ends before.

        Raises:
            FileNotFoundError: no such file.
            OSError, MachineError: it can't be read.
        """

    def ahead(self, name: str, start: int, size: int, use: Callable[[], Result]) -> Future[Result] | None:
        """Start what will need these bytes soon: a hint to the disk, or `use` in the background."""

    def done_with(self, name: str, start: int, size: int) -> None:
        """These bytes will not be needed soon."""

    def close(self) -> None:
        """Drop what was started and not finished."""


def open_storage(location: str, cache: Path | None = None) -> Storage:
    """The storage behind a path or URL.

    Raises:
        ConfigError: a scheme that is not allowed.
        MachineError: a package for it is missing.
    """
    if location.startswith("file://"):
        return LocalFolder(Path(location.removeprefix("file://")))
    return RemoteFolder(location, cache or cache_folder()) if is_url(location) else LocalFolder(Path(location))


class LocalFolder:
    """Memory-mapped files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: OrderedDict[str, tuple[mmap.mmap, memoryview]] = OrderedDict()
        self._lock = threading.Lock()

    def where(self, name: str) -> str:
        """See `Storage`."""
        return str(self.folder / name)

    def size(self, name: str) -> int | None:
        """See `Storage`."""
        return (self.folder / name).stat().st_size

    def whole(self, name: str, sha256: str) -> memoryview:
        """See `Storage`."""
        return _mapped(self.folder / name)[1]

    def part(self, name: str, start: int, size: int) -> memoryview:
        """See `Storage`."""
        return self._open(name)[1][start : start + size]

    def ahead(self, name: str, start: int, size: int, use: Callable[[], Result]) -> Future[Result] | None:
        """See `Storage`."""
        self._advise(name, start, size, "MADV_WILLNEED")
        return None

    def done_with(self, name: str, start: int, size: int) -> None:
        """Unmap the pages, and the neighbours mapped with them: they would count as this process's memory for good."""
        first = start - start % FAULT_AROUND
        self._advise(name, first, -(-(start + size) // FAULT_AROUND) * FAULT_AROUND - first, "MADV_DONTNEED")

    def close(self) -> None:
        """See `Storage`."""

    def _advise(self, name: str, start: int, size: int, advice: str) -> None:
        first = start - start % mmap.PAGESIZE
        try:
            mapped = self._open(name)[0]
            if mapped is not None and hasattr(mmap, advice):
                mapped.madvise(getattr(mmap, advice), first, min(start + size, len(mapped)) - first)
        except (OSError, ValueError):
            return  # advice only; whatever is wrong shows when the bytes are read

    def _open(self, name: str) -> tuple[mmap.mmap, memoryview]:
        with self._lock:
            if name not in self._maps:
                self._maps[name] = _mapped(self.folder / name)
                if len(self._maps) > OPEN_FILES:
                    self._maps.popitem(last=False)  # arrays that alias it keep the mapping alive
            self._maps.move_to_end(name)
            return self._maps[name]


class RemoteFolder:
    """Range requests through fsspec. Threads share it; a process that forks opens its own."""

    def __init__(self, location: str, cache: Path) -> None:
        self.location, self.cache = location, cache
        self._filesystem = open_filesystem(location)
        self._pool: ThreadPoolExecutor | None = None
        self._ranges: bool | None = None
        self._lock = threading.Lock()

    def where(self, name: str) -> str:
        """See `Storage`."""
        return join(self.location, name)

    def size(self, name: str) -> int | None:
        """See `Storage`: unknown until something is read."""
        return None

    def whole(self, name: str, sha256: str) -> memoryview:
        """See `Storage`. Fetched once into the cache folder, where it is found by its hash."""
        kept = self.cache / "indexes" / f"{sha256}.idx"
        if kept.is_file() and kept.stat().st_size:
            data = _mapped(kept)[1]
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            log.warning("%s: damaged in the cache, fetched again", kept)
        url = self.where(name)
        fetched = retried(lambda: self._filesystem.cat_file(url), url)
        if hashlib.sha256(fetched).hexdigest() != sha256:
            return memoryview(fetched)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, fetched)
        except (SlmError, OSError) as error:
            log.warning("%s: not kept in the cache (%s)", url, str(error).splitlines()[0])
            return memoryview(fetched)
        return _mapped(kept)[1]

    def part(self, name: str, start: int, size: int) -> memoryview:
        """See `Storage`.

        Raises:
            DataError: the server answers with the whole file.
        """
        url = self.where(name)
        self._require_ranges(url)
        data = retried(lambda: self._range(url, start, size), url)
        if len(data) > size:
            raise self._no_ranges(url)
        return memoryview(data)

    def ahead(self, name: str, start: int, size: int, use: Callable[[], Result]) -> Future[Result] | None:
        """See `Storage`."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(REQUESTS, "remote")
            return self._pool.submit(use)

    def done_with(self, name: str, start: int, size: int) -> None:
        """See `Storage`: nothing is held here."""

    def close(self) -> None:
        """See `Storage`."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _range(self, url: str, start: int, size: int) -> bytes:
        try:
            return self._filesystem.cat_file(url, start=start, end=start + size)
        except FileNotFoundError:
            raise
        except Exception:
            # A range that starts past the end is an error for servers; for us it is a file that was cut.
            if self._ends_by(url, start):
                return b""
            raise

    def _ends_by(self, url: str, start: int) -> bool:
        try:
            size: Any = self._filesystem.size(url)
        except Exception:
            return False
        return size is not None and size <= start

    def _require_ranges(self, url: str) -> None:
        """Ask for one byte first: a server that ignores ranges would send a whole shard for every group."""
        with self._lock:
            if self._ranges is None:
                if not url.startswith("http"):
                    self._ranges = True
                else:
                    self._ranges = retried(lambda: _answers_ranges(self._filesystem, url), url)
        if not self._ranges:
            raise self._no_ranges(url)

    def _no_ranges(self, url: str) -> DataError:
        return DataError(
            "the server ignores range requests, so a group can't be read without its whole shard",
            where=url,
            mend="serve the shards by a server that answers ranges with 206, or copy the set to a local folder",
        )


def _answers_ranges(filesystem: Any, url: str) -> bool:
    """Whether a server answers a range with 206; the body of any other answer is not read."""
    from fsspec.asyn import sync

    async def ask() -> int:
        session = await filesystem.set_session()
        async with session.get(url, headers={"Range": "bytes=0-0"}) as response:
            if response.status == 404:
                raise FileNotFoundError(url)
            if response.status != 416:  # an empty file has no first byte
                response.raise_for_status()
            return response.status

    return sync(filesystem.loop, ask) in (206, 416)


def _mapped(path: Path) -> tuple[Any, memoryview]:
    """A file's mapping (None for an empty file, which can't be mapped) and its bytes."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return None, memoryview(b"")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return mapped, memoryview(mapped)
