"""The transformers engine against one text at a time, computed in the plainest way."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from suite.config.runtime import RuntimeSpec
from suite.engines import Job, TransformersEngine
from suite.models.checkpoints import EditedCheckpoint, SavedCheckpoint, TensorCheckpoint, skeleton
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from tasks import TASKS
from tasks.scoring import METRICS
from tasks.task import Example, Item, Need, Probe, ProbeKind, Split, Style, Subset, limited
from tests.support.small import SMALL

CLOSE = 1e-4
"""Log-probabilities agree to this in fp32; generations up to the first step whose two best logits are closer."""


@pytest.fixture(scope="module")
def both(warm_store):
    return prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(warm_store).stages, RuntimeSpec())


def engine(both, batch_tokens: int = 512) -> TransformersEngine:
    return TransformersEngine(both.base.encoder, dtype="float32", device=torch.device("cpu"), batch_tokens=batch_tokens)


@pytest.fixture(scope="module")
def probes():
    return limited(TASKS["pocket"].build().probes_of(Split.TEST), 6)


@pytest.fixture(scope="module")
def target_samples(both, probes):
    (answer,) = engine(both).submit([Job("x", both.checkpoint("target"), probes)])
    return answer.samples


def plain_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def ids_of(both, item, answer):
    tokenizer, text = both.base.encoder.tokenizer, item.style is Style.TEXT
    head = tokenizer(item.prompt)["input_ids"]
    tail = tokenizer(answer if text else f" {answer}")["input_ids"] + ([] if text else [tokenizer.eos_token_id])
    return head, tail


@torch.no_grad()
def test_log_probabilities_are_those_of_one_text_at_a_time(both, probes, target_samples):
    model = plain_model(both.checkpoint("target").path)
    checked = 0
    for probe in probes:
        if probe.kind is ProbeKind.GENERATE:
            continue
        for item, sample in zip(probe.items, target_samples[probe.name], strict=True):
            answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
            sums, lengths = [], []
            for answer in answers:
                head, tail = ids_of(both, item, answer)
                logprobs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
                own = [float(logprobs[len(head) - 1 + i, t]) for i, t in enumerate(tail)]
                right = [int(logprobs[len(head) - 1 + i].argmax()) == t for i, t in enumerate(tail)]
                sums.append(sum(own))
                lengths.append(len(own))
            if probe.kind is ProbeKind.CHOICE:
                assert sample.choice_logprobs == pytest.approx(sums, abs=CLOSE * max(lengths))
                assert sample.choice_lengths == tuple(lengths)
                assert sample.correct == item.correct
            else:
                assert sample.token_logprobs == pytest.approx(own, abs=CLOSE)
                assert sample.token_correct == tuple(right)
            assert sample.item == item.id
            checked += 1
    assert checked > 20


@torch.no_grad()
def test_generations_are_those_of_one_prompt_at_a_time(both, probes, target_samples):
    model, encoder = plain_model(both.checkpoint("target").path), both.base.encoder
    texts = set()
    for probe in probes:
        if probe.kind is not ProbeKind.GENERATE:
            continue
        for item, sample in zip(probe.items, target_samples[probe.name], strict=True):
            ids, new = ids_of(both, item, "")[0], []
            for _ in range(probe.max_new_tokens):
                best = model(torch.tensor([ids + new])).logits[0, -1].topk(2)
                if float(best.values[0] - best.values[1]) < CLOSE or int(best.indices[0]) == encoder.eos:
                    break
                new.append(int(best.indices[0]))
            assert sample.generated.startswith(encoder.decode(new)) or encoder.decode(new).startswith(sample.generated)
            texts.add(sample.generated)
    assert len(texts) > 1


def test_answers_depend_on_neither_batch_size_nor_what_came_before(both, probes, target_samples):
    one = engine(both, batch_tokens=40)
    jobs = [Job("other", both.checkpoint("retrained"), probes), Job("x", both.checkpoint("target"), probes)]
    answers = {answer.key: answer.samples for answer in one.submit(jobs)}
    assert answers["other"] != answers["x"]
    for name, samples in answers["x"].items():
        for mine, reference in zip(samples, target_samples[name], strict=True):
            assert mine.token_logprobs == pytest.approx(reference.token_logprobs, abs=CLOSE) or mine.generated
            assert mine.item == reference.item


def test_memory_and_edits_are_checkpoints_too(both, probes, target_samples):
    saved = both.checkpoint("target")
    memory = TensorCheckpoint.of(saved.model(), saved.architecture)
    edited = EditedCheckpoint(saved, lambda state: dict(state), "as it is")
    for answer in engine(both).submit([Job("a", memory, probes), Job("b", edited, probes)]):
        assert answer.samples == target_samples


def test_a_truncated_checkpoint_is_named(both, tmp_path):
    import shutil

    from suite.config.errors import CheckpointError
    from suite.models.checkpoints import load_state

    folder = tmp_path / "copy"
    shutil.copytree(both.checkpoint("target").path, folder)
    file = folder / "model.safetensors"
    with open(file, "rb+") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SavedCheckpoint(folder).state()
    state = both.checkpoint("target").state()
    name = next(n for n in state if "q_proj" in n)
    for broken, words in [
        ({k: v for k, v in state.items() if k != name}, f"lacks the tensor {name}"),
        ({**state, name: state[name][:-1]}, "shape"),
        ({**state, "extra": state[name]}, "architecture lacks"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            load_state(skeleton(both.checkpoint("target").path, torch.float32), broken)


def test_limited_probes_are_other_probes(probes):
    assert all(len(p.items) == 6 for p in probes)
    whole = TASKS["pocket"].build().probes_of(Split.TEST)
    assert all(a.digest != b.digest for a, b in zip(probes, whole, strict=True))
    assert dataclasses.replace(probes[0], metrics=()).digest == probes[0].digest, "a new metric needs no new samples"


def probe_of(kind: ProbeKind, items, **more) -> Probe:
    return Probe(more.pop("name", "probe"), Subset.FORGET, Split.TEST, kind, tuple(items), (), **more)


def samples_of(both, *probes):
    (answer,) = engine(both).submit([Job("x", both.checkpoint("target"), probes)])
    return answer.samples


@pytest.fixture(scope="module")
def generated(probes):
    return next(p for p in probes if p.kind is ProbeKind.GENERATE)


def test_a_generated_answer_ends_before_the_first_stop_text_and_is_stripped(both, generated):
    (whole,) = samples_of(both, generated).values()
    words = [sample.generated.split() for sample in whole]
    assert any(len(item_words) > 2 for item_words in words)
    for sample, item_words in zip(whole, words, strict=True):
        if len(item_words) < 3:
            continue
        # The later stop text is named first: the earlier place counts, not the earlier name.
        stopped = dataclasses.replace(generated, stop=(item_words[2], f" {item_words[1]}"))
        cut = next(s for s in samples_of(both, stopped)[generated.name] if s.item == sample.item)
        places = [sample.generated.find(text) for text in stopped.stop]
        assert cut.generated == sample.generated[: min(p for p in places if p >= 0)].strip()


def test_a_prompt_is_generated_from_once_for_the_probe_that_wants_most(both, generated, monkeypatch):
    from suite.engines.transformers import engine as transformers_engine

    requests = []

    def recorded(model, new_requests, **more):
        requests.extend(new_requests)
        return continued(model, new_requests, **more)

    continued = transformers_engine.continued
    monkeypatch.setattr(transformers_engine, "continued", recorded)
    short = dataclasses.replace(generated, name="short", max_new_tokens=2)
    stopped = dataclasses.replace(generated, name="stopped", stop=("e",))
    samples = samples_of(both, short, stopped, generated)
    assert len(requests) == len({item.prompt for item in generated.items})
    assert {r.limit for r in requests} == {generated.max_new_tokens}
    (alone,) = samples_of(both, generated).values()
    assert samples[generated.name] == alone, "what another probe wants less of is not cut for this one"
    assert samples["short"] == samples_of(both, short)["short"]
    assert all("e" not in sample.generated for sample in samples["stopped"])


def test_nothing_is_generated_beyond_a_stop_text(both, generated):
    from suite.engines.questions import Questions

    encoder = both.base.encoder
    stopped = dataclasses.replace(generated, stop=("x y",))
    request = Questions(encoder, [stopped]).generation_requests[0]
    ids = encoder.tokenizer(" and then x yonder and so on")["input_ids"]
    first = next(n for n in range(len(ids)) if "x y" in encoder.tokenizer.decode(ids[:n]))
    assert [n for n in range(1, first + 1) if request.ended(ids[:n])] == [first]


def test_a_reference_is_cut_to_as_many_tokens_as_the_tokenizer_makes_of_it(both, generated):
    tokenizer = both.base.encoder.tokenizer
    cut = dataclasses.replace(generated, max_reference_tokens=3)
    for item, sample in zip(generated.items, samples_of(both, cut)[generated.name], strict=True):
        ids = tokenizer(item.reference)["input_ids"][:3]
        assert sample.reference == tokenizer.decode(ids) != item.reference


def test_tokens_around_a_reference_count_and_are_not_decoded(both):
    """Published numbers cut the text with its begin-of-text token counted: one token less of the text remains."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from suite.models.encoding import Encoder, Template

    tokenizer = AutoTokenizer.from_pretrained(both.checkpoint("target").path)
    plain = tokenizer.decode(tokenizer("one two three four")["input_ids"][:3])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 1)])
    assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id
    encoder = Encoder(tokenizer, Template.BARE)
    assert encoder.cut("one two three four", 4) == plain


