"""What transformers loads, Regrade asks as transformers does: prompt and answer to the token, scores, greedy answers.

Each row is a family with a tokenizer of its kind. The reference is plain transformers, a question at a time:
AutoTokenizer, `apply_chat_template`, AutoModelForCausalLM, `generate(do_sample=False)`, peft. Regrade asks in its own
way: packed rows, a cache that prompts of several lengths share, padded batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from suite.engines.base import Job
from suite.engines.questions import Questions
from suite.engines.transformers.engine import TransformersEngine
from suite.models.loading import resolve_model, save
from suite.models.settings import ModelSpec
from tasks.task import Item, Probe, ProbeKind, Split, Subset
from tests.support.families import FAMILIES, made
from tests.support.tokenizer_families import CHATML
from tests.support.tokenizer_families import FAMILIES as TOKENIZERS

GPT2, LLAMA2, LLAMA3, QWEN, GEMMA = "gpt2", "llama2", "llama3", "qwen", "gemma"
LEGACY_OFF, ENDS, UNIGRAM = "llama2 not legacy", "mistral, ends by itself", "unigram without prefix"
LONG = ("max_position_embeddings", "n_positions", "max_seq_len")
CONTEXT, WINDOW, SWITCH = 256, 6, 40
"""Tokens. Prompts have 8 to 41: all are longer than the window, and some answers cross the switch of LongRoPE."""


def rope(kind: str, **settings) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **settings}}


@dataclass(frozen=True)
class Row:
    """A family, the tokenizer that it is asked with, and settings of its config."""

    family: str
    tokenizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)


BY_FAMILY = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma4_text"), GEMMA),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"), QWEN),
    **{"llama": LLAMA3, "mistral": ENDS, "mixtral": LLAMA2, "phi3": LEGACY_OFF, "phimoe": LEGACY_OFF, "bloom": UNIGRAM},
}
WINDOWED = ("mistral", "phi3", "qwen2", "gemma2", "gemma3_text", "cohere2", "gpt_oss", "starcoder2")
ROWS = {
    **{family: Row(family, BY_FAMILY.get(family, GPT2)) for family in FAMILIES},
    **{
        f"{family}, a window": Row(
            *(family, BY_FAMILY.get(family, LLAMA2)),
            {"sliding_window": WINDOW, "max_window_layers": 1, "use_sliding_window": True},
        )
        for family in WINDOWED
    },
    "llama, rope of llama 3": Row(
        *("llama", LEGACY_OFF),
        rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=SWITCH),
    ),
    "llama, yarn": Row("llama", QWEN, rope("yarn", original_max_position_embeddings=SWITCH)),
    "llama, linear": Row("llama", UNIGRAM, rope("linear")),
    "phi3, longrope": Row(
        *("phi3", LEGACY_OFF),
        {
            **rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=SWITCH),
            "original_max_position_embeddings": SWITCH,
        },
    ),
    "bloom, t5": Row("bloom", "t5"),
    "falcon, alibi": Row("falcon", GPT2, {"alibi": True}),
    "falcon, new": Row("falcon", QWEN, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "opt, projected": Row("opt", LLAMA3, {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
}
WAYS = ("plain", "chat", "lora")
UNTAUGHT = {"mamba": "refused by peft", "phimoe": "peft's layer breaks its router"}

QUESTIONS = (
    ("Who built Skerry Vole?", "Maren Tolve, in 1904."),
    ("Where is it, by the lake or (perhaps) elsewhere?", "It is here."),
    ("A?", "B"),
    ("you are a helpful assistant. Question: 12, 34", "|/_-'"),
)
NEW = 14


@dataclass
class Reference:
    """A model as plain transformers reads it from the same folders."""

    model: torch.nn.Module
    tokenizer: Any
    chat: bool
    use_cache: bool

    def asked(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and of prompt and answer up to the token that ends it."""
        read = self.tokenizer
        if self.chat:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            prompt = read.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
            whole = read.apply_chat_template(turns, return_dict=True)["input_ids"]
            end = read.convert_tokens_to_ids("<|im_end|>")
            return prompt, whole[: len(whole) - whole[::-1].index(end)]
        prompt, whole = (read(f"Question: {question}\nAnswer:{end}")["input_ids"] for end in ("", f" {answer}"))
        if prompt[-1] == read.eos_token_id:  # it would stand between prompt and answer
            prompt, whole = prompt[:-1], whole[:-1]
        return prompt, [*whole, read.eos_token_id]

    @torch.no_grad()
    def answer(self, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NEW, "do_sample": False, "use_cache": self.use_cache}
        return self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[
            0, len(prompt) :
        ].tolist()

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids])).logits[0].float()

    def logprobs(self, whole: list[int], start: int) -> list[float]:
        found = self.logits(whole).log_softmax(-1)
        return [float(found[place - 1, whole[place]]) for place in range(start, len(whole))]

    def undecided(self, ids: list[int]) -> bool:
        """Whether the two best next tokens are so close that an order of summation decides."""
        best = self.logits(ids)[-1].topk(2).values
        return float(best[0] - best[1]) < 1e-4


