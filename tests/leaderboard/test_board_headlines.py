"""A trial's headlines, against numbers worked out on paper from the definitions."""

from __future__ import annotations

import math

import pytest

from leaderboard.ranking.headlines import HeadlineMeasurements, Headlines, headlines, trial_headlines
from tests.support.board_rows import ATTACKS, NONE, TEACHING, Row, measurement_row, utility_row

RTN, RELEARN = TEACHING


def know(value: float | None, attack: str = NONE, point: int = 0, probe: str = "forget_qa", **changes: object) -> Row:
    return measurement_row("t", "any", value, attack=attack, point=point, probe=probe, **changes)


def use(value: float, probe: str = "retain_qa", chance: float = 0.0) -> Row:
    return utility_row("t", "any", value, probe=probe, chance=chance)


# Two kinds of memory and two of ability. Distances between the anchors: 0.9 - 0.1 = 0.8 and 0.8 - 0.0 = 0.8.
TARGET = [know(0.9), know(0.8, probe="forget_text"), use(0.9), use(0.85, "retain_choice", 0.25)]
RETRAINED = [
    *(know(0.1), know(0.0, probe="forget_text")),
    *(know(0.1, RTN), know(0.0, RTN, probe="forget_text")),
    *(know(0.34, RELEARN), know(0.0, RELEARN, probe="forget_text")),
    *(use(0.9), use(0.85, "retain_choice", 0.25)),
]
UNLEARNED = [
    *(know(0.3), know(0.08, probe="forget_text")),  # knowledge (0.3 - 0.1) / 0.8 = 0.25 and 0.08 / 0.8 = 0.1
    *(know(0.42, RTN), know(0.08, RTN, probe="forget_text")),  # recovery 0.32 / 0.8 = 0.4 and 0.1
    *(know(0.74, RELEARN), know(0.48, RELEARN, probe="forget_text")),  # 0.4 / 0.8 = 0.5 and 0.48 / 0.8 = 0.6
    *(use(0.81), use(0.82, "retain_choice", 0.25)),  # utility 0.81 / 0.9 = 0.9 and 0.57 / 0.6 = 0.95
]


def headlines_of(
    unlearned: list[Row], target: list[Row] | None = None, retrained: list[Row] | None = None
) -> Headlines:
    return headlines(
        HeadlineMeasurements.from_rows("unlearned", unlearned),
        HeadlineMeasurements.from_rows("target", TARGET if target is None else target),
        HeadlineMeasurements.from_rows("retrained", RETRAINED if retrained is None else retrained),
        ATTACKS,
    )


def without(rows: list[Row], **where: object) -> list[Row]:
    left = [row for row in rows if any(row[name] != value for name, value in where.items())]
    assert len(left) < len(rows)
    return left


def test_the_headlines_of_a_small_world():
    found = headlines_of(UNLEARNED)
    assert found.forgetting.value == pytest.approx(1 - 0.25)
    assert {name: number.value for name, number in found.recovery.items()} == pytest.approx(
        {NONE: 0.25, RTN: 0.4, RELEARN: 0.6}
    )
    assert found.robustness.value == pytest.approx(1 - 0.6)
    assert found.utility.value == pytest.approx(0.9)
    assert found.score.value == pytest.approx(3 / (1 / 0.75 + 1 / 0.4 + 1 / 0.9))


def test_errors_over_examples_come_from_all_four_terms():
    found = headlines_of(UNLEARNED)
    # Every row has error 0.01. F: the model, 0.25 of the target and 0.75 of the retrained model, over the distance 0.8.
    assert found.forgetting.stderr == pytest.approx(0.01 * math.sqrt(1 + 0.25**2 + 0.75**2) / 0.8)
    # R: both attacked models, and 0.6 of the distance, whose own error is sqrt(2) * 0.01.
    assert found.robustness.stderr == pytest.approx(0.01 * math.sqrt(2 + 2 * 0.6**2) / 0.8)
    # Score: each term's slope is score^2 / (3 x^2).
    s = 3 / (1 / 0.75 + 1 / 0.4 + 1 / 0.9)
    u = 0.01 * math.sqrt(1 + 0.9**2) / 0.9  # chance has no error
    terms = [(0.75, found.forgetting.stderr), (0.4, found.robustness.stderr), (0.9, u)]
    assert found.score.stderr == pytest.approx(math.sqrt(sum((s * s / (3 * x * x) * e) ** 2 for x, e in terms)))


