"""What every attack must do, on a tiny model that has been taught the task `pocket`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from suite.attacks import ATTACKS, Attack, AttackContext, Subject
from suite.config.settings import parse
from suite.engines import Job, TransformersEngine
from suite.models.checkpoints import TensorCheckpoint
from suite.testing.base import AxisConformance, Case
from suite.testing.scene import scene_of, small_anchors, spoilt
from tasks.scoring import score
from tasks.task import Split

Scene = tuple[Subject, AttackContext]


class AttackConformance(AxisConformance):
    """Tests of an attack: `entry = Mine`."""

    base = Attack

    @pytest.fixture(scope="class")
    @classmethod
    def scene(cls, tmp_path_factory: pytest.TempPathFactory) -> Scene:
        """A target with a few test questions of each probe, and what an attacker has."""
        return scene_of(small_anchors(tmp_path_factory.mktemp("scene")), items=4)

    def test_it_declares_access_and_source(self, case: Case) -> None:
        access, nothing = getattr(case.kind, "access", None), ATTACKS["none"].access
        assert isinstance(access, type(nothing)), (
            f"{case.what}: set the class attribute `access` to one of `suite.attacks.base.Access`"
        )
        assert case.kind.source or access is nothing, f"{case.what}: set the class attribute `source`"

    def test_its_name_tells_its_settings(self, case: Case) -> None:
        attack = made(case)
        again = case.kind(parse(case.kind.Settings, attack.settings.changed()))
        assert again.name == attack.name and attack.name.startswith(case.name)

    def test_it_goes_with_the_task_that_it_is_tested_on(self, case: Case, scene: Scene) -> None:
        made(case).check(scene[1].task, Split.TEST)

    def test_it_yields_the_points_that_it_announces(self, case: Case, scene: Scene) -> None:
        attack, (subject, context) = made(case), scene
        found = dict(attack.apply(subject, context))
        assert tuple(found) == attack.points, (
            f"{case.what}.points announces {attack.points}, and `apply` yields {tuple(found)}"
        )
        for point, attacked in found.items():
            ids = [[item.id for item in probe.items] for probe in attacked.probes]
            assert ids == [[item.id for item in probe.items] for probe in subject.probes], (
                f"{case.what}: at point {point} there are other items. Every item keeps its id and its place"
            )

    def test_the_subject_itself_is_never_touched(self, case: Case, scene: Scene) -> None:
        subject, context = scene
        before = {name: weight.clone() for name, weight in subject.checkpoint.state().items()}
        state, probes = subject.checkpoint.state(), subject.probes
        held = Subject(TensorCheckpoint(state, subject.checkpoint.architecture), probes)
        for _, attacked in made(case).apply(held, context):
            attacked.checkpoint.state()
        for name, weight in state.items():
            assert torch.equal(weight, before[name]), (
                f"{case.what} changes {name} of its subject in place. Return new tensors, and yield a new subject"
            )
        assert held.probes == probes

    def test_the_outcome_follows_from_the_seeds_alone(self, case: Case, scene: Scene) -> None:
        subject, context = scene
        runs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            expected = torch.random.get_rng_state(), random.getstate()
            runs.append(list(made(case).apply(subject, context)))
            same = torch.equal(expected[0], torch.random.get_rng_state()) and expected[1] == random.getstate()
            assert same, f"{case.what} draws from a global generator. Make one of `context.seed` and its own `seed`"
        assert equal(*runs), f"{case.what}: with the same seeds it has another outcome"

    def test_random_says_whether_the_outcome_depends_on_the_seed(self, case: Case, scene: Scene) -> None:
        subject, context = scene
        attack = made(case)
        runs = [list(attack.apply(subject, replace(context, seed=seed))) for seed in (0, 1, 2)]
        drawn = not (equal(runs[0], runs[1]) and equal(runs[0], runs[2]))
        assert drawn == attack.random, (
            f"{case.what}: its outcome {'depends' if drawn else 'does not depend'} on `context.seed`, and `random` is "
            f"{attack.random}. An attack that draws has a setting `seed`; where some settings draw nothing, override "
            "`random`"
        )

    def test_of_no_strength_it_yields_the_subject_itself(self, case: Case, scene: Scene) -> None:
        """Wherever a number of the example may be 0, and that stands for no change."""
        subject, context = scene
        for name, value in case.kind.example.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    nothing = case.kind(case.kind.Settings(**{**case.kind.example, **case.more, name: type(value)(0)}))
                except ValueError:
                    continue
                if nothing.changes_nothing:
                    assert all(attacked == subject for _, attacked in nothing.apply(subject, context)), (
                        f"{case.what}: with {name}=0 it `changes_nothing`, and yields something else than its subject"
                    )

    @pytest.mark.parametrize("kind", ["nan", "overflow"])
    def test_it_gives_no_number_to_a_model_that_has_none(self, case: Case, scene: Scene, kind: str) -> None:
        """Its rows are null, or it fails with a reason."""
        subject, context = scene
        checkpoint = subject.checkpoint
        bad = TensorCheckpoint(spoilt(kind, checkpoint.state()), checkpoint.architecture)
        probes = tuple(replace(probe, items=probe.items[:3]) for probe in subject.probes)
        try:
            points = list(made(case).apply(Subject(bad, probes), context))
        except Exception as error:
            assert str(error), f"{case.what} fails without a sentence: {error!r}"
            return
        engine = TransformersEngine(context.encoder, dtype="float32", device=context.device)
        for _, attacked in points:
            (found,) = engine.submit([Job("x", attacked.checkpoint, attacked.probes)])
            assert found.error is None or str(found.error)
            for probe in attacked.probes if found.error is None else ():
                for metric in probe.metrics:
                    number = score(metric, found.samples[probe.name])
                    assert number.value is None and number.reason, (
                        f"{case.what}: a model whose weights are not finite has {probe.name}/{metric}={number.value}"
                    )


def made(case: Case) -> Attack[Any]:
    attack: Attack[Any] = case.kind(case.settings())
    return attack


def equal(one: Sequence[tuple[int, Subject]], other: Sequence[tuple[int, Subject]]) -> bool:
    """Whether two outcomes have the same points, probes and weights."""
    if [(point, s.probes) for point, s in one] != [(point, s.probes) for point, s in other]:
        return False
    states = [(a.checkpoint.state(), b.checkpoint.state()) for (_, a), (_, b) in zip(one, other, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in states)
