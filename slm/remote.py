"""Files behind URLs: which schemes may be read, whole files and byte ranges, tried again when the network fails.

Reads by `fsspec`, which is imported when a URL is met and not before. Only listed schemes are opened:
none that runs a command, none that chains to another.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from slm.errors import ConfigError, MachineError

log = logging.getLogger(__name__)

SCHEMES = ("http", "https", "s3", "file", "memory")
TRIES = 5
FIRST_WAIT_S = 0.5
TIMEOUT_S = 120.0
Result = TypeVar("Result")


def is_url(location: str) -> bool:
    """Whether a location is to be opened by scheme: `https://…`, and `pipe:…`, which is then refused."""
    return "://" in location or "::" in location or location.startswith("pipe:")


def join(location: str, name: str) -> str:
    """The URL or path of a file in a folder; a query string (`?versionId=…`) stays at the end."""
    folder, mark, query = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def open_filesystem(url: str) -> Any:
    """The fsspec filesystem of a URL.

    Raises:
        ConfigError: a scheme that is not in `SCHEMES`, or a chain of them.
        MachineError: a package for it is missing.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in SCHEMES or "::" in url:
        raise ConfigError(
            f"data can't be read by {url.partition('/')[0]!r}",
            where=url,
            mend=f"give a folder, or a URL of one of {', '.join(SCHEMES)}",
        )
    try:
        import fsspec

        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            import aiohttp

            options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=20.0)}}
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        raise MachineError(
            f"a package for {scheme}: URLs is missing: {error}", where=url, mend="pip install 'slm[remote]'"
        ) from None


def retried(read: Callable[[], Result], url: str) -> Result:
    """The result of `read`, tried again with growing pauses when the network or the server fails.

    Raises:
        FileNotFoundError: there is no such file; not tried again.
        MachineError: no permission, or still failing after `TRIES` tries.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise MachineError(
                f"not allowed to read: {_line(error)}", where=url, mend="set the credentials in the environment"
            ) from error
        except Exception as error:  # each filesystem has errors of its own
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if refused or attempt == TRIES:
                tries = f" ({attempt} tries)" if attempt > 1 else ""
                raise MachineError(
                    f"can't be read: {_line(error)}{tries}",
                    where=url,
                    mend="check the URL, the server and the network, then start the same command again",
                ) from error
            wait = FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            log.warning("%s: %s; trying again in %.1f s", url, _line(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def read_whole(url: str) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError, ConfigError, MachineError: see `retried` and `open_filesystem`.
    """
    filesystem = open_filesystem(url)
    return retried(lambda: filesystem.cat_file(url), url)


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
