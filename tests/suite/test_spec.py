"""Specs: what is refused and with which message, what an id depends on, and how a space becomes trials."""

from __future__ import annotations

import json

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.attacks import ATTACKS, attack
from suite.config.errors import MissingError, SpecError
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.smoothing import SMOOTHINGS
from suite.spec.search_space import drawn_trial, grid_points, known_keys, plan, possible_keys, suggest
from suite.spec.trial import trial
from suite.spec.yaml_file import load_file, merged, nested, parse_value, split_override
from tasks import TASKS
from tasks.task import attack_name
from tests.support.small import SMALL


def with_(**changes: object) -> dict:
    return merged(SMALL, changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepz": 3}, ["stepz", "unknown key", "Did you mean steps?", "optimizer"]),
        (
            {"optimizer": {"name": "hybrid", "zo": {"sample": 2}}},
            ["optimizer.zo.sample", "optimizer.zo.samples", "radius"],
        ),
        ({"optimizer": {"zo": {"samples": 2}}}, ["optimizer.zo", "hybrid", "r_adazo", "not of adam"]),
        ({"optimizer": {"zo_ratio": 0.5}}, ["optimizer.zo_ratio", "hybrid"]),
        ({"optimizer": {"name": "adm"}}, ["optimizer.name", "Did you mean adam?", "sophia"]),
        ({"optimizer": {"name": "hybrid", "zo_ratio": 1.5}}, ["optimizer.zo_ratio", "1", "1.5"]),
        ({"optimizer": {"name": "hybrid", "zo_ratio": -0.1}}, ["optimizer.zo_ratio", "0"]),
        ({"optimizer": {"name": "hybrid", "zo_ratio": 0.01}}, ["optimizer.zo_ratio", "zeroth-order steps"]),
        ({"optimizer": {"lr": "fast"}}, ["optimizer.lr", "number", "fast"]),
        ({"optimizer": {"lr": 0.0}}, ["optimizer.lr", "greater than 0"]),
        ({"optimizer": {"lr": float("nan")}}, ["not finite"]),
        ({"objective": "npp"}, ["objective.name", "Did you mean npo?"]),
        ({"objective": {"beta": -1.0}}, ["objective.beta"]),
        ({"steps": 0}, ["steps", "1"]),
        ({"steps": 1.5}, ["steps", "whole number"]),
        ({"seed": True}, ["seed", "whole number"]),
        ({"task": "pockt"}, ["task", "Did you mean pocket?"]),
        ({"model": {"dtype": "fp8"}}, ["model.dtype", "bfloat16"]),
        ({"model": {"tiny": {"hidden": 33}}}, ["model.tiny", "multiple"]),
        ({"until": "forgotten"}, ["until", "knowledge<=0.2"]),
        ({"until": "knowledge<=0.2"}, ["until", "checkpoints.every"]),
        ({"checkpoints": {"every": 9}}, ["checkpoints.every", "steps=4"]),
    ],
)  # fmt: skip
def test_bad_input_names_the_key_and_what_is_allowed(changes, words):
    with pytest.raises(SpecError) as refusal:
        trial(with_(**changes))
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("section", ["measure", "runtime", "search"])
def test_unknown_keys_beside_the_trial_are_refused_too(section):
    with pytest.raises(SpecError, match=f"{section}.nonsense: unknown key"):
        plan(with_(**{section: {"nonsense": 1}}))


def test_the_id_is_a_function_of_the_meaning():
    one = trial(SMALL)
    assert one.id == trial(json.loads(json.dumps(SMALL))).id
    assert one.id == trial(with_(objective="npo")).id, "a bare name is the section with its defaults"
    assert one.id == trial(with_(smoothing={"name": "none"}, batch_size=4)).id, "defaults are left out"
    assert one.id == trial(with_(anchors={"lr": 0.003})).id
    assert one.id != trial(with_(seed=1)).id
    assert one.entry == trial(with_(seed=1)).entry
    assert one.entry != trial(with_(steps=5)).entry


def test_the_id_of_a_known_trial_never_changes():
    """Old results must be found again: this hash may only change with a new version of the spec."""
    known = {
        "task": "pocket", "anchors": {"epochs": 8, "lr": 3e-3}, "objective": {"name": "npo"},
        "optimizer": {"name": "hybrid", "lr": 1e-3, "zo": {"samples": 2}}, "steps": 40,
    }  # fmt: skip
    assert trial(known).id == "26a5b415533ab767988454c0b64c119c2a978b54217458cb188c6fa0b8038371"