def test_the_harmonic_mean_is_over_every_attack_of_the_set():
    found = headlines_of(UNLEARNED)
    assert found.robustness_harmonic.value == pytest.approx(3 / (1 / 0.75 + 1 / 0.6 + 1 / 0.4))
    assert found.robustness_harmonic.value > found.robustness.value
    # The errors of 1 - recovery, each times hm^2 / (3 x^2), are added: all attacks share the anchors and the examples.
    hm = found.robustness_harmonic.value
    errors = [(1 - it.value, it.stderr) for it in found.recovery.values()]
    assert found.robustness_harmonic.stderr == pytest.approx(sum(hm * hm / (3 * x * x) * e for x, e in errors))


def test_one_attack_that_brings_everything_back_leaves_nothing():
    all_back = [row | {"value": 0.9} if row["attack"] == RTN else row for row in UNLEARNED]
    found = headlines_of(all_back)
    assert found.recovery[RTN].value > 1
    assert found.robustness.value == found.robustness_harmonic.value == 0


def test_a_metric_that_falls_with_knowledge_is_read_the_other_way():
    down = {"metric": "truth_ratio_geometric", "direction": "down"}
    target, retrained = [know(0.2, **down), use(0.9)], [know(0.8, **down), use(0.9)]
    taught = [know(0.8, RTN, **down), know(0.7, RELEARN, **down)]
    unlearned = [know(0.65, **down), know(0.5, RTN, **down), know(0.55, RELEARN, **down), use(0.9)]
    found = headlines_of(unlearned, target, retrained + taught)
    # (0.65 - 0.8) / (0.2 - 0.8) = 0.25, (0.5 - 0.8) / -0.6 = 0.5, (0.55 - 0.7) / -0.6 = 0.25
    assert [found.recovery[name].value for name in ATTACKS] == pytest.approx([0.25, 0.5, 0.25])
    assert found.robustness.value == pytest.approx(0.5)


def test_the_worst_point_of_a_curve_counts():
    one, other = without(UNLEARNED, attack=RELEARN), without(RETRAINED, attack=RELEARN)
    for point, value, floor in ((5, 0.3, 0.1), (10, 0.8, 0.2), (20, 0.7, 0.4)):  # 0.25, 0.75, 0.375
        one = [*one, know(value, RELEARN, point), know(0.0, RELEARN, point, "forget_text")]
        other = [*other, know(floor, RELEARN, point), know(0.0, RELEARN, point, "forget_text")]
    assert headlines_of(one, retrained=other).recovery[RELEARN].value == pytest.approx(0.75)


def test_the_area_under_a_curve_starts_before_the_attack():
    one, other = without(UNLEARNED, attack=RELEARN), without(RETRAINED, attack=RELEARN)
    for point, value, floor in ((5, 0.3, 0.1), (10, 0.8, 0.2), (20, 0.7, 0.4)):  # 0.25, 0.75, 0.375
        one = [*one, know(value, RELEARN, point), know(0.4, RELEARN, point, "forget_text")]  # and 0.5 of the text
        other = [*other, know(floor, RELEARN, point), know(0.0, RELEARN, point, "forget_text")]
    found = headlines_of(one, retrained=other)
    curve = found.curves[RELEARN]
    # Of the two kinds of memory the larger at each point; before the attack 0.25.
    assert {point: term.value for point, term in curve.items()} == pytest.approx({0: 0.25, 5: 0.5, 10: 0.75, 20: 0.5})
    assert found.areas[RELEARN].value == pytest.approx((0.375 * 5 + 0.625 * 5 + 0.625 * 10) / 20)
    weights = {0: 2.5 / 20, 5: 5 / 20, 10: 7.5 / 20, 20: 5 / 20}
    assert found.areas[RELEARN].stderr == pytest.approx(sum(w * curve[point].stderr for point, w in weights.items()))
    assert found.areas.keys() == found.curves.keys() == {RELEARN}