def test_running_text_is_cut_and_questions_are_not(both):
    text = Item("text", "Once there was", (" a cat that sat on the mat and looked at the moon",), style=Style.TEXT)
    question = Item("question", "Who was there", ("a cat that sat on the mat and looked at the moon",))
    whole = samples_of(both, probe_of(ProbeKind.LOGPROB, [text, question]))["probe"]
    head = len(both.base.encoder.encode(text.prompt, "", text.style).prompt)
    cut = samples_of(both, probe_of(ProbeKind.LOGPROB, [text, question], max_tokens=head + 4))["probe"]
    assert cut[0].token_logprobs == pytest.approx(whole[0].token_logprobs[:4], abs=CLOSE)
    assert cut[0].token_correct == whole[0].token_correct[:4]
    assert cut[1].token_logprobs == pytest.approx(whole[1].token_logprobs, abs=CLOSE)
    assert samples_of(both, probe_of(ProbeKind.LOGPROB, [text], max_tokens=head))["probe"][0].token_logprobs == ()


def test_moments_are_those_of_log_p_under_p_and_only_for_who_asks(both):
    model, items = plain_model(both.checkpoint("target").path), TASKS["pocket"].build().probes[0].items[:3]
    needy = probe_of(ProbeKind.LOGPROB, items, needs=(Need.VOCABULARY,))
    samples = samples_of(both, needy, probe_of(ProbeKind.LOGPROB, items, name="other"))
    for item, sample, other in zip(items, samples["probe"], samples["other"], strict=True):
        head, tail = ids_of(both, item, item.reference)
        with torch.no_grad():
            logp = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)[len(head) - 1 : -1]
        draws = torch.distributions.Categorical(logits=logp)
        assert sample.vocab_means == pytest.approx((-draws.entropy()).tolist(), abs=CLOSE)
        spread = (draws.probs * logp**2).sum(-1) - draws.entropy() ** 2
        assert sample.vocab_variances == pytest.approx(spread.tolist(), abs=1e-3)
        assert other.vocab_means is None and other.vocab_variances is None
        assert other.token_logprobs == sample.token_logprobs


