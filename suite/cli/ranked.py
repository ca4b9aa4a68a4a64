"""A ranking as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from leaderboard.board.visible import shortened, visible
from suite.cli.common import console

if TYPE_CHECKING:
    from leaderboard.ranking.entry import Numbers
    from leaderboard.ranking.rank import Number, Ranking

LEGEND = (
    "Below a number its 95 % interval over questions and, where there are several, over runs and seeds of attacks and "
    "anchors. F forgetting, R robustness to the worst attack, R hm the harmonic mean over all attacks, U utility, "
    "score the harmonic mean of F, R and U; "
)
LONGEST_NOTE = 1000
"""Characters of a note, which may be the message of an error."""
WORST = (
    " Worst attack: share of the knowledge that it brings back, and how often it is the worst on other questions; any: "
    "what is brought back of each question by whichever attack brings back most of it."
)
ENGINES = " Engines are mixed: each trial and its anchors were measured by one. No interval covers how engines differ."


def print_ranking(ranking: Ranking) -> None:
    """The entries in order, each number with its 95 % interval, and what follows from them in words."""
    from leaderboard.ranking.ceilings import ceiling_text
    from leaderboard.ranking.null_entries import null_text
    from leaderboard.ranking.retention_matching import CURVE, SHARE
    from leaderboard.ranking.searches import search_text
    from leaderboard.ranking.verdict import MOST_NAMED, RULE

    matched = f", utility matched to {ranking.matched_floor:g}" if ranking.matched and ranking.matched_floor else ""
    mixes = ranking.mixes_engines
    title = f"{ranking.task} ({ranking.split}), attacks {ranking.attack_set}{matched}{', engines mixed' * mixes}"
    view = Table(
        title=Text(visible(title), style="table.title"),
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    # Beside the headlines: on a matched board the mixing weight and the barrier, otherwise the matched score.
    matched_score = not ranking.matched and ranking.matched_floor is not None
    view.add_column("#", justify="right")
    view.add_column("entry", overflow="fold")
    view.add_column("grade")
    if mixes:
        view.add_column("engine", overflow="fold")
    barriers = ranking.matched and CURVE in ranking.matched_kinds
    extra_columns = ["weights"] * ranking.matched + ["barrier ↓"] * barriers + ["matched ↑"] * matched_score
    for name in ("score ↑", "F ↑", "R ↑", "R hm ↑", "U ↑", *extra_columns):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("worst attack ↓", overflow="fold")
    view.add_column("values", justify="right")
    view.add_column("gradients", justify="right")
    view.add_column("s", justify="right")
    for entry in ranking.entries:
        numbers = ranking.shown(entry)
        there = entry.matched
        extra = [there.mixing_weight if there else None] * ranking.matched
        extra += [there.barrier if there else None] * barriers
        extra += [there.score if there else None] * matched_score
        view.add_row(
            str(entry.rank or "–"),
            _text(entry.label),
            _text(entry.grade or "–"),
            *[Text("\n".join(map(shortened, entry.engines)) or "–")] * mixes,
            _number(numbers.score if numbers else None),
            _number(numbers.forgetting if numbers else None),
            _number(numbers.robustness if numbers else None, dim=entry.did_not_forget),
            _number(numbers.robustness_harmonic if numbers else None, dim=entry.did_not_forget),
            _number(numbers.utility if numbers else None),
            *map(_number, extra),
            _worst(numbers, ranking),
            _count(entry.cost.value_calls),
            _count(entry.cost.gradient_calls),
            _count(entry.cost.unlearn_seconds),
            style="dim" if entry.below_floor or entry.reason else "",
        )
    out = console()
    out.print(view)
    out.print(Text(f"\n{LEGEND}{_order(ranking)}.{WORST}{ENGINES * mixes}", style="dim"))
    for sentence in ranking.verdict.sentences():
        out.print(Text(visible(sentence)))
    if ranking.verdict.ranked or ranking.verdict.provisional:
        out.print(Text(RULE, style="dim"))
    for entry in ranking.entries:
        numbers = ranking.shown(entry)
        notes = [entry.reason] if entry.reason else []
        failed = numbers.failed.items() if numbers else ()
        if barriers and entry.matched and SHARE in entry.matched.kinds:
            some = "some runs " * (CURVE in entry.matched.kinds)
            notes.append(f"{some}matched on dev, with one share of the weights")
        notes += [f"{attack} {why}" for attack, why in failed if f"{attack} failed" not in (entry.reason or "")]
        for note in [*notes, *entry.notes]:
            out.print(Text(f"{shortened(entry.label)}: {shortened(note, LONGEST_NOTE)}", style="dim"))
    for attack, label in ranking.attack_labels.items():
        ceiling = ranking.ceilings.get(attack)
        words = [attack] if attack != label else []
        words += [ceiling_text(ceiling)] if ceiling else []
        if words:
            out.print(Text(visible(f"{label}: {', '.join(words)}"), style="dim"))
    if ranking.null_entries:
        told = "; ".join(null_text(one) for one in ranking.null_entries)
        out.print(Text(visible(f"null entries (score, F, R, U): {told}"), style="dim"))
    for search in ranking.searches:
        of = [shortened(entry.label) for entry in ranking.entries if entry.entry in search.entries]
        more = f" and {len(of) - MOST_NAMED} more" if len(of) > MOST_NAMED else ""
        out.print(Text(visible(f"{search_text(search)} ({', '.join(of[:MOST_NAMED])}{more})"), style="dim"))
    if undeclared := len(ranking.entries) - len({name for search in ranking.searches for name in search.entries}):
        out.print(Text(f"no search declared: {undeclared} entr{'y' if undeclared == 1 else 'ies'}", style="dim"))
    own = ranking.group
    for group in ranking.left_out:
        if own is not None and not own.differs_only_in_engines(group):
            engines = shortened(", ".join(group.engines)) or "no engine"
            other = " and ".join(own.differences(group))
            trials = f"{group.trials} trial{'s' * (group.trials != 1)}"
            out.print(Text(f"left out: {trials} with other {other} ({engines})", style="dim"))
    if ranking.left_out_by_engine:
        out.print(Text(_left_out(ranking.left_out_by_engine), style="dim"), soft_wrap=True)


def _text(text: str) -> Text:
    """Foreign text for a cell: neither markup nor a control character has an effect."""
    return Text(shortened(text))


def _left_out(trials: Mapping[str, int]) -> str:
    """One line about trials that other engines measured, with the options that rank them."""
    counts = ", ".join(f"{count} trial{'s' * (count != 1)} of {shortened(engine)}" for engine, count in trials.items())
    hint = "regrade board show --mix-engines ranks all in one table, --engine NAME those of one engine"
    return f"left out for their engine: {counts}. {hint}"


def _order(ranking: Ranking) -> str:
    """How the entries are ordered, for the legend."""
    from leaderboard.ranking.retention_matching import CURVE

    if not ranking.matched:
        order = f"first those with U ≥ {ranking.floor:g}"
        if ranking.matched_floor is not None:
            order += f". Matched: the score once the weights are mixed back to U = {ranking.matched_floor:g}"
        return order
    if ranking.matched_floor is None:
        return "no weights were mixed back to one utility"
    until = f"U = {ranking.matched_floor:g} on {ranking.matched_on}"
    order = f"all of weights mixed back toward the target to {until}, and how much is left"
    if CURVE not in ranking.matched_kinds:
        return order
    return f"{order}. Barrier: how far U falls below the straight line between both ends on the way to the target"


def _number(number: Number | None, dim: bool = False) -> Text:
    from leaderboard.ranking.number import rounded

    if number is None or number.value is None:
        return Text("–")
    text = rounded(number.value)
    if number.interval:
        text += "\n" + "..".join(map(rounded, number.interval))
    return Text(text, style="dim" if dim else "")


def _worst(numbers: Numbers | None, ranking: Ranking) -> Text:
    from leaderboard.ranking.number import rounded

    if numbers is None or numbers.worst_attack is None:
        return Text("–")
    attack = numbers.worst_attack
    recovery = numbers.recovery[attack].value
    often = numbers.worst_share.get(attack)
    share = "" if often is None else f" {often:.0%}"
    per_item = "" if numbers.per_item.value is None else f"\nany {rounded(numbers.per_item.value)}"
    worst = f"{'–' if recovery is None else rounded(recovery)} {ranking.attack_labels.get(attack, attack)}{share}"
    return Text(f"{shortened(worst)}{per_item}")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
