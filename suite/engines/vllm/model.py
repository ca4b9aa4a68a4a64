"""vLLM in this process: one architecture, and any number of checkpoints, one after another.

vLLM changes its process (threads, random numbers, torch.distributed, classes of transformers), and after one failed
reload it gives wrong results for good. So nothing else runs in this process, and its owner ends it when `load` raises.

There is no tokenizer: token ids come in, token ids and numbers go out.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file

from suite.engines.sampling import Draw
from suite.engines.scores import Score
from suite.engines.vllm.transport import FileSource, WeightSource
from suite.models.encoding import Encoded

Request = TypeVar("Request")
Answer = TypeVar("Answer")

BLOCK = 32
"""Positions per block of the key-value cache on a CPU, the smallest that vLLM's kernels support there."""


class StaleWeights(RuntimeError):
    """The numbers that the engine computes with are not those of the checkpoint. Internal: another engine
    takes over, or the job has failed."""


@dataclass(frozen=True)
class EngineConfig:
    """The configuration that an engine is started with. It can then run any checkpoint of the same architecture.

    Attributes:
        architecture: folder with config.json; no weights are read from it.
        model_config: content of that file: folders with the same one share an engine.
        length: maximum text length, in tokens.
        gpu: whether it computes on a GPU.
        gpu_memory: share of the GPU's memory that the engine may take.
        cache_gib: memory for keys and values on a CPU.
        eager: whether nothing is compiled. Compiling takes a minute at the start on a GPU and makes decoding faster.
        batch_invariant: whether results must be the same to the last bit whatever else is in the batch.
        sleeps: whether the engine frees the GPU between requests.
        lora_rank: largest rank of unmerged adapters; 0 for none, which is faster.
    """

    architecture: Path = field(compare=False)
    model_config: str
    dtype: str
    length: int
    gpu: bool = False
    tensor_parallel: int = 1
    gpu_memory: float = 0.9
    cache_gib: float = 1.0
    eager: bool = False
    batch_invariant: bool = False
    sleeps: bool = False
    lora_rank: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to continue, greedily or by sampling.

    Attributes:
        ids: its tokens.
        limit: maximum length of the continuation, in tokens.
        stop: token ids that end the continuation; they are part of it.
    """

    ids: tuple[int, ...]
    limit: int
    stop: tuple[int, ...]
    draw: Draw | None = None


def environment(config: EngineConfig, threads: int) -> dict[str, str]:
    """Environment variables that must be set in the process before vLLM is imported."""
    exact = {"TRITON_F32_DEFAULT": "ieee"} if config.dtype == "float32" else {}  # otherwise attention uses TF32
    return exact | {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # CPUs support only the first one, and `draws` is written for it
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run the engine in this process, not in a child
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_BATCH_INVARIANT": str(int(config.batch_invariant)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the cluster assigns the cores
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class VllmModel:
    """vLLM with the weights of one checkpoint at a time.

    Raises:
        Exception: vLLM does not start: too little memory, an unsupported architecture, ...
    """

    def __init__(self, config: EngineConfig) -> None:
        from vllm import LLM

        self.config = config
        options: dict[str, Any] = (
            {"gpu_memory_utilization": config.gpu_memory, "enable_sleep_mode": config.sleeps}
            if config.gpu
            else {"kv_cache_memory_bytes": int(config.cache_gib * 2**30), "block_size": BLOCK}
        )
        if config.tensor_parallel > 1:
            options["distributed_executor_backend"] = "mp"  # inside an actor vLLM would use Ray, and GPUs of others
        if config.lora_rank:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": config.lora_rank}
        self._llm = LLM(
            model=str(config.architecture),
            dtype=config.dtype,
            load_format="dummy",
            skip_tokenizer_init=True,
            trust_remote_code=False,
            generation_config="vllm",
            max_model_len=config.length,
            tensor_parallel_size=config.tensor_parallel,
            seed=0,
            enforce_eager=config.eager,
            worker_extension_cls="suite.engines.vllm.weights.SwapExtension",
            logits_processors=["suite.engines.vllm.draws:DrawnTokens"],
            **options,
        )
        self._asleep = False
        self._adapter: Any = None
        self._adapter_count = 0

    def load(self, weights: WeightSource) -> float:
        """Compute with these weights from now on. Returns the seconds that loading took.

        Raises:
            CheckpointError: a file is damaged.
            StaleWeights: not all of them arrived.
            Exception: any other failure. After any of these errors the process must be ended.
        """
        from suite.engines.vllm.weights import arrived

        begun = time.perf_counter()
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        with _within_reach(weights, self.config.tensor_parallel) as reachable:
            workers = self._llm.collective_rpc("swap", args=(reachable,))
        if not arrived(workers):
            raise StaleWeights(
                "the weights that vLLM computes with are not the checkpoint's: a tensor kept its old value, or this "
                "architecture's weights are changed while they are loaded. Use the transformers engine for it"
            )
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._forget_prefixes()
        return time.perf_counter() - begun

    def adapt(self, adapter: Path | None) -> None:
        """Apply an adapter in peft's format, or none, to all requests from now on."""
        from vllm.lora.request import LoRARequest

        self._adapter_count += 1  # vLLM identifies adapters by number, and files may have been overwritten
        self._adapter = LoRARequest(str(adapter), self._adapter_count, str(adapter)) if adapter else None

    def sleep(self) -> None:
        """Free the GPU. Weights must be loaded before the next request."""
        self._llm.sleep(level=2)
        self._asleep = True

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int] | None]:
        """New tokens after each prompt, including the `stop` token that ended the continuation.

        None where the model's logits are not finite: what it says then is an accident of the implementation.
        """

        def ask(waiting: Sequence[Prompt]) -> list[list[int] | None]:
            self._llm.collective_rpc("watch", args=(len(waiting),))
            params = [_sampling(prompt, number) for number, prompt in enumerate(waiting)]
            outputs = self._run([prompt.ids for prompt in waiting], params)
            nothing = {number for worker in self._llm.collective_rpc("nothing") for number in worker}
            return [None if n in nothing else list(a.outputs[0].token_ids) for n, a in enumerate(outputs)]

        return self._asked(prompts, ask, lambda new: new is not None)

    def score(self, texts: Sequence[Encoded]) -> list[Score]:
        """Log-probability of each text's answer, by token. A slow path of vLLM, which bypasses its prefix cache."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)

        def ask(waiting: Sequence[Encoded]) -> list[Score]:
            outputs = self._run([text.ids for text in waiting], [params] * len(waiting))
            return [_score(text, output.prompt_logprobs) for text, output in zip(waiting, outputs, strict=True)]

        return self._asked(texts, ask, lambda score: score.known)

    def _asked(
        self,
        requests: Sequence[Request],
        ask: Callable[[Sequence[Request]], list[Answer]],
        finite: Callable[[Answer], bool],
    ) -> list[Answer]:
        """The answers in the order of the requests, each as if nothing had been computed before it.

        NaN stays in blocks of the cache that others use later: vLLM masks it, and on a CPU 0 times NaN is NaN. So the
        cache is cleaned, and what was not finite is asked again for as long as some of it turns out to be.
        """
        answers: dict[int, Answer] = {}
        waiting = list(range(len(requests)))
        while waiting:
            answers |= zip(waiting, ask([requests[i] for i in waiting]), strict=True)
            again = [i for i in waiting if not finite(answers[i])]
            if again:
                self._llm.collective_rpc("clean")
                self._forget_prefixes()
            waiting = again if len(again) < len(waiting) else []
        return [answers[i] for i in range(len(requests))]

    def _forget_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise StaleWeights("vLLM kept what it had cached of the weights before")

    def _run(self, texts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        return self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in texts],
            list(params),
            use_tqdm=False,
            lora_request=self._adapter,
        )


def _sampling(prompt: Prompt, number: int) -> Any:
    from vllm import SamplingParams

    draw = {"draw": (prompt.draw.temperature, prompt.draw.key.hex())} if prompt.draw else {}
    return SamplingParams(
        temperature=0.0,
        max_tokens=prompt.limit,
        ignore_eos=True,
        stop_token_ids=list(prompt.stop),
        detokenize=False,
        extra_args={"number": number, **draw},
    )


def _score(text: Encoded, prompt_logprobs: Sequence[Mapping[int, Any] | None]) -> Score:
    # Only a text's first token is not predicted.
    predicted = [entries for entries in prompt_logprobs[text.start :] if entries is not None]
    chosen = [entries[token] for entries, token in zip(predicted, text.answer, strict=True)]
    logprobs = tuple(entry.logprob for entry in chosen)
    known = not any(map(math.isnan, logprobs))
    return Score(logprobs, tuple(entry.rank == 1 for entry in chosen) if known else None)


@contextmanager
def _within_reach(weights: WeightSource, workers: int) -> Iterator[WeightSource]:
    """Weights in a form that every worker of an engine can read: mapped bytes cannot be sent to other processes."""
    if workers == 1 or isinstance(weights, FileSource):
        yield weights
        return
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        file, tensors = Path(folder) / "weights.safetensors", dict(weights.tensors())
        save_file(tensors, file)
        yield FileSource({file: tuple(tensors)})