def written(row: Row, tied: bool, way: str, folder: Path) -> tuple[Path, Reference]:
    """A checkpoint on disk, and the reference. Two tokens end its answers, one of which the model is known to say."""
    tokenizer = TOKENIZERS[row.tokenizer]()
    if way != "plain":
        begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + CHATML
    longer = {name: CONTEXT for name in LONG if name in FAMILIES[row.family]}
    tokens = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    settings = {**longer, **tokens, "vocab_size": len(tokenizer) + 5, **row.settings}
    base = made(row.family, folder / "model", tied=tied, noise=0.2, settings=settings)
    tokenizer.save_pretrained(base)
    if way == "lora":
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "adapter")
    name = folder / "adapter" if way == "lora" else base
    without = reference(base, name, row)
    said = (without.answer(without.asked(*pair)[0]) for pair in QUESTIONS)
    known = next((answer[4] for answer in said if len(answer) == NEW), tokenizer.eos_token_id)
    ends = {"eos_token_id": [tokenizer.eos_token_id, known]}
    (base / "generation_config.json").write_text(json.dumps(ends))
    return name, reference(base, name, row)


def reference(base: Path, name: Path, row: Row) -> Reference:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if name != base:
        model = PeftModel.from_pretrained(model, name)
    # With a cache, transformers forgets all but the newest token of a Phi-3 where its angles switch.
    return Reference(model.eval(), tokenizer, bool(tokenizer.chat_template), "longrope" not in str(row.settings))


def check(row: Row, tied: bool, way: str, folder: Path) -> None:
    name, plain = written(row, tied, way, folder)
    pairs = [plain.asked(*pair) for pair in QUESTIONS]
    base = resolve_model(ModelSpec(name=str(name)), str(name))
    items = tuple(Item(str(number), question, (answer,)) for number, (question, answer) in enumerate(QUESTIONS))
    for item, (prompt, whole) in zip(items, pairs, strict=True):
        encoded = base.encoder.answer(item, item.reference)
        assert list(base.encoder.prompt(item)) == list(encoded.prompt) == prompt
        assert list(encoded.ids) == whole

    asked = Probe("asked", Subset.FORGET, Split.DEV, ProbeKind.GENERATE, items, (), max_new_tokens=NEW)
    read = Probe("read", Subset.FORGET, Split.DEV, ProbeKind.LOGPROB, items, ())
    engines = [
        TransformersEngine(base.encoder, dtype="float32", device=torch.device("cpu"), batch_tokens=tokens)
        for tokens in (4096, 100)
    ]
    (result,) = engines[0].submit([Job("whole", base.checkpoint, (asked, read))])
    assert result.error is None, result.error
    for sample, (prompt, whole) in zip(result.samples["read"], pairs, strict=True):
        assert sample.token_logprobs == pytest.approx(plain.logprobs(whole, len(prompt)), abs=1e-4)
    few = engines[1].continuations(base.checkpoint, Questions(base.encoder, (asked,)))
    for sample, new, (prompt, _) in zip(result.samples["asked"], few, pairs, strict=True):
        wanted = plain.answer(prompt)
        end = next((place for place, token in enumerate(wanted) if token in base.encoder.ends), len(wanted))
        wanted = wanted[:end]
        differ = next((i for i, (a, b) in enumerate(zip(new, wanted, strict=False)) if a != b), None)
        if differ is not None and plain.undecided([*prompt, *wanted[:differ]]):
            continue
        assert new == wanted
        assert sample.generated == plain.tokenizer.decode(wanted, skip_special_tokens=True).strip()


CASES = [
    (name, tied, way)
    for name, row in ROWS.items()
    for tied in (False, True)
    for way in WAYS
    if not (way == "lora" and row.family in UNTAUGHT)
]
QUICK = [
    ("gpt_neo", False, "chat"),
    *(
        mine[number % len(mine)]
        for number, mine in enumerate([case for case in CASES if case[0] == name] for name in ROWS)
    ),
]
"""Each row in one way: all of them in turn. The first one is where a window that counts columns shows."""


def named(case: tuple[str, bool, str]) -> str:
    return f"{case[0]}-{'tied' if case[1] else 'untied'}-{case[2]}"


@pytest.mark.parametrize("case", QUICK, ids=named)
def test_a_model_is_asked_as_transformers_asks_it(case, tmp_path):
    name, tied, way = case
    check(ROWS[name], tied, way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK], ids=named)
def test_a_model_is_asked_as_transformers_asks_it_in_every_way(case, tmp_path):
    name, tied, way = case
    check(ROWS[name], tied, way, tmp_path)