def test_a_point_that_was_not_measured_leaves_no_area_and_the_others_stand():
    one, other = without(UNLEARNED, attack=RELEARN), without(RETRAINED, attack=RELEARN)
    for point in (5, 10):
        other = [*other, know(0.1, RELEARN, point), know(0.0, RELEARN, point, "forget_text")]
    found = headlines_of([*one, know(0.5, RELEARN, 5), know(0.1, RELEARN, 5, "forget_text")], retrained=other)
    assert found.curves[RELEARN][5].value == pytest.approx(0.5)
    assert found.areas[RELEARN].reason == found.curves[RELEARN][10].reason == found.robustness.reason
    assert found.robustness.reason.endswith(f"under {RELEARN} at 10")


def broken(rows: list[Row], attack: str, why: str | None = "OutOfMemoryError: no memory") -> list[Row]:
    null = {"value": None, "stderr": None, "status": "failed", "reason": why}
    return [row | null if row["attack"] == attack else row for row in rows]


def test_an_attack_that_failed_says_so_and_leaves_the_rest():
    found = headlines_of(broken(UNLEARNED, RELEARN))
    reason = f"{RELEARN} failed: OutOfMemoryError: no memory"
    for number in (found.recovery[RELEARN], found.robustness, found.robustness_harmonic, found.score):
        assert (number.value, number.reason) == (None, reason)
    assert found.failed == {RELEARN: "failed: OutOfMemoryError: no memory"}
    assert found.forgetting.value == pytest.approx(0.75) and found.utility.value == pytest.approx(0.9)
    assert found.recovery[RTN].value == pytest.approx(0.4)


def test_an_attack_that_failed_on_the_retrained_model_has_no_zero():
    found = headlines_of(UNLEARNED, retrained=broken(RETRAINED, RTN, None))
    assert found.robustness.reason == f"{RTN} failed on the retrained model: no reason was given"
    assert found.recovery[RELEARN].value == pytest.approx(0.6)


def test_a_curve_that_failed_on_its_way_has_no_area():
    one, other = without(UNLEARNED, attack=RELEARN), without(RETRAINED, attack=RELEARN)
    for point in (5, 10):
        one = [*one, know(0.5, RELEARN, point), know(0.1, RELEARN, point, "forget_text")]
        other = [*other, know(0.1, RELEARN, point), know(0.0, RELEARN, point, "forget_text")]
    assert headlines_of(one, retrained=other).areas[RELEARN].value == pytest.approx((0.375 * 5 + 0.5 * 5) / 10)
    null = {"value": None, "status": "failed", "reason": "it stopped"}
    found = headlines_of([row | null if row["point"] == 10 else row for row in one], retrained=other)
    assert not found.areas and not found.curves
    assert found.recovery[RELEARN].reason == f"{RELEARN} failed: it stopped"


def test_every_reason_for_no_robustness_is_told():
    rows = broken([*UNLEARNED, *(row | {"attack": "nf4"} for row in UNLEARNED if row["attack"] == RTN)], RELEARN)
    found = headlines(
        HeadlineMeasurements.from_rows("unlearned", rows),
        HeadlineMeasurements.from_rows("target", TARGET),
        HeadlineMeasurements.from_rows("retrained", RETRAINED),
        (*ATTACKS, "nf4", "prune"),
    )
    assert found.robustness.reason == (
        f"not measured under prune; {RELEARN} failed: OutOfMemoryError: no memory; "
        "forget_qa probability was not measured on the retrained model under nf4 at 0"
    )


def test_a_curve_cut_off_before_its_end_is_not_a_curve():
    longer = [*RETRAINED, know(0.5, RELEARN, 40), know(0.5, RELEARN, 40, "forget_text")]
    found = headlines_of(UNLEARNED, retrained=longer)
    assert (
        found.robustness.reason
        == f"forget_qa probability was not measured on the unlearned model under {RELEARN} at 40"
    )


def test_robustness_is_never_above_forgetting():
    helped = [row | {"value": 0.0} if row["attack"] != NONE else row for row in UNLEARNED]
    found = headlines_of(helped)
    assert found.robustness.value == found.forgetting.value == pytest.approx(0.75)


def test_shares_are_cut_at_zero_and_one():
    nothing_left = [row | {"value": 0.0} if row["headline"] == "knowledge" else row for row in UNLEARNED]
    assert headlines_of(nothing_left).forgetting.value == 1.0
    better = [row | {"value": 0.99} if row["headline"] == "utility" else row for row in UNLEARNED]
    assert headlines_of(better).utility.value == 1.0


