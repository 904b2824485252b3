"""Jobs cut into parts: which there are, where they come to be, the processes that build them, how far they are.

A part is a fixed range of a job's rows that is built by one process; by whom, in which order and how often changes no
byte. Knows neither what rows are nor what is made of them.
"""

from slm.parts.plan import Part, Piece, Plan, Span, make_plan
from slm.parts.pool import Report, StopBuilding, run_parts
from slm.parts.progress import BuildProgress
from slm.parts.share import build_share
from slm.parts.workspace import Workspace, check_share

__all__ = [
    "BuildProgress",
    "Part",
    "Piece",
    "Plan",
    "Report",
    "Span",
    "StopBuilding",
    "Workspace",
    "build_share",
    "check_share",
    "make_plan",
    "run_parts",
]
