"""Lengths of time as people and SLURM write them."""

from __future__ import annotations

import re

from slm.errors import ConfigError

_FORM = re.compile(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d\d))?(?::(\d\d))?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `90` (minutes), `1:30:00`, `45:00` (minutes and seconds), `2-12` (days and hours), `2-12:30:00`.

    These are SLURM's own forms.

    Raises:
        ConfigError: another form, or no time at all.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no length of time", mend="minutes, HH:MM:SS, or D-HH:MM:SS, as SLURM has it")
    days, first, second, third = (int(part) if part is not None else None for part in match.groups())
    assert first is not None
    if days is not None:
        seconds = ((days * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:
        seconds = (first * 60 + (second or 0)) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    if not seconds:
        raise ConfigError(f"{text!r} is no time at all")
    return float(seconds)
