"""What is wrong with a job, judged from its ranks' signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slm.engine.pulse import LASTING, STEPPING, Sign

STEP_FACTOR, STEP_LEAST_S, OUTSIDE_S, LASTING_S = 10.0, 60.0, 540.0, 12 * 3600.0
"""How long nobody may get on: within steps so many times the longest of them, at least so long; outside of steps a
little less than the process group's own patience of ten minutes; and where ranks wait for hours on purpose, as long as
they do. There a rank that hangs is found by the patience of the group in which the others wait."""


@dataclass(frozen=True)
class Verdict:
    """Which rank ended a job, and how.

    Attributes:
        kind: `died` (its connection closed), `silent` (no sign of life), `hung` (alive, and gets nowhere), `stalled`
            (all wait in the same place, so nothing says who is to blame), `failed` (it left with an error that it had
            told).
        sign: the last that was heard of it.
        words: the error; how long it was silent; where it hangs.
        lost: the same command may well succeed when it is run again.
    """

    kind: Literal["died", "silent", "hung", "stalled", "failed"]
    sign: Sign
    words: str = ""
    lost: bool = True

    def __str__(self) -> str:
        who, doing = self.sign.who, self.sign.doing
        if self.kind == "died":
            return f"{who} died in {doing}"
        if self.kind == "silent":
            return f"{who} gave no sign of life for {self.words}, last in {doing}: stopped, or cut off"
        if self.kind == "hung":
            return f"{who} hangs in {doing} {self.words}"
        if self.kind == "stalled":
            return f"all ranks wait for each other in {doing} {self.words}: a message does not arrive, or a GPU hangs"
        return f"{who} failed in {doing}: {self.words}"

    def to_json(self) -> dict[str, Any]:
        """For the message to the other ranks."""
        return {"kind": self.kind, "sign": vars(self.sign), "words": self.words, "lost": self.lost}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Verdict:
        """The other way round."""
        return cls(plain["kind"], Sign(**plain["sign"]), plain["words"], plain["lost"])


def allowed_s(signs: Sequence[Sign], stuck_s: float | None) -> float:
    """How long the ranks may stand still.

    Args:
        stuck_s: what the configuration says of steps.
    """
    if any(sign.phase in LASTING for sign in signs):
        return LASTING_S
    longest = max(sign.longest_step_s for sign in signs)
    if not longest or any(sign.phase not in STEPPING for sign in signs):
        return OUTSIDE_S
    return stuck_s if stuck_s is not None else max(STEP_LEAST_S, STEP_FACTOR * longest)


def find_hung(signs: Sequence[Sign], stuck_s: float | None) -> Verdict | None:
    """The rank that keeps all from getting on; None while one of them got on lately.

    Ranks that wait for others are not the cause. Of the rest the one that has come least far is; when all wait for
    each other (in different messages, then) it is the one whose line is the rarest, if one is.
    """
    still = min(sign.still_s for sign in signs)
    if still <= allowed_s(signs, stuck_s):
        return None
    busy = [sign for sign in signs if not sign.waits]
    if busy:
        odd = min(busy, key=lambda sign: (sign.step, sign.count, sign.rank))
    else:
        lines = [sign.at for sign in signs]
        odd = min(signs, key=lambda sign: (lines.count(sign.at), sign.step, sign.count, sign.rank))
    where = f" at {odd.at}" if odd.at else ""
    alike = not busy and len(signs) > 1 and len({sign.at for sign in signs}) == 1
    return Verdict("stalled" if alike else "hung", odd, f"for {odd.still_s:.0f} s{where}")
