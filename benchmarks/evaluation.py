"""Measures how fast a model is evaluated: the probes of tofu/forget10 in the engine, over one example at a time.

    python benchmarks/evaluation.py [--model FOLDER] [--items N] [--device cuda] [--rows-json FILE]

One at a time means `model.generate` for each prompt and a plain forward pass for each answer. It is timed on a part of
the examples, before and after the engine, and extrapolated by the number of tokens. The numbers must agree:
log-probabilities to 1e-4, generations up to the first step whose two best logits are closer than that.

Each ratio is shown with its bound in floating-point operations: the operations of one at a time, over those that are
necessary when every shared prefix is computed once, there is no padding, and logits are computed only where they
predict. A bound is on the work and not on its speed: one row at a time reads all weights for each token, so a batch may
be faster than its bound.

Without a model it takes SmolLM2-135M's shape with random weights; without REGRADE_DATA, invented questions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from timing import seconds
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from suite.engines import Job, TransformersEngine
from suite.engines.questions import Questions
from suite.engines.transformers.packing import common
from suite.models.checkpoints import SavedCheckpoint
from suite.models.encoding import Encoded, Encoder, Template
from suite.models.loading import load_tokenizer, save
from tasks import TASKS
from tasks.task import Item, Probe, ProbeKind, Sample, Split, Subset, limited

T = TypeVar("T")

CLOSE = 1e-4
NEW_TOKENS = 200
SEED = 0


class RecordingEncoder(Encoder):
    """An encoder that records which ids were decoded: the generated tokens, in the order of the samples."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.tokenizer, encoder.template)
        self.decoded: list[tuple[int, ...]] = []

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        self.decoded.append(tuple(ids))
        return super().decode(ids, stop)


@dataclass(frozen=True)
class Part:
    """A line of the table: seconds for all examples, and operations one at a time and as needed."""

    part: str
    examples: int
    tokens: int
    one_by_one_s: float
    engine_s: float
    one_by_one_flop: float
    needed_flop: float

    @property
    def figures(self) -> dict[str, float]:
        return {
            "ratio": self.one_by_one_s / self.engine_s,
            "bound": self.one_by_one_flop / self.needed_flop,
            "one_by_one_gflop_s": self.one_by_one_flop / self.one_by_one_s / 1e9,
            "engine_gflop_s": self.needed_flop / self.engine_s / 1e9,
        }


@dataclass(frozen=True)
class Work:
    """Operations of a forward pass; a multiplication with its addition counts as two."""

    linear: int
    attention: int
    logits: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Work:
        config, vocabulary = model.config, model.get_output_embeddings().weight
        embeddings = {id(vocabulary), id(model.get_input_embeddings().weight)}
        linear = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = 2 * config.num_hidden_layers * config.num_attention_heads * head
        return cls(2 * linear, 2 * attention, 2 * vocabulary.numel())

    def tokens(self, first: int, last: int, predicting: int) -> float:
        """Operations of the tokens `first` to `last` - 1 of a text, each attending to itself and all before it."""
        n = last - first
        return n * self.linear + self.attention * (first + 1 + last) * n / 2 + predicting * self.logits

    def tree(self, texts: Iterable[Sequence[int]]) -> float:
        """Operations of all tokens of some texts, shared prefixes counted once, without logits."""
        total, before = 0.0, ()
        for text in sorted(map(tuple, texts)):
            total += self.tokens(common(before, text), len(text), 0)
            before = text
        return total


