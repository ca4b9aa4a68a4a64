"""The most that an attack can bring back: what it leaves of the difference between the anchors.

(m_target,a - m_retrained,a) / (m_target - m_retrained) is the excess recovery of the target itself under attack a. An
attack with a low ceiling cannot push R below 1 - ceiling, whatever the unlearning was like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaderboard.ranking.headlines import NONE, AtChance, HeadlineMeasurements, at_chance
from tasks.scoring.headline import excess_recovery

WEAK = 0.5
"""Below this ceiling an attack says little: new official sets leave it out."""


def ceilings(
    target: HeadlineMeasurements, retrained: HeadlineMeasurements, anchor_ids: str | None, attacks: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By attack and probe, the largest ceiling over the points of the attack's curve.

    Left out are attacks that an anchor was not measured under, and probes on which the anchors are too close.
    """
    zero = AtChance.on_metrics_of(target) if at_chance(anchor_ids) else retrained
    found: dict[str, dict[str, float]] = {}
    for attack in attacks:
        if attack == NONE:
            continue
        for metric in sorted(target.metrics("knowledge")):
            shares = [
                excess_recovery(
                    target.under(attack, point, metric),
                    zero.under(attack, point, metric),
                    target.unattacked(metric),
                    zero.unattacked(metric),
                ).value
                for point in sorted(target.points(attack))
            ]
            if known := [share for share in shares if share is not None]:
                found.setdefault(attack, {})[metric.probe] = max(known)
    return found


def ceiling_text(by_probe: Mapping[str, float]) -> str:
    """`ceiling 0.88 (forget_choice 0.88, forget_qa 0.55)`, for under a table."""
    most = max(by_probe.values())
    parts = ", ".join(f"{probe} {value:.2f}" for probe, value in sorted(by_probe.items()))
    weak = f"; weak: it cannot push R below {1 - most:.2f}" if most < WEAK else ""
    return f"ceiling {most:.2f}{f' ({parts})' if len(by_probe) > 1 else ''}{weak}"
