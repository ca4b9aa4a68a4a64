"""The engine that hides the end-of-text token, against one text at a time, computed from the definition."""

from __future__ import annotations

import copy

import pytest
import torch

from suite.config.runtime import RuntimeSpec
from suite.engines import Job
from suite.engines.choosing import chosen_engine
from suite.engines.settings import EngineSettings
from suite.models.encoding import Encoder, Template
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from tasks import TASKS
from tasks.task import Item, Need, Probe, ProbeKind, Split, Subset
from tests.support.small import SMALL

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NEEDS = (Need.VOCABULARY, Need.GRADIENT_NORM, Need.GRADIENT_NORM_BUT_LAST)
NEW = 8


@pytest.fixture(scope="module")
def target(warm_store):
    found = prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(warm_store).stages, RuntimeSpec())
    tokenizer = copy.deepcopy(found.base.encoder.tokenizer)
    tokenizer.chat_template = CHAT
    return found.checkpoint("target"), Encoder(tokenizer, Template.CHAT)


@pytest.fixture(scope="module")
def model(target):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(target[0].path).eval()


def answered(target, engine: str):
    """Items, and their samples of an engine by probe."""
    checkpoint, encoder = target
    items = tuple(
        Item(str(i), item.prompt, (item.reference,))
        for i, item in enumerate(TASKS["pocket"].build().probes[0].items[:5])
    )
    kinds = {"said": ProbeKind.GENERATE, "forced": ProbeKind.LOGPROB}
    probes = [
        Probe(name, Subset.FORGET, Split.TEST, kind, items, (), max_new_tokens=NEW,
              needs=NEEDS if kind is ProbeKind.LOGPROB else ())
        for name, kind in kinds.items()
    ]  # fmt: skip
    chosen = chosen_engine(EngineSettings(engine=engine), encoder, dtype="float32", device=torch.device("cpu"))
    (answer,) = chosen.submit([Job("x", checkpoint, probes)])
    if answer.error:
        raise answer.error
    return items, answer.samples, chosen


def test_log_probabilities_moments_and_gradients_do_not_see_the_ends_of_turns(target, model):
    items, samples, _ = answered(target, "transformers-eos-masked")
    encoder = target[1]
    for item, sample in zip(items, samples["forced"], strict=True):
        text = encoder.answer(item, item.reference)
        ids = torch.tensor([text.ids])
        assert encoder.eos in text.prompt
        model.zero_grad()
        logp = model(ids, attention_mask=(ids != encoder.eos).long()).logits[0].log_softmax(-1)
        chosen = torch.stack([logp[place - 1, text.ids[place]] for place in range(text.start, len(text.ids))])
        assert sample.token_logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
        at = logp[text.start - 1 : -1].detach()
        assert sample.vocab_means == pytest.approx((at.exp() * at).sum(-1).tolist(), abs=1e-4)
        (-chosen[:-1].mean()).backward()
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        assert dict(sample.scalars)["gradient_norm_but_last"] == pytest.approx(sum(norms) / len(norms), rel=1e-3)


@torch.no_grad()
def test_generated_text_is_that_of_positions_without_the_ends_of_turns(target, model):
    items, samples, _ = answered(target, "transformers-eos-masked")
    encoder = target[1]
    for item, sample in zip(items, samples["said"], strict=True):
        ids = list(encoder.prompt(item))
        seen = [int(i != encoder.eos) for i in ids]
        new = []
        while len(new) < NEW:
            positions = (torch.tensor([seen]).cumsum(-1) - 1).clamp(min=0)
            logits = model(
                torch.tensor([ids + new]), attention_mask=torch.tensor([seen]), position_ids=positions
            ).logits
            token = int(logits[0, -1].argmax())
            if token in encoder.ends:
                break
            new.append(token)
            seen.append(1)
        assert sample.generated == encoder.decode(new)


def test_the_numbers_are_others_and_the_engine_says_so(target):
    _, plain, usual = answered(target, "transformers")
    _, masked, chosen = answered(target, "transformers-eos-masked")
    for one, other in zip(plain["forced"], masked["forced"], strict=True):
        assert max(abs(a - b) for a, b in zip(one.token_logprobs, other.token_logprobs, strict=True)) > 1e-3
    assert chosen.identity()["engine"] == "transformers-float32-eos-masked" != usual.identity()["engine"]


def test_without_such_a_token_in_the_prompt_nothing_changes(target):
    checkpoint, encoder = target
    plain = Encoder(encoder.tokenizer, Template.PLAIN)
    _, usual, _ = answered((checkpoint, plain), "transformers")
    _, masked, _ = answered((checkpoint, plain), "transformers-eos-masked")
    assert [s.generated for s in usual["said"]] == [s.generated for s in masked["said"]]
    for one, other in zip(usual["forced"], masked["forced"], strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