def log_probability(model: PreTrainedModel, folder: Path, encoder: Encoder, probes: list[Probe], part: int) -> Part:
    texts = [request.text for request in Questions(encoder, probes).score_requests]
    chosen = texts[::part]
    found: dict[Encoded, list[float]] = {}

    def alone(text: Encoded) -> None:
        logits = model(input_ids=torch.tensor([text.ids], device=model.device), use_cache=False).logits[0]
        logprobs = logits.float().log_softmax(-1)[text.start - 1 : -1]
        found[text] = logprobs.gather(-1, torch.tensor(text.answer, device=model.device)[:, None])[:, 0].tolist()

    engine = TransformersEngine(encoder, dtype="float32", device=model.device)
    samples, of_engine, of_one = between(chosen, alone, engine, folder, probes)
    differences = [0.0]
    for probe in probes:
        for item, sample in zip(probe.items, samples[probe.name], strict=True):
            for answer, ours in zip(answers(probe, item), token_sums(sample), strict=True):
                text = encoder.answer(item, answer)
                if text in found:
                    differences.append(abs(ours - sum(found[text])) / len(found[text]))
    check(f"log-probabilities per token: largest difference {max(differences):.1e}", max(differences) < CLOSE)

    work, every = Work.of(model), sum(len(t.ids) for t in texts)
    # A position that predicts for several texts is computed once.
    predicting = len({t.ids[:n] for t in texts for n in range(t.start, len(t.ids))})
    return Part(
        "log-probability",
        len(texts),
        every,
        of_one * every / sum(len(t.ids) for t in chosen),
        of_engine,
        sum(work.tokens(0, len(t.ids), len(t.ids)) for t in texts),
        work.tree(t.ids[:-1] for t in texts) + predicting * work.logits,
    )


def generation(model: PreTrainedModel, folder: Path, encoder: Encoder, probes: list[Probe], part: int) -> Part:
    recording = RecordingEncoder(encoder)
    prompts = [recording.prompt(item) for probe in probes for item in probe.items]
    chosen = list(dict.fromkeys(prompts))[::part]
    found: dict[tuple[int, ...], tuple[int, ...]] = {}

    def alone(prompt: tuple[int, ...]) -> None:
        ids = torch.tensor([prompt], device=model.device)
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=probes[0].max_new_tokens,
            do_sample=False,
            eos_token_id=recording.eos,
            pad_token_id=recording.eos,
        )
        found[prompt] = tuple(new[0, len(prompt) :].tolist())

    engine = TransformersEngine(recording, dtype="float32", device=model.device)
    _, of_engine, of_one = between(chosen, alone, engine, folder, probes)
    ours = dict(zip(prompts, recording.decoded, strict=True))
    steps = {p: len(new) + (len(new) < probes[0].max_new_tokens) for p, new in ours.items()}
    for prompt, theirs in found.items():
        ended = theirs[:-1] if theirs[-1] == recording.eos else theirs
        shared = common(ours[prompt], ended)
        if shared < max(len(ended), len(ours[prompt])):
            ids = torch.tensor([[*prompt, *ended[:shared]]], device=model.device)
            best, second = model(input_ids=ids).logits[0, -1].topk(2).values.tolist()
            check(
                f"generations: diverge at step {shared}, where logits differ by {best - second:.1e}",
                best - second < CLOSE,
            )
    check(f"generations: {len(found)} compared, {sum(map(len, found.values()))} tokens", True)

    work, total = Work.of(model), sum(steps.values())
    # The first token comes from the last position of the prompt, and the last token is not an input.
    later = sum(work.tokens(len(p), len(p) + n - 1, n) for p, n in steps.items())
    return Part(
        "generation",
        len(steps),
        total,
        of_one * total / sum(map(len, found.values())),
        of_engine,
        later + sum(work.tokens(0, len(p), 0) for p in steps),
        later + work.tree(steps),
    )


def between(
    chosen: Sequence[T], alone: Callable[[T], None], engine: TransformersEngine, folder: Path, probes: Sequence[Probe]
) -> tuple[dict[str, tuple[Sample, ...]], float, float]:
    """The engine's samples and seconds, and the seconds of one at a time, half before and half after the engine."""
    alone(chosen[0])
    ask(engine, folder, ())  # builds the model; its weights are loaded again later
    half = len(chosen) // 2
    before = seconds(lambda: [alone(one) for one in chosen[:half]])
    answers: list[dict[str, tuple[Sample, ...]]] = []
    of_engine = seconds(lambda: answers.append(ask(engine, folder, probes)))
    after = seconds(lambda: [alone(one) for one in chosen[half:]])
    return answers[0], of_engine, before + after


def ask(engine: TransformersEngine, folder: Path, probes: Sequence[Probe]) -> dict[str, tuple[Sample, ...]]:
    (answer,) = engine.submit([Job("benchmark", SavedCheckpoint(folder), tuple(probes))])
    return dict(answer.samples)


