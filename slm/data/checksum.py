"""The crc32 of shards: by isa-l where the package `isal` is installed, two to three times as fast, else by zlib."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