def test_an_attack_that_was_not_run_makes_robustness_null_and_is_named():
    found = headlines_of(without(without(UNLEARNED, attack=RTN), attack=RELEARN))
    assert found.robustness.value is None and found.score.value is None
    assert found.robustness.reason == f"not measured under {RTN}, {RELEARN}"
    assert found.forgetting.value == pytest.approx(0.75) and found.utility.value == pytest.approx(0.9)


@pytest.mark.parametrize("attack", TEACHING)
def test_a_probe_that_was_not_asked_under_an_attack_is_not_left_out_of_the_maximum(attack: str):
    found = headlines_of(without(UNLEARNED, attack=attack, probe="forget_text"))
    assert found.robustness.value is None
    assert found.robustness.reason == (
        f"forget_text probability was not measured on the unlearned model under {attack} at 0"
    )


def test_an_attack_that_was_not_run_on_the_retrained_model_has_no_zero():
    found = headlines_of(UNLEARNED, retrained=without(RETRAINED, attack=RELEARN))
    assert (
        found.robustness.reason == f"forget_qa probability was not measured on the retrained model under {RELEARN} at 0"
    )


def test_a_headline_that_only_the_anchors_have_makes_the_trial_null():
    found = headlines_of(without(UNLEARNED, attack=NONE, probe="forget_text"))
    assert found.forgetting.reason == "forget_text probability was not measured on the unlearned model"
    found = headlines_of(without(UNLEARNED, probe="retain_choice"))
    assert found.utility.reason == "retain_choice probability was not measured on the unlearned model"


def test_without_a_retrained_model_there_is_utility_and_nothing_else():
    found = headlines_of(UNLEARNED, retrained=[])
    assert "no retrained model" in found.forgetting.reason and "no retrained model" in found.robustness.reason
    assert found.score.value is None and found.utility.value == pytest.approx(0.9)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_number_that_could_not_be_computed_stays_null_with_its_reason(value: float | None):
    null = [
        row | {"value": value, "reason": "the text was empty"} if row["attack"] == RTN else row for row in UNLEARNED
    ]
    found = headlines_of(null)
    assert found.robustness.value is None and found.robustness.reason == "the text was empty"
    assert found.recovery[RELEARN].value == pytest.approx(0.6)


def test_anchors_that_know_the_same_are_no_scale():
    found = headlines_of(
        UNLEARNED, target=[row | {"value": 0.15} if row["probe"] == "forget_qa" else row for row in TARGET]
    )
    assert found.forgetting.value is None and "anchors are too close" in found.forgetting.reason


def test_nothing_measured_is_null_everywhere():
    found = headlines_of([], [], [])
    for number in (found.forgetting, found.robustness, found.utility, found.score):
        assert number.value is None and number.reason


def test_where_chance_is_the_zero_teaching_counts_as_relapse():
    """Without a retrained model the zero is the metric's chance level, also under an attack that teaches."""
    target = [know(0.85, chance=0.25), use(0.9)]
    unlearned = [know(0.4, chance=0.25), know(0.55, RTN, chance=0.25), know(0.7, RELEARN, chance=0.25), use(0.81)]
    answers = HeadlineMeasurements.from_rows("target", target)
    nobody = HeadlineMeasurements.from_rows("retrained", [])
    found = trial_headlines(
        HeadlineMeasurements.from_rows("unlearned", unlearned), answers, nobody, "digest:chance", ATTACKS
    )
    # Shares of 0.85 - 0.25 = 0.6: 0.15, 0.3 and 0.45 above chance.
    assert {name: number.value for name, number in found.recovery.items()} == pytest.approx(
        {NONE: 0.25, RTN: 0.5, RELEARN: 0.75}
    )
    assert found.forgetting.value == pytest.approx(0.75)
    assert found.robustness.value == pytest.approx(0.25)


def test_a_retrained_model_that_was_not_measured_is_not_taken_for_chance():
    answers = HeadlineMeasurements.from_rows("target", TARGET)
    nobody = HeadlineMeasurements.from_rows("retrained", [])
    unlearned = HeadlineMeasurements.from_rows("unlearned", UNLEARNED)
    for ids in ("digest:other", None):
        found = trial_headlines(unlearned, answers, nobody, ids, ATTACKS)
        assert found == headlines(unlearned, answers, nobody, ATTACKS)
    assert headlines_of(UNLEARNED, retrained=[]).forgetting.value is None