def answers(probe: Probe, item: Item) -> tuple[str, ...]:
    return item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)


def token_sums(sample: Sample) -> tuple[float, ...]:
    return sample.choice_logprobs if sample.choice_logprobs else (sum(sample.token_logprobs or ()),)


def check(message: str, holds: bool) -> None:
    print(f"  {message}")
    if not holds:
        sys.exit("the numbers do not agree")


def questions(items: int) -> tuple[str, list[Probe]]:
    """The test probes of tofu/forget10, their first items each, or as many invented ones of the same lengths."""
    if os.environ.get("REGRADE_DATA"):
        return "tofu/forget10", list(limited(TASKS["tofu/forget10"].build().probes_of(Split.TEST), items))
    draw = random.Random(SEED)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(2000)]

    def sentence(mean: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(mean // 2, mean * 3 // 2)))

    def probe(name: str, subset: Subset, kind: ProbeKind, of: Sequence[Item]) -> Probe:
        return Probe(name, subset, Split.TEST, kind, tuple(of), (), max_new_tokens=NEW_TOKENS)

    probes = []
    for subset in Subset:
        # A question, and how its answer begins; a paraphrase and five wrong answers begin like the answer.
        examples = [(f"{sentence(16)}?", sentence(12), [sentence(16) for _ in range(7)]) for _ in range(items)]
        right = [Item(f"{n}", q, (f"{begin} {ends[0]}",)) for n, (q, begin, ends) in enumerate(examples)]
        choices = [
            Item(f"{n}", q, tuple(f"{begin} {end}" for end in ends[1:])) for n, (q, begin, ends) in enumerate(examples)
        ]
        probes.append(probe(f"{subset}_qa", subset, ProbeKind.LOGPROB, right))
        probes.append(probe(f"{subset}_generated", subset, ProbeKind.GENERATE, right))
        probes.append(probe(f"{subset}_paraphrase", subset, ProbeKind.CHOICE, choices))
    return "invented", probes


def random_model(folder: Path, texts: Iterable[str]) -> None:
    """SmolLM2-135M's shape with random weights, and a tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    save(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>"), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; by default random weights")
    parser.add_argument("--items", type=int, default=24, help="questions of each probe (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (default: %(default)s)")
    parser.add_argument("--rows-json", type=Path, help="file for the table, a list of rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source, probes = questions(args.items)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder = args.model or Path(scratch)
        if not args.model:
            random_model(folder, (f"{i.prompt} {' '.join(i.answers)}" for p in probes for i in p.items))
        tokenizer = load_tokenizer(folder)
        encoder = Encoder(tokenizer, Template.CHAT if tokenizer.chat_template else Template.PLAIN)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        model = model.to(args.device).eval()
        print(f"{source}, {args.items} items a probe, {args.model or 'random weights'}, {args.device}, fp32")
        scored = [probe for probe in probes if probe.kind is not ProbeKind.GENERATE]
        generated = [probe for probe in probes if probe.kind is ProbeKind.GENERATE]
        parts = [
            generation(model, folder, encoder, generated, max(1, len(generated) * args.items // 8)),
            log_probability(model, folder, encoder, scored, 4),
        ]
    columns = zip(*([v for v in asdict(p).values() if not isinstance(v, str)] for p in parts), strict=True)
    parts.append(Part("whole", *(sum(column) for column in columns)))
    rows = [asdict(part) | part.figures for part in parts]
    table(rows)
    if args.rows_json:
        args.rows_json.write_text(json.dumps(rows, indent=1))


def table(rows: Sequence[dict]) -> None:
    head = ("part", "examples", "tokens", "one by one, s", "engine, s", "ratio", "bound", "GFLOP/s one", "engine")
    keys = ("examples", "tokens", "one_by_one_s", "engine_s", "ratio", "bound", "one_by_one_gflop_s", "engine_gflop_s")
    print("".join(f"{word:>16s}" for word in head))
    for row in rows:
        numbers = (f"{row[key]:16d}" if isinstance(row[key], int) else f"{row[key]:16.2f}" for key in keys)
        print(f"{row['part']:>16s}" + "".join(numbers))


if __name__ == "__main__":
    main()
