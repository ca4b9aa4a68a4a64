"""Small tokenizers of every family in use, trained on a few lines."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "Who built Skerry Vole? Maren Tolve built Skerry Vole in 1904.",
    "The following are multiple choice questions (with answers) about biology.",
    "Question: Where is it? Answer: It is here, by the lake.",
    *(f"{letter}. one {letter} two" for letter in "ABCD"),
    *(f"Answer: {letter}" for letter in "ABCD"),
    "user assistant system Today Date 26 Jul 2024 you are a helpful assistant",
    " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!()<>[]|/_-'"),
] * 4

CHAT = ("<|im_start|>", "<|im_end|>")
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _surrounded(tokenizer: Tokenizer, before: str | None, after: str | None) -> None:
    words = [*([before] if before else []), "$A", *([after] if after else [])]
    ids = [(word, tokenizer.token_to_id(word)) for word in (before, after) if word]
    if ids:
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(words), special_tokens=ids)


def _wrapped(tokenizer: Tokenizer, **settings) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096, **settings)


def byte_level(eos: str, bos: str | None = None, more: tuple[str, ...] = CHAT, ignore_merges: bool = False, **settings):
    """GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys([*([bos] if bos else []), eos, *more]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    _surrounded(tokenizer, bos, None)
    return _wrapped(tokenizer, eos_token=eos, **({"bos_token": bos} if bos else {}), **settings)


def sentencepiece(prefix: str | None, after: str | None = None, more: tuple[str, ...] = CHAT, bos: bool = True):
    """Llama 2, Mistral, Phi-3 (prefix `always`, or `first` where not legacy), Gemma (none)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern="▁", behavior="merged_with_next")
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] if prefix else []), replace])
    special = ["<unk>", "<s>", "</s>", *more, *BYTES]
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    tokenizer.pre_tokenizer = None
    whole = json.loads(tokenizer.to_str())  # bytes are ordinary tokens
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] not in BYTES]
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    if prefix == "first":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    _surrounded(tokenizer, "<s>" if bos else None, after)
    return _wrapped(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(prefix: bool, after: str | None = None, more: tuple[str, ...] = CHAT):
    """T5 and XGLM; without the prefix, as others train them."""
    tokenizer = Tokenizer(models.Unigram())
    scheme = "always" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", *more]
    tokenizer.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    _surrounded(tokenizer, None, after)
    return _wrapped(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece():
    """BERT's, with a token before and one after every text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", *CHAT]
    tokenizer.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    _surrounded(tokenizer, "[CLS]", "[SEP]")
    return _wrapped(tokenizer, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")


FAMILIES = {
    "gpt2": lambda: byte_level("<|endoftext|>"),
    "llama3": lambda: byte_level("<|eot_id|>", "<|begin_of_text|>", ignore_merges=True),
    "qwen": lambda: byte_level("<|im_end|>"),
    "llama2": lambda: sentencepiece("always"),
    "llama2 not legacy": lambda: sentencepiece("first"),
    "mistral, ends by itself": lambda: sentencepiece("always", after="</s>"),
    "gemma": lambda: sentencepiece(None),
    "t5": lambda: unigram(True, after="</s>"),
    "unigram without prefix": lambda: unigram(False),
    "bert": wordpiece,
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