def test_hybrid_at_its_ends_is_the_pure_optimizer():
    def hybrid(**more: object):
        return trial(with_(optimizer={"name": "hybrid", "lr": 1e-3, **more}))

    assert hybrid(zo_ratio=0).id == trial(SMALL).id
    pure = trial({**SMALL, "optimizer": {"name": "r_adazo", "lr": 0.1, "zo": {"samples": 3}}})
    assert hybrid(zo_ratio=1, zo_lr=0.1, zo={"samples": 3}).id == pure.id


@pytest.mark.parametrize("axis", [OBJECTIVES, OPTIMIZERS, SMOOTHINGS], ids=lambda axis: axis.noun)
def test_every_entry_of_every_axis_makes_a_trial_that_reads_back_as_itself(axis):
    for name in axis:
        section = {"name": name} | ({"lr": 0.01} if axis is OPTIMIZERS else {"layer": 0} if name == "rmu" else {})
        spec = trial({**SMALL, axis.noun: section})
        assert trial(spec.canonical).id == spec.id
        assert axis.summary(name).endswith((".", ":")) or len(axis.summary(name)) > 20


def test_official_attacks_stand_in_rows_under_their_own_names():
    """The board identifies attacks by name alone, and must not need the suite to derive the names."""
    for entry in TASKS.values():
        for attack_set in entry.attack_sets.values():
            for attacks in attack_set.values():
                assert attacks[0] == {"name": "none"}
                for one in attacks:
                    assert attack(one).name == attack_name(one)