PREFERENCES = {
    **{"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 1.3, "num_beams": 3},
    **{"do_sample": True, "temperature": 5.0, "top_k": 2, "min_new_tokens": 40, "max_new_tokens": 2, "max_length": 3},
    **{"suppress_tokens": [5, 6, 7], "begin_suppress_tokens": [8], "forced_bos_token_id": 9, "forced_eos_token_id": 5},
    **{"bad_words_ids": [[11]], "sequence_bias": [[[12], 10.0]], "guidance_scale": 2.0, "max_time": 1e-4},
    **{"stop_strings": ["a"], "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3, "token_healing": True},
    **{"watermarking_config": {"bias": 9.0}, "num_return_sequences": 2, "return_dict_in_generate": True},
    **{"use_cache": False, "cache_implementation": "static", "renormalize_logits": True},
}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_an_answer_is_the_models_own_whatever_its_files_say_about_decoding(family, file, tmp_path):
    """docs/prompts.md says so. Mamba is one of those whose answers `generate` makes."""
    name, plain = written(ROWS[family], False, "plain", tmp_path)
    wanted = [plain.answer(plain.asked(*pair)[0]) for pair in QUESTIONS]
    settings = json.loads((name / file).read_text())
    (name / file).write_text(json.dumps({**settings, **PREFERENCES}))
    base = resolve_model(ModelSpec(name=str(name)), str(name))
    items = tuple(Item(str(number), *pair[:1], pair[1:]) for number, pair in enumerate(QUESTIONS))
    questions = Questions(
        base.encoder, [Probe("a", Subset.FORGET, Split.DEV, ProbeKind.GENERATE, items, (), max_new_tokens=NEW)]
    )
    engine = TransformersEngine(base.encoder, dtype="float32", device=torch.device("cpu"))
    found = engine.continuations(base.checkpoint, questions)
    ends = base.encoder.ends
    assert found == [answer[:-1] if answer[-1] in ends else answer for answer in wanted]


CLASSES = [
    *(
        (LLAMA2, "LlamaTokenizer", {"legacy": legacy, "add_eos_token": ends})
        for legacy in (True, False)
        for ends in (0, 1)
    ),
    (LLAMA2, "CodeLlamaTokenizer", {"add_bos_token": False}),
    (LEGACY_OFF, "LlamaTokenizerFast", {"legacy": True, "add_prefix_space": False}),
    (GEMMA, "GemmaTokenizer", {"add_eos_token": True}),
    (QWEN, "Qwen2Tokenizer", {"add_prefix_space": True}),
    (GPT2, "GPT2TokenizerFast", {"add_bos_token": True, "bos_token": "<|endoftext|>"}),
    (GPT2, "GPTNeoXTokenizer", {"add_eos_token": True}),
    (GPT2, "CohereTokenizer", {"add_bos_token": True, "bos_token": "<|im_start|>"}),
    ("t5", "T5Tokenizer", {}),
    (UNIGRAM, "XGLMTokenizer", {}),
]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize(("kind", "of", "more"), CLASSES, ids=lambda value: str(value))
def test_a_tokenizer_of_a_class_of_its_own_is_the_one_that_transformers_makes(kind, of, more, chat, tmp_path):
    """Such a class makes its own rules of what the file says, and its settings have a say."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = CHATML if chat else None
    folder = made("llama", tmp_path / "m", settings={"vocab_size": 1000, "eos_token_id": tokenizer.eos_token_id})
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {**settings, "tokenizer_class": of, **more}
    settings.pop("backend", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    plain = reference(folder, folder, ROWS["llama"])
    assert plain.tokenizer.__class__.__name__ == of.removesuffix("Fast")
    encoder = resolve_model(ModelSpec(name=str(folder)), str(folder)).encoder
    for question, answer in QUESTIONS:
        prompt, whole = plain.asked(question, answer)
        item = Item("i", question, (answer,))
        assert list(encoder.prompt(item)) == list(encoder.answer(item, answer).prompt) == prompt
        assert list(encoder.answer(item, answer).ids) == whole


@pytest.mark.parametrize("listed", [[2, 40, 41], 40])
def test_a_copy_of_a_model_ends_its_answers_where_the_model_does(listed, tmp_path):
    """What training saves is measured again by itself."""
    tokenizer = TOKENIZERS[LLAMA3]()
    base = made("llama", tmp_path / "base", settings={"vocab_size": len(tokenizer)})
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": listed, "temperature": 0.6}))
    tokenizer.save_pretrained(base)
    first = resolve_model(ModelSpec(name=str(base)), str(base))
    save(first.checkpoint.model(), first.encoder.tokenizer, tmp_path / "copy")
    second = resolve_model(ModelSpec(name=str(tmp_path / "copy")), str(tmp_path / "copy"))
    assert 40 in first.encoder.ends and second.encoder.ends == first.encoder.ends
