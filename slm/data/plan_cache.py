"""How many rows each window of each epoch has, kept in a file: what resuming far into a run needs to know.

Everything in it can be computed again from the sample lengths; the file only saves that time. It is
named by all that it depends on, carries a crc, and is ignored, with a word, when it is damaged.
"""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np

from slm.artifact import write_atomic
from slm.errors import SlmError

log = logging.getLogger(__name__)

MAGIC = b"slm-ord\n"
VERSION = 1
HEADER = struct.Struct("<8sII32sQQI")
UNSAVED_SAMPLES = 500_000
"""Planning that may be lost by a kill, in samples: half a second."""
WINDOW_COST = 256
"""What a window costs beside its samples, in samples."""


class PlanCache:
    """Sizes of windows, epoch after epoch, in memory and (with a path) in a file.

    Args:
        path: the file; None keeps nothing.
        key: hex sha256 of all that the sizes depend on.
        windows: windows of an epoch.
        writes: whether this process may write the file; all read it.
    """

    def __init__(self, path: Path | None, key: str, windows: int, writes: bool = True) -> None:
        self.path, self.key, self.windows, self.writes = path, bytes.fromhex(key), windows, writes
        self._unsaved = 0
        stored = self._read()
        self._epochs: list[np.ndarray] = list(stored)
        self.saved = len(stored)

    def __len__(self) -> int:
        return len(self._epochs)

    def __getitem__(self, epoch: int) -> np.ndarray:
        """Rows, samples and tokens of each window, int64, (windows, 3)."""
        return self._epochs[epoch]

    def rows(self) -> list[int]:
        """Rows of each epoch that is known."""
        return [int(sizes[:, 0].sum()) for sizes in self._epochs]

    def append(self, sizes: np.ndarray) -> None:
        """Add the next epoch; the file is written again when half a second of planning is not in it."""
        self._epochs.append(sizes)
        self._unsaved += int(sizes[:, 1].sum()) + WINDOW_COST * (len(sizes) + 1)
        if self._unsaved >= UNSAVED_SAMPLES:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one. A disk that refuses costs the time saved, not the run."""
        if self.path is None or not self.writes or self.saved == len(self._epochs):
            return
        body = np.stack(self._epochs).astype("<i8").tobytes()
        header = (MAGIC, VERSION, HEADER.size, self.key, len(self._epochs), self.windows)
        crc = zlib.crc32(body, zlib.crc32(HEADER.pack(*header, 0)))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, HEADER.pack(*header, crc) + body)
        except (SlmError, OSError) as error:
            log.warning("%s: the order's row counts are not kept (%s)", self.path, str(error).splitlines()[0])
        self.saved, self._unsaved = len(self._epochs), 0

    def _read(self) -> np.ndarray:
        nothing = np.empty((0, self.windows, 3), dtype=np.int64)
        if self.path is None or not self.path.is_file():
            return nothing
        data = self.path.read_bytes()
        if len(data) >= HEADER.size:
            *header, crc = HEADER.unpack_from(data)
            epochs = header[4]
            wanted = [MAGIC, VERSION, HEADER.size, self.key, epochs, self.windows]
            whole = len(data) == HEADER.size + 24 * epochs * self.windows
            body = memoryview(data)[HEADER.size :]
            if header == wanted and whole and zlib.crc32(body, zlib.crc32(HEADER.pack(*header, 0))) == crc:
                return np.frombuffer(body, "<i8").reshape(epochs, self.windows, 3)
        log.warning("%s: damaged or of another version; the order's row counts are computed again", self.path)
        return nothing
