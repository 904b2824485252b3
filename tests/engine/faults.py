"""Faults at exact points of a run: a rank is killed, stopped or stuck, or its numbers go wrong.

`warm.py` installs one in a forked rank before `launcher/train.py` runs. The package itself has no hook for it.
A fault is `{"ranks": [0, 1], "kind": …, "step": …}`; `step` is the one that is being taken, from 0.
"""

from __future__ import annotations

import os
import random
import signal
import time

KILLS = ("forward", "backward", "step", "save", "hash", "rename", "renamed")
AT_SAVE = ("save", "hash", "rename", "renamed")


def random_kill(draw: random.Random, steps: int, every: int) -> dict:
    """A point of a run that saves at each multiple of `every`: which ranks are killed, doing what, when."""
    kind = draw.choice(KILLS)
    step = draw.randrange(every, steps, every) - 1 if kind in AT_SAVE else draw.randrange(steps)
    ranks = [0] if kind in ("rename", "renamed") and draw.random() < 0.5 else draw.choice([[0], [1], [0, 1]])
    if kind in ("rename", "renamed") and 0 not in ranks:
        ranks = [0]  # the one that renames
    return {"kind": kind, "step": step, "ranks": ranks}


def install(fault: dict, rank: int) -> None:
    """Arm a fault in this process, if it is meant for its rank."""
    if rank not in fault["ranks"]:
        return
    now = {"step": -1}
    _follow_steps(now)
    due = lambda: now["step"] in fault.get("steps", [fault.get("step")])  # noqa: E731
    {
        "forward": _kill_in_forward,
        "backward": _kill_in_backward,
        "step": _kill_in_optimizer,
        "save": _kill_in_save,
        "hash": _kill_in_hash,
        "rename": _kill_at_rename,
        "renamed": _kill_at_rename,
        "stop": _stop_in_forward,
        "hang": _hang_in_forward,
        "raise": _raise_in_forward,
        "nan loss": _spoil_loss,
        "inf loss": _spoil_loss,
        "nan gradient": _spoil_gradient,
    }[fault["kind"]](due, fault["kind"])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_in_forward(due, _) -> None:
    """As a process that a debugger, or a driver, holds."""
    _before_forward(due, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def _hang_in_forward(due, _) -> None:
    """Alive and getting nowhere, as in a loop that never ends."""
    _before_forward(due, lambda: time.sleep(600))


def _raise_in_forward(due, _) -> None:
    """A fault of the program itself, on this rank alone."""

    def fail():
        raise ZeroDivisionError("a fault of this rank alone")

    _before_forward(due, fail)


def _before_forward(due, act) -> None:
    from slm.model.supervised import SupervisedLM

    forward = SupervisedLM.forward

    def spoilt(self, *args):
        if due() and self.training:
            act()
        return forward(self, *args)

    SupervisedLM.forward = spoilt


def _follow_steps(now: dict) -> None:
    import slm.engine.loop as loop

    take_step = loop.take_step

    def follow(run):
        now["step"] = run.state.step
        return take_step(run)

    loop.take_step = follow


def _kill_in_forward(due, _) -> None:
    from slm.model.supervised import SupervisedLM

    forward = SupervisedLM.forward

    def dying(self, *args):
        result = forward(self, *args)
        if due() and self.training:
            _die()
        return result

    SupervisedLM.forward = dying


def _kill_in_backward(due, _) -> None:
    """In the middle: when the gradient of the last layer's output is known."""
    from slm.model.supervised import SupervisedLM

    forward = SupervisedLM.forward

    def dying(self, *args):
        result = forward(self, *args)
        if due() and self.training:
            layer = dict(self.named_modules())
            next(m for n, m in layer.items() if n.endswith("layers.0.mlp")).register_full_backward_hook(
                lambda *_: _die()
            )
        return result

    SupervisedLM.forward = dying


def _kill_in_optimizer(due, _) -> None:
    """After the first of the flat tensors has been stepped."""
    import torch

    step = torch.optim.AdamW.step

    def dying(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if due():
            _die()
        return result

    torch.optim.AdamW.step = dying


def _kill_in_save(due, _) -> None:
    """With half a file written."""
    import torch

    save = torch.save

    def dying(value, path, *args, **kwargs):
        save(value, path, *args, **kwargs)
        if due() and "optim_states" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            _die()

    torch.save = dying


def _kill_in_hash(due, _) -> None:
    from slm.engine.checkpoint import Checkpoints

    share = Checkpoints._hash_share

    def dying(self, scratch):
        result = share(self, scratch)
        if due():
            _die()
        return result

    Checkpoints._hash_share = dying


def _kill_at_rename(due, kind) -> None:
    """Just before the checkpoint gets its name, or just after: `latest` does not name it yet."""
    replace = os.replace

    def dying(source, target):
        mine = due() and os.path.basename(target).startswith("step_")
        if mine and kind == "rename":
            _die()
        replace(source, target)
        if mine:
            _die()

    os.replace = dying


def _spoil_loss(due, kind) -> None:
    """An infinite loss whose gradient is finite, or one that is no number."""
    from slm.model.supervised import SupervisedLM

    forward = SupervisedLM.forward

    def spoilt(self, *args):
        result = forward(self, *args)
        return tuple(part + float(kind.split()[0]) for part in result) if due() and self.training else result

    SupervisedLM.forward = spoilt


def _spoil_gradient(due, _) -> None:
    """A loss that is finite and a gradient that is not."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    backward = DeepSpeedEngine.backward

    def spoilt(self, loss, **kwargs):
        return backward(self, loss * float("nan") if due() else loss, **kwargs)

    DeepSpeedEngine.backward = spoilt
