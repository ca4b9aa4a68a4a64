"""The comparison of engines: same weights agree, other weights are detected, and a tie is no disagreement."""

from __future__ import annotations

import pytest
import torch

from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.engines.agreement import agreement, tie
from suite.engines.questions import Questions
from suite.models.checkpoints import EditedCheckpoint
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from tasks import TASKS
from tasks.task import Item, Probe, ProbeKind, Sampling, Split, Subset, limited
from tests.support.small import SMALL


@pytest.fixture(scope="module")
def both(warm_store):
    return prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(warm_store).stages, RuntimeSpec())


@pytest.fixture(scope="module")
def probes():
    return limited(TASKS["pocket"].build().probes_of(Split.TEST), 4)


class Elsewhere(TransformersEngine):
    """An engine that computes with other weights than it was given."""

    def __init__(self, *args, edit, **kwargs):
        super().__init__(*args, **kwargs)
        self.edit = edit

    def likelihoods(self, checkpoint, *requests):
        return super().likelihoods(EditedCheckpoint(checkpoint, self.edit, "other"), *requests)

    def continuations(self, checkpoint, questions):
        return super().continuations(EditedCheckpoint(checkpoint, self.edit, "other"), questions)


def engines(both, edit):
    where = {"dtype": "float32", "device": torch.device("cpu")}
    return TransformersEngine(both.base.encoder, **where), Elsewhere(both.base.encoder, edit=edit, **where)


def test_the_same_weights_agree(both, probes):
    one, other = engines(both, lambda state: state)
    for found in agreement(both.checkpoint("target"), probes, both.base.encoder, one, other):
        assert found.n == found.same and found.parted == 0
        assert found.worst in (None, 0.0) and (found.worst is None) == (found.kind is ProbeKind.GENERATE)


def test_other_weights_are_caught(both, probes):
    def edit(state):
        return {
            n: t + 0.05 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0)) for n, t in state.items()
        }

    one, other = engines(both, edit)
    found = agreement(both.checkpoint("target"), probes, both.base.encoder, one, other)
    assert all(f.parted for f in found if f.kind is ProbeKind.GENERATE)
    assert all(f.worst > 1e-2 for f in found if f.worst is not None)


def test_a_tie_is_no_difference(both):
    """All logits equal: any token is as good as any other, greedy or drawn at the edge of a token's share."""

    def flat(state):
        return {n: torch.zeros_like(t) if "embed_tokens" in n or "lm_head" in n else t for n, t in state.items()}

    def tilted(state):
        tilted = flat(state)
        name = next(n for n in tilted if "embed_tokens" in n)
        tilted[name] = tilted[name] + 1e-9 * torch.arange(len(tilted[name]))[:, None]
        return tilted

    items = (Item("a", "who", ("x",)),)
    probe = Probe("p", Subset.FORGET, Split.TEST, ProbeKind.GENERATE, items, ("rougeL_recall",), max_new_tokens=4)
    one, other = engines(both, tilted)
    base = EditedCheckpoint(both.checkpoint("target"), flat, "flat")
    (found,) = agreement(base, [probe], both.base.encoder, one, other)
    assert (found.n, found.same, found.ties, found.parted) == (1, 0, 1, 0)


def test_what_counts_as_a_tie_grows_with_rounding():
    assert tie(torch.float32) == 1e-4 < tie(torch.float16) < tie(torch.bfloat16) == 0.5


def test_tokens_that_complete_an_answer_by_themselves(both):
    """They come from stop texts that all probes with this prompt share."""
    encoder = both.base.encoder
    texts = [encoder.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(encoder.tokenizer))]
    assert encoder.stop_ids(("e", "\n")) == {i for i, text in enumerate(texts) if "e" in text or "\n" in text} != set()
    assert encoder.stop_ids(()) == set()
    items = (Item("a", "who", ("x",)),)
    plain = {"subset": Subset.FORGET, "split": Split.TEST, "kind": ProbeKind.GENERATE, "metrics": ("rougeL_recall",)}
    stops = Probe("one", **plain, items=items, stop=("e",))
    other = Probe("other", **plain, items=items, stop=("e", "a"), max_new_tokens=50)
    never = Probe("never", **plain, items=items)
    alone = tuple(sorted(encoder.stop_ids(("e",))))
    assert Questions(encoder, [stops, other]).generation_requests[0].stop == alone
    assert Questions(encoder, [stops, never]).generation_requests[0].stop == ()
    drawn = Probe("drawn", **plain, items=items, sampling=Sampling(2, 1.0))
    assert [r.stop for r in Questions(encoder, [drawn, stops]).generation_requests] == [
        (),
        (),
        tuple(sorted(encoder.stop_ids(("e",)))),
    ]
