"""Attacks that train against plain torch and peft, and against torch's own schedules."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR

from suite.attacks import AttackContext, Subject, attack
from suite.config.errors import SpecError
from suite.models.checkpoints import TensorCheckpoint
from suite.models.encoding import Encoded
from suite.models.finetuning import finetune, step_size
from suite.models.layers import is_linear
from tasks import TASKS
from tasks.task import Style, attack_name
from tests.support.finetuning import RELEARN, assert_close, assert_same_weights, by_hand, drawn_texts, mean_loss, run


@pytest.fixture(scope="module")
def scene(scene, small_anchors) -> tuple[Subject, AttackContext]:
    subject, context = scene
    return replace(subject, checkpoint=small_anchors.checkpoint("retrained")), context


# How long


def test_epochs_are_steps_over_the_drawn_texts(scene):
    """10 texts in batches of 4 are three steps."""
    more = {**RELEARN, "samples": 10, "points": 2}
    epochs, steps = run({**more, "epochs": 4}, *scene), run({**more, "steps": 12}, *scene)
    assert (list(epochs), list(steps)) == ([2, 4], [6, 12])
    for epoch in (2, 4):
        assert_same_weights(epochs[epoch], steps[3 * epoch])


def test_epochs_of_running_text_are_over_its_blocks(scene):
    subject, context = scene
    context = replace(context, block=8)
    texts = context.encoder.examples(random.Random("0:0").sample(context.forget, 10), 8)
    blocks = [t for t in texts if t.start == 1]
    assert len(blocks) > 4, "the draw has running text"
    steps = -(-len(texts) // 4)
    ((_, epoch),) = run({**RELEARN, "samples": 10, "epochs": 1}, subject, context).items()
    ((_, step),) = run({**RELEARN, "samples": 10, "steps": steps}, subject, context).items()
    assert_same_weights(epoch, step)


@pytest.mark.parametrize("length", [{"steps": 0}, {"epochs": 0}])
def test_without_training_it_is_the_subject_itself(scene, length):
    subject, context = scene
    for name, more in (("relearn", {}), ("benign", {}), ("task_vector", {"scale": 1.0})):
        one = attack({**RELEARN, **more, **length, "name": name})
        assert list(one.apply(subject, context)) == [(0, subject)]


def test_old_names_stay():
    one = attack({"name": "relearn", "samples": 12, "steps": 24, "lr": 5e-4, "points": 3, "seed": 2})
    assert one.name == "relearn[lr=0.0005,points=3,samples=12,seed=2,steps=24]"
    assert one.points == (8, 16, 24)
    official = [s for entry in TASKS.values() for split in entry.attack_sets[entry.official].values() for s in split]
    assert {attack(s).name for s in official} == {attack_name(s) for s in official}


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({}, "one of steps and epochs"),
        ({"steps": 1, "epochs": 1}, "one of steps and epochs"),
        ({"epochs": 2, "points": 3}, "points=3 is more than epochs=2"),
        ({"steps": 1, "rank": 4}, "Set adapter=lora"),
        ({"steps": 1, "texts": "wikitxt"}, "Did you mean wikitext"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(more, match):
    with pytest.raises(SpecError, match=match):
        attack({**RELEARN, **more})


# With which step sizes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(1e-6, 1.0), st.data())
def test_step_sizes_are_those_of_torch(steps, lr, data):
    """Cosine and linear to zero after the last step, as torch's schedulers compute them one step at a time."""
    warmup = data.draw(st.integers(0, steps))
    for schedule, kind in (
        ("constant", lambda o: LambdaLR(o, lambda step: 1.0)),
        ("linear", lambda o: LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=steps)),
        ("cosine", lambda o: CosineAnnealingLR(o, T_max=steps)),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
        scheduler = kind(optimizer)
        for step in range(steps):
            rise = 1.0 if step >= warmup else (step + 1) / (warmup + 1)
            expected = rise * scheduler.get_last_lr()[0]
            assert step_size(lr, step, steps, warmup, schedule) == pytest.approx(expected, rel=1e-6, abs=1e-9 * lr)
            optimizer.step()
            scheduler.step()


def test_schedule_warmup_and_decay_reach_the_weights(scene):
    """Cosine over four steps, of which warm-up takes one half."""
    subject, context = scene
    more = {"schedule": "cosine", "warmup": 0.5, "weight_decay": 0.1, "steps": 4}
    ((_, got),) = run({**RELEARN, **more}, subject, context).items()
    texts = drawn_texts(context, 4, random.Random("0:0"))
    model = by_hand(
        subject.checkpoint.model(),
        texts,
        4,
        1e-3,
        weight_decay=0.1,
        schedule=lambda o: LambdaLR(o, lambda step: min(1.0, (step + 1) / 3) * (1 + math.cos(math.pi * step / 4)) / 2),
    )
    assert_close(got, model.state_dict())


# What is moved


def test_lora_is_pefts_and_moves_linear_layers_alone(scene):
    """peft's own model with adapters at every linear layer, trained by hand and merged by peft."""
    from peft import LoraConfig, get_peft_model

    subject, context = scene
    lora = {"adapter": "lora", "rank": 3, "alpha": 6.0, "steps": 3, "lr": 1e-2, "weight_decay": 0.01}
    ((_, got),) = run({**RELEARN, **lora}, subject, context).items()
    draw = random.Random("0:0")
    texts = drawn_texts(context, 4, draw)
    draw.randrange(2**31)  # the order of the batches: here there is one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.randrange(2**31))
        config = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, target_modules="all-linear")
        model = get_peft_model(subject.checkpoint.model(), config)
    by_hand(model, texts, 3, 1e-2, weight_decay=0.01)
    assert_close(got, model.merge_and_unload().state_dict())
    before = subject.checkpoint.state()
    changed = {name for name in before if not torch.equal(before[name], got[name])}
    assert changed == {name for name, weight in before.items() if is_linear(name, weight)}


