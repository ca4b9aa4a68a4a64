"""vLLM in this process, which it then owns: one architecture, any number of checkpoints, one after another.

vLLM changes the process that it lives in (threads, random numbers, torch.distributed, classes of transformers), and
after one reload that failed it answers wrongly for good. So nothing else runs here, and whoever holds this process ends
it when `load` raises.

Tokenizers stay outside: token ids come in, token ids and numbers go out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from suite.engines.sampling import Draw
from suite.engines.scores import Score
from suite.engines.vllm.transport import FileSource, WeightSource
from suite.models.encoding import Encoded

BLOCK = 32
"""Positions of a block of the cache, on a CPU: vLLM's kernels there take no smaller one."""


class StaleWeights(RuntimeError):
    """The numbers that the engine computes with are not those of the checkpoint."""


@dataclass(frozen=True)
class Start:
    """What an engine is started with. Any checkpoint of the same architecture can be asked without starting another.

    Attributes:
        architecture: folder with config.json; no weights are read from it.
        config: content of that file: folders with the same one share an engine.
        length: longest text, in tokens.
        gpu: whether it computes on a GPU.
        gpu_memory: share of the GPU's memory that the engine may take.
        cache_gib: memory for keys and values on a CPU.
        eager: whether nothing is compiled: on a GPU that takes a minute at the start and makes decoding faster.
        batch_invariant: whether an answer is to be the same to the last bit whatever else is in the batch.
        sleeps: whether the engine leaves the GPU to others between questions.
        lora_rank: largest rank of adapters that may lie beside the weights; 0 for none, which is faster.
    """

    architecture: Path = field(compare=False)
    config: str
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
    """A prompt to continue, greedily or as drawn.

    Attributes:
        limit: longest continuation, in tokens.
        stop: ids after which nothing more is wanted; they are part of the continuation.
    """

    prompt: tuple[int, ...]
    limit: int
    stop: tuple[int, ...]
    draw: Draw | None = None


def environment(start: Start, threads: int) -> dict[str, str]:
    """Variables that the process has to have before vLLM is imported."""
    exact = {"TRITON_F32_DEFAULT": "ieee"} if start.dtype == "float32" else {}  # else attention multiplies in TF32
    return exact | {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # CPUs have the other one alone, and random draws are written for it
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine here, not in a process of its own beside this one
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_BATCH_INVARIANT": str(int(start.batch_invariant)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are the cluster's to give
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class VllmModel:
    """vLLM with the weights of one checkpoint at a time.

    Raises:
        Exception: vLLM does not start: too little memory, an architecture that it lacks, ...
    """

    def __init__(self, start: Start) -> None:
        from vllm import LLM

        self.start = start
        more: dict[str, Any] = (
            {"gpu_memory_utilization": start.gpu_memory, "enable_sleep_mode": start.sleeps}
            if start.gpu
            else {"kv_cache_memory_bytes": int(start.cache_gib * 2**30), "block_size": BLOCK}
        )
        if start.tensor_parallel > 1:
            more["distributed_executor_backend"] = "mp"  # within an actor vLLM would take Ray, and GPUs of others
        if start.lora_rank:
            more |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": start.lora_rank}
        self._llm = LLM(
            model=str(start.architecture),
            dtype=start.dtype,
            load_format="dummy",
            skip_tokenizer_init=True,
            generation_config="vllm",
            max_model_len=start.length,
            tensor_parallel_size=start.tensor_parallel,
            seed=0,
            enforce_eager=start.eager,
            worker_extension_cls="suite.engines.vllm.weights.Swapping",
            logits_processors=["suite.engines.vllm.draws:DrawnTokens"],
            **more,
        )
        self._asleep = False
        self._adapter: Any = None
        self._adapted = 0

    def load(self, weights: WeightSource) -> float:
        """Compute with these weights from now on. Seconds that it took.

        Raises:
            CheckpointError: a file is damaged.
            StaleWeights: not all of them arrived.
            Exception: anything else that goes wrong. After any of these the process is to be ended.
        """
        from suite.engines.vllm.weights import arrived

        begun = time.perf_counter()
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        with _within_reach(weights, self.start.tensor_parallel) as given:
            workers = self._llm.collective_rpc("swap", args=(given,))
        if not arrived(workers):
            raise StaleWeights(
                "the weights that vLLM computes with are not the checkpoint's: a tensor kept its old value, or this "
                "architecture's weights are changed while they are loaded. Use the transformers engine for it"
            )
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise StaleWeights("vLLM kept what it had cached of the weights before")
        return time.perf_counter() - begun

    def adapt(self, adapter: Path | None) -> None:
        """Put an adapter beside the weights, or none, for all questions from now on. peft's files are read."""
        from vllm.lora.request import LoRARequest

        self._adapted += 1  # vLLM knows adapters by number, and files may have been written again
        self._adapter = LoRARequest(str(adapter), self._adapted, str(adapter)) if adapter else None

    def sleep(self) -> None:
        """Leave the GPU to others. Weights have to be loaded before the next question."""
        self._llm.sleep(level=2)
        self._asleep = True

    def continued(self, asks: Sequence[Prompt]) -> list[list[int]]:
        """New tokens after each prompt, the one that ended it included where it is one of `stop`."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=ask.limit,
                ignore_eos=True,
                stop_token_ids=list(ask.stop),
                detokenize=False,
                extra_args={"draw": (ask.draw.temperature, ask.draw.key.hex())} if ask.draw else None,
            )
            for ask in asks
        ]
        return [list(output.outputs[0].token_ids) for output in self._run([ask.prompt for ask in asks], params)]

    def scored(self, texts: Sequence[Encoded]) -> list[Score]:
        """Log-probability of each text's answer, by token. A slow path of vLLM: it reads nothing from its cache."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._run([text.ids for text in texts], [params] * len(texts))
        return [_score(text, output.prompt_logprobs) for text, output in zip(texts, outputs, strict=True)]

    def _run(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        return self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            list(params),
            use_tqdm=False,
            lora_request=self._adapter,
        )


def _score(text: Encoded, prompt_logprobs: Sequence[Mapping[int, Any] | None]) -> Score:
    found = [prompt_logprobs[place][text.ids[place]] for place in range(text.start, len(text.ids))]
    return Score(tuple(one.logprob for one in found), tuple(one.rank == 1 for one in found))


@contextmanager
def _within_reach(weights: WeightSource, workers: int) -> Iterator[WeightSource]:
    """Weights as every worker of an engine can get at them: bytes do not survive the way to other processes."""
    if workers == 1 or isinstance(weights, FileSource):
        yield weights
        return
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        file, tensors = Path(folder) / "weights.safetensors", dict(weights.tensors())
        save_file(tensors, file)
        yield FileSource({file: tuple(tensors)})