def test_the_gradient_norm_is_the_mean_over_parameters_of_the_norm_of_the_mean_loss_gradient(both):
    model, items = plain_model(both.checkpoint("target").path), TASKS["pocket"].build().probes[0].items[:2]
    probe = probe_of(ProbeKind.LOGPROB, items, needs=(Need.GRADIENT_NORM,))
    for item, sample in zip(items, samples_of(both, probe)["probe"], strict=True):
        head, tail = ids_of(both, item, item.reference)
        labels = torch.tensor([[-100] * len(head) + tail])
        model.zero_grad()
        model(torch.tensor([head + tail]), labels=labels).loss.backward()
        norms = [float(p.grad.norm()) for p in model.parameters()]
        assert dict(sample.scalars)["gradient_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-3)
        assert sample.token_logprobs


def test_the_gradient_norm_of_all_tokens_but_the_last_is_of_their_mean_loss_alone(both):
    """As open-unlearning goes: log-probabilities of the labels but the last, minus their mean, backwards."""
    model, items = plain_model(both.checkpoint("target").path), TASKS["pocket"].build().probes[0].items[:2]
    needs = (Need.GRADIENT_NORM, Need.GRADIENT_NORM_BUT_LAST)
    samples = samples_of(both, probe_of(ProbeKind.LOGPROB, items, needs=needs))["probe"]
    for item, sample in zip(items, samples, strict=True):
        head, tail = ids_of(both, item, item.reference)
        model.zero_grad()
        logp = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        chosen = [logp[len(head) + place - 1, token] for place, token in enumerate(tail)][:-1]
        (-torch.stack(chosen).mean()).backward()
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        found = METRICS["gradient_norm_open_unlearning"].compute(sample)
        assert found == pytest.approx(sum(norms) / len(norms), rel=1e-3)
        assert found != pytest.approx(METRICS["gradient_norm"].compute(sample), rel=1e-3)
    text = Item("a", "", (items[0].prompt,), style=Style.TEXT)
    (alone,) = samples_of(both, probe_of(ProbeKind.LOGPROB, [text], needs=needs, max_tokens=2))["probe"]
    assert len(alone.token_logprobs) == 1 and METRICS["gradient_norm"].compute(alone) > 0
    assert METRICS["gradient_norm_open_unlearning"].compute(alone) is None


def test_gradient_norms_are_taken_without_dropout():
    """Published code takes them in training mode, so that dropout gives a text another score each time."""
    import transformers

    from suite.engines.transformers.gradient_norms import gradient_norm
    from suite.models.encoding import Encoded

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    text = Encoded((1, 2, 3, 4), 2)
    with torch.inference_mode():
        norms = {gradient_norm(model, text) for _ in range(3)}
    assert len(norms) == 1 and norms.pop() > 0
    assert all(p.grad is None for p in model.parameters())


def test_a_text_is_scored_once_however_many_probes_want_it(both, probes):
    from suite.engines.questions import Questions

    logprob = next(p for p in probes if p.kind is ProbeKind.LOGPROB)
    choice = probe_of(ProbeKind.CHOICE, logprob.items, name="choice")
    needy = dataclasses.replace(logprob, name="needy", needs=(Need.VOCABULARY, Need.GRADIENT_NORM))
    questions = Questions(both.base.encoder, [logprob, choice, needy])
    alone = Questions(both.base.encoder, [choice])
    assert {r.text for r in questions.score_requests} == {r.text for r in alone.score_requests}
    assert len(questions.score_requests) == len(alone.score_requests)
    assert sum(r.vocabulary for r in questions.score_requests) == len(questions.gradient_texts) == len(needy.items)


def test_numbers_of_another_revision_are_other_stages(both, monkeypatch):
    from suite.engines.transformers import engine as transformers_engine

    before = engine(both).identity()
    monkeypatch.setattr(transformers_engine, "REVISION", 10**6)
    assert engine(both).identity() != before


def documents(*texts: str) -> list[Example]:
    return [Example(f"d{i}", "", text, Style.TEXT) for i, text in enumerate(texts)]


@pytest.mark.parametrize("block", [2, 3, 5, 8])
def test_blocks_are_the_joined_documents_cut_every_so_many_tokens(both, block):
    """Published code makes a last block of nothing where the tokens divide evenly, and tokenizes decoded blocks."""
    encoder = both.base.encoder
    texts = documents("One cat sat.", "Two dogs ran far away.", "Three.")
    ids = encoder.tokenizer("One cat sat.\n\nTwo dogs ran far away.\n\nThree.")["input_ids"]
    blocks = encoder.examples(texts, block)
    assert [e.start for e in blocks] == [1] * len(blocks), "all but the first token of each is predicted"
    assert all(1 < len(e.ids) <= block for e in blocks) and all(len(e.ids) == block for e in blocks[:-1])
    joined = [token for e in blocks for token in e.ids]
    assert joined == ids[: len(joined)] and len(ids) - len(joined) == (len(ids) % block == 1)
    assert len(encoder.examples(texts, len(ids))) == 1


def test_questions_are_taught_one_by_one_in_blocks_or_not(both):
    encoder, question = both.base.encoder, Example("q", "Who sat", "A cat")
    texts = [*documents("One cat sat."), question]
    assert encoder.examples(texts) == [encoder.example(text) for text in texts]
    assert encoder.example(question) in encoder.examples(texts, 4)
    assert encoder.examples([question], 4) == [encoder.example(question)]
    assert encoder.examples([], 4) == encoder.examples(documents(""), 4) == []