def test_unknown_attacks_and_settings_are_refused():
    with pytest.raises(SpecError, match="Did you mean relearn"):
        attack({"name": "relern"})
    with pytest.raises(SpecError, match=r"attacks\.rtn\.bits"):
        attack({"name": "rtn", "bits": 1})
    assert set(ATTACKS) >= {"none", "rtn", "relearn"}


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("xyz"), st.integers())))
def test_merging_a_mapping_over_itself_changes_nothing(data):
    assert merged(data, data) == data
    assert merged(data, {}) == data
    assert merged({}, data) == data


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_values_of_the_command_line_are_read_as_json_would_be(value):
    assert parse_value(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("3E5", 3e5), ("-2.5e+1", -25.0), ("adam", "adam"), ("[1, 2]", [1, 2])]
)
def test_exponents_are_numbers(text, value):
    assert split_override(f"a.b={text}") == ("a.b", value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=1", ".a=1"])
def test_overrides_that_are_none(text):
    with pytest.raises(SpecError, match="key=value"):
        split_override(text)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, content, words in [
        ("a.yaml", None, "No such file"),
        ("b.yaml", "a: [", "not YAML"),
        ("c.yaml", "- 1", "mapping"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(MissingError if content is None else SpecError, match=words) as refusal:
            load_file(tmp_path / name)
        assert name in str(refusal.value)


def test_a_grid_crosses_its_axes_and_drops_those_that_do_not_exist():
    made = plan(
        with_(search={"grid": {"optimizer.name": ["adam", "hybrid"], "optimizer.zo.samples": [1, 2], "seed": [0, 1]}})
    )
    found = [
        (s.optimizer.name, getattr(getattr(s.optimizer, "zo", None), "samples", None), s.seed) for s in made.trials()
    ]
    assert found == [
        ("adam", None, 0), ("adam", None, 1),
        ("hybrid", 1, 0), ("hybrid", 1, 1), ("hybrid", 2, 0), ("hybrid", 2, 1),
    ]  # fmt: skip


def test_cases_are_crossed_with_the_grid():
    cases = [{"optimizer": {"name": "adam", "lr": 1e-3}}, {"optimizer": {"name": "sgd", "lr": 0.1}, "steps": 9}]
    made = plan(with_(search={"cases": cases, "grid": {"seed": [0, 1]}}))
    assert [(s.optimizer.name, s.steps, s.seed) for s in made.trials()] == [
        ("adam", 4, 0), ("adam", 4, 1), ("sgd", 9, 0), ("sgd", 9, 1),
    ]  # fmt: skip


def test_an_axis_that_no_trial_has_is_refused():
    with pytest.raises(SpecError, match=r"optimizer\.zo\.samples: no trial has such a setting"):
        plan(with_(search={"grid": {"optimizer.zo.samples": [1, 2]}}))
    with pytest.raises(SpecError, match=r"sed.*Did you mean seed"):
        plan(with_(search={"grid": {"sed": [1, 2]}}))
    with pytest.raises(SpecError, match=r"search\.space: optimizer\.zo\.sample: unknown key"):
        plan(with_(search={"space": {"optimizer.zo.sample": [1, 2]}, "trials": 3}))


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": {"seed": [0]}}, "number of trials"),
        ({"trials": 3}, "there is none"),
        ({"space": {"seed": [0]}, "grid": {"seed": [0]}, "trials": 2}, "not both"),
        ({"space": {"optimizer.lr": {"low": 1.0, "high": 0.1}}, "trials": 2}, "must be under"),
        ({"space": {"optimizer.lr": {"low": 0, "high": 0.1, "log": True}}, "trials": 2}, "above 0"),
        ({"space": {"optimizer.lr": 3}, "trials": 2}, "a list of values or a range"),
    ],
)
def test_searches_that_make_no_sense_are_refused(search, words):
    with pytest.raises(SpecError, match=words):
        plan(with_(search=search))


SPACE = {
    "optimizer.name": ["adam", "r_adazo", "hybrid"],
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "optimizer.zo.samples": [1, 2, 4],
    "optimizer.zo_ratio": {"low": 0.25, "high": 0.75},
}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_search_draws_only_what_exists(seed):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    draw = study.ask()
    spec = trial(suggest(SMALL, SPACE, draw))
    has_zo, is_hybrid = spec.optimizer.name != "adam", spec.optimizer.name == "hybrid"
    assert ("optimizer.zo.samples" in draw.params) is has_zo
    assert ("optimizer.zo_ratio" in draw.params) is is_hybrid
    assert spec.optimizer.lr == draw.params["optimizer.lr"]


def test_known_keys_follow_the_names():
    adam = known_keys(SMALL)
    hybrid = known_keys(with_(optimizer={"name": "hybrid"}))
    assert "optimizer.zo.samples" not in adam
    assert "optimizer.zo.samples" in hybrid
    assert {"optimizer.name", "steps", "model.tiny.hidden", "objective.beta"} <= adam & hybrid
    assert adam | hybrid <= possible_keys()


@settings(max_examples=50)
@given(st.permutations(["optimizer.name", "seed", "optimizer.zo.samples"]))
def test_the_order_of_the_axes_does_not_change_which_trials_there_are(order):
    values = {"optimizer.name": ["adam", "hybrid"], "seed": [0, 1], "optimizer.zo.samples": [1, 2]}
    points = grid_points(SMALL, {key: values[key] for key in order}, set())
    assert len({trial(point).id for point in points}) == 6


def test_nested_and_merged_build_what_an_override_says():
    assert merged({"a": {"b": 1, "c": 2}}, nested("a.b", 3)) == {"a": {"b": 3, "c": 2}}
    assert merged({"objective": "npo"}, nested("objective.beta", 0.5)) == {"objective": {"name": "npo", "beta": 0.5}}


def test_a_range_is_drawn_as_the_setting_is():
    """Between whole numbers a fraction is drawn where the setting may be one."""
    space = {
        "optimizer.zo_ratio": {"low": 0, "high": 1},
        "objective.retain_weight": {"low": 1.0, "high": 10.0, "log": True},
        "optimizer.zo.samples": {"low": 1, "high": 8},
        "steps": {"low": 10.0, "high": 20.0},
    }
    base = with_(optimizer={"name": "hybrid", "lr": 1e-3})
    parsed = plan({**base, "search": {"space": space, "trials": 3}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(parsed.base, parsed.search.space, study.ask()) for _ in range(20)]
    assert any(not float(one["optimizer"]["zo_ratio"]).is_integer() for one in drawn)
    assert any(not float(one["objective"]["retain_weight"]).is_integer() for one in drawn)
    assert {type(one["optimizer"]["zo"]["samples"]) for one in drawn} == {int}
    assert {type(one["steps"]) for one in drawn} == {int}
    with pytest.raises(SpecError, match=r"search\.space\.steps: is a whole number, and so are its ends: 1\.5 to 9"):
        plan({**base, "search": {"space": {"steps": {"low": 1.5, "high": 9}}, "trials": 3}})


def test_a_drawn_share_of_steps_that_rounds_to_all_is_the_pure_optimizer():
    data = with_(optimizer={"name": "hybrid", "lr": 1e-3, "zo_ratio": 0.95}, steps=4)
    with pytest.raises(SpecError, match="nothing alternates"):
        trial(data)
    pure = trial(merged(data, {"optimizer": {"zo_ratio": 1.0}}))
    assert drawn_trial(data).id == pure.id
    assert drawn_trial(merged(data, {"optimizer": {"zo_ratio": 0.5}})).optimizer.zo_ratio == 0.5
