"""The run in a sentence or two, with the figures; says what was measured, whatever it was."""

from __future__ import annotations

from slm.report.results import Chain, Results, task_name

FORGOTTEN = 0.15
"""A loss of less than this share is called kept."""


def percent(value: float | None) -> str:
    """`0.934` as `93 %`; a dash when it was not measured."""
    return "–" if value is None else f"{value:.0%}".replace("%", " %")


def sentences(results: Results) -> list[str]:
    """What happened to the text LLM's knowledge without and with replay, and what was learned."""
    text = results.task_of("llm")
    if text is None or not results.chains:
        return ["This run compared no chain of stages on a text task."]
    base = results.value(results.chains[0].labels[0], text)
    found = [f"The text LLM answers {percent(base)} of its test questions."]
    for chain in results.chains[:2]:
        found.append(_of_chain(results, chain, text, base))
    return found


def _of_chain(results: Results, chain: Chain, text: str, base: float | None) -> str:
    how = (
        f"With {percent(chain.replay)} replay of each earlier stage"
        if chain.replay
        else "Trained on speech without replay"
    )
    end = results.value(chain.labels[-1], text)
    spoken = results.task_of("sqa")
    heard = results.value(chain.labels[-1], spoken) if spoken else None
    stages = " → ".join(stage.upper() for stage in chain.stages[1:])
    if end is None or base is None:
        return f"{how} ({stages}), {task_name(text)} was not measured."
    if not base:
        return f"{how} ({stages}) it answers {percent(end)}."
    words = "keeps" if end >= base * (1 - FORGOTTEN) else ("keeps only" if end > 0.5 * base else "is left with")
    answers = f", and answers {percent(heard)} of the questions it hears" if heard is not None else ""
    return f"{how} ({stages}) it {words} {percent(end)}{answers}."


def headline(results: Results) -> str:
    """The title sentence."""
    naive, replayed, text = results.naive, results.replayed, results.task_of("llm")
    if not naive or not replayed or not text:
        return results.title
    base = results.value(naive.labels[0], text)
    without, with_replay = results.value(naive.labels[-1], text), results.value(replayed.labels[-1], text)
    if not base or without is None or with_replay is None:
        return results.title
    lost = without < base * (1 - FORGOTTEN)
    kept = with_replay >= base * (1 - FORGOTTEN)
    loss, rest = percent(1 - without / base), percent(with_replay / base)
    if lost and kept:
        return f"Teaching it to speak cost {loss} of its knowledge. Replay kept {rest}."
    if lost and with_replay > without:
        return f"Teaching it to speak cost {loss} of its knowledge; with replay {percent(1 - with_replay / base)}."
    if lost:
        return f"Teaching it to speak cost {loss} of its knowledge, and replay did not keep it."
    return f"Teaching it to speak cost little: it keeps {percent(without / base)} without replay, {rest} with it."