def test_a_lora_curve_is_one_run_seen_at_several_points(scene):
    """Measuring during the run does not merge the adapter permanently."""
    lora = {**RELEARN, "adapter": "lora", "rank": 2, "steps": 4}
    curve, single = run({**lora, "points": 2}, *scene), run(lora, *scene)
    assert_same_weights(curve[4], single[4])
    assert not torch.equal(*(curve[p]["model.layers.0.mlp.up_proj.weight"] for p in (2, 4)))


# What comes of it


@pytest.fixture(scope="module")
def learned(scene) -> tuple[Subject, AttackContext, list[Encoded]]:
    """A model that knows 32 retain questions, and no other text."""
    subject, context = scene
    retain = tuple(e for e in context.retain if e.style is Style.QUESTION)[:32]
    context = replace(context, task=replace(context.task, retain=retain))
    model = subject.checkpoint.model()
    texts = [context.encoder.example(e) for e in retain]
    for _ in finetune(model, texts, steps=80, lr=1e-2, batch_size=8, seed=0, schedule="linear"):
        pass
    checkpoint = TensorCheckpoint.of(model, subject.checkpoint.architecture)
    return Subject(checkpoint, subject.probes), context, texts


@torch.no_grad()
def probabilities(model, texts: Sequence[Encoded]) -> torch.Tensor:
    """p(answer)^(1/tokens) of each text."""
    return torch.stack([(-mean_loss(model, [text])).exp() for text in texts])


def test_texts_that_a_model_knows_teach_it_nothing(learned):
    """Its knowledge changes by less than the standard error over the texts; with forget texts by many of them."""
    subject, context, known = learned
    same = {"samples": 12, "epochs": 8, "lr": 1e-3}
    relearned = drawn_texts(context, 12, random.Random("0:0"))
    changes = {}
    for name, texts in (("benign", known), ("relearn", relearned)):
        ((_, attacked),) = attack({"name": name, **same}).apply(subject, context)
        before, after = (probabilities(s.checkpoint.model(), texts) for s in (subject, attacked))
        changes[name] = float((after.mean() - before.mean()).abs() / (before.std() / len(texts) ** 0.5))
        assert before.mean() > 0.8 or name == "relearn"
    assert changes["benign"] <= 1
    assert changes["relearn"] > 4


def test_negated_forgetting_is_ascent_by_hand_subtracted(scene):
    """w - scale (w' - w) with w' after AdamW on minus the loss; zero scale is the subject."""
    subject, context = scene
    base = {**RELEARN, "name": "task_vector", "steps": 2}
    model = by_hand(subject.checkpoint.model(), drawn_texts(context, 4, random.Random("0:0")), 2, 1e-3, sign=-1.0)
    before = subject.checkpoint.state()
    ((_, got),) = run({**base, "scale": 1.5}, subject, context).items()
    for name, ascended in model.state_dict().items():
        if name in before:
            expected = before[name] - 1.5 * (ascended - before[name])
            torch.testing.assert_close(got[name], expected, rtol=1e-3, atol=2e-5)
            assert not torch.equal(got[name], before[name])
    assert list(attack({**base, "scale": 0.0}).apply(subject, context)) == [(2, subject)]


def test_the_vector_is_exact_for_half_precision_weights(scene):
    """Steps of 1e-6 would leave bf16 weights where they are; a thousand times their sum does not."""
    subject, context = scene
    half = {n: w.bfloat16() for n, w in subject.checkpoint.state().items()}
    rounded = TensorCheckpoint({n: w.float() for n, w in half.items()}, subject.checkpoint.architecture)
    halved = TensorCheckpoint(half, subject.checkpoint.architecture)
    settings_ = {**RELEARN, "name": "task_vector", "steps": 2, "lr": 1e-6, "scale": 1000.0}
    ((_, got),) = run(settings_, replace(subject, checkpoint=halved), context).items()
    ((_, exact),) = run(settings_, replace(subject, checkpoint=rounded), context).items()
    for name, weight in exact.items():
        assert got[name].dtype is torch.bfloat16
        assert torch.equal(got[name], weight.bfloat16())
        if weight.ndim == 2:
            assert (weight - half[name].float()).abs().mean() > 5e-4


def test_merging_walks_the_line_to_the_target(scene):
    subject, context = scene
    assert context.target is not None
    one, other = subject.checkpoint.state(), context.target.state()
    got = run({"name": "merge", "share": 0.25}, subject, context)[0]
    for name, weight in one.items():
        expected = 0.75 * weight.double() + 0.25 * other[name].double()
        torch.testing.assert_close(got[name].double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(weight, other[name])
    assert_same_weights(run({"name": "merge", "share": 1.0}, subject, context)[0], other)
    assert list(attack({"name": "merge", "share": 0.0}).apply(subject, context)) == [(0, subject)]


def test_merging_needs_the_target_and_its_key_names_it(scene):
    subject, context = scene
    one = attack({"name": "merge", "share": 0.5})
    assert one.reads(subject.probes, context) != one.reads(subject.probes, replace(context, target_key="another"))
    with pytest.raises(SpecError, match=r"^attacks: merge: there is no model before unlearning"):
        list(one.apply(subject, replace(context, target=None)))
