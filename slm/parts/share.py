"""A whole build, a task's share of its parts, or the step that joins what tasks built."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slm.errors import DataError, from_os_error
from slm.parts.plan import Part, Plan
from slm.parts.workspace import R, Workspace


def build_share(
    space: Workspace[R],
    *,
    task: tuple[int, int] | None,
    join: bool,
    planned: Callable[[], Plan],
    build: Callable[[Plan, Sequence[Part]], None],
    close: Callable[[Plan], object],
) -> None:
    """Plan, build parts, join: all of it, or what `task` or `join` asks for (see `check_share`).

    Args:
        planned: the plan of a build that was begun, or a new one.
        build: builds these parts of a plan.
        close: joins the parts of a plan, all of them built.

    Raises:
        DataError: to be joined before any part is built; what the three raise.
        MachineError: no space left, or another fault of a disk.
    """
    try:
        if join:
            plan = space.plan()
            if plan is None:
                raise DataError(
                    "no part of this set is built yet", where=str(space.out), mend="run the tasks before --join"
                )
        else:
            plan = planned()
            i, n = task or (0, 1)
            build(plan, [part for part in plan.parts if part.number % n == i])
        if task is None:
            close(plan)
    except OSError as error:
        raise from_os_error(error, f"building {space.out}") from error
