"""What a model's folder brings that is a small program is first run where it can do no harm.

A chat template is a program, a regular expression can take longer than the universe has, and a tokenizer's normalizer
can make gigabytes of a line. Each is tried once, in a process with limits, before this process uses it.

That process is a fresh interpreter, which imports only jinja2 or tokenizers: it is there after a tenth of a second
(the import of transformers' own renderer takes a whole one). A fork would be faster, but a process with threads (a Ray
worker, torch, tokenizers) must not go on in Python after a fork, and its memory would count against the limit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.config.errors import CheckpointError, ModelError, UnsuitableError
from suite.models.folder import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM = Path(__file__).with_name("rehearse.py")

SECONDS = 3
"""Of computing; a template takes milliseconds. The largest tokenizers take two seconds to read."""
SECONDS_TO_READ = 20
PATIENCE = 30
"""Seconds that may pass beyond those of computing, on a machine that is busy."""

MEMORY, MEMORY_TO_READ = 2**30, 4 * 2**30
"""Bytes of a template and of patterns; of a tokenizer, which may have a million tokens."""

LONGEST = 10**6
"""Characters that a template may write, and tokens that a tokenizer may make of a page."""

QUESTION, ANSWER = "What is it that you keep, and for how long?", "A lamp, since the spring."
CONVERSATIONS = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("user", "assistant"),
)
"""The shapes of conversations that a template is given, after a system turn if there is one. After a question the
model's turn is next."""

TEXT = (
    f"{QUESTION} {ANSWER}\n\tIt's 1,234.5 % of x_1 = (a+b)/c; été, Ünï, 東京, и so on...  'quoted' \"too\" #@$^&*\n" * 8
)
PAGE = f"{TEXT}{'a' * 400} {'ab' * 200} {'1' * 400}{' ' * 400}{chr(10) * 100}{'!' * 400}"


def rehearse_template(
    tokenizer: PreTrainedTokenizerBase,
    values: Mapping[str, Any] | None = None,
    date: datetime = datetime(2024, 7, 26),
    system: Sequence[Mapping[str, str]] = (),
) -> None:
    """Run a tokenizer's chat template on questions like those that it will be given.

    Args:
        values: its arguments.
        date: what it is told to be today.
        system: turns before the first question.

    Raises:
        UnsuitableError: it fails, or takes too long, too much memory, or writes too much, saying which.
    """
    where = f"model.template: the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
    try:
        template, special = tokenizer.get_chat_template(), tokenizer.special_tokens_map
    except Exception as error:
        raise UnsuitableError(f"{where} cannot be used: {one_line(error)}. Use model.template=plain") from None
    if not isinstance(template, str) or len(template) > LONGEST:
        raise UnsuitableError(f"{where} is no text of at most {LONGEST} characters. Use model.template=plain")
    given = (dict(special), dict(values or {}), date.isoformat(), list(system))
    if said := _template_fails(template, json.dumps(given, sort_keys=True)):
        raise UnsuitableError(f"{where} {said}. Use model.template=plain")


@cache
def _template_fails(template: str, given: str) -> str | None:
    special, values, date, system = json.loads(given)
    answer = rendered(template, special, values, datetime.fromisoformat(date), system)
    if "failed" in answer:
        return answer["failed"]
    first = answer["rendered"][0]  # a template may refuse turns before the question; who asks for them is told then
    return f"cannot be used: {first['error']}" if "error" in first else None


def rendered(
    template: str,
    special: Mapping[str, str],
    values: Mapping[str, Any] | None = None,
    date: datetime = datetime(2024, 7, 26),
    system: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The answer of the process about a template: `rendered`, a text or an error per conversation; or `failed`."""
    request = {
        "template": template,
        "special": {**special, **(values or {})},
        "date": date.isoformat(),
        "conversations": [[*system, *messages] for messages in conversations()],
    }
    return _run("template", request, ("jinja2", "markupsafe"))


def conversations() -> list[list[dict[str, str]]]:
    """The conversations that a template is tried on."""
    return [
        [{"role": role, "content": QUESTION if role == "user" else ANSWER} for role in roles] for roles in CONVERSATIONS
    ]


def rehearse_patterns(file: Path, patterns: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Match an adapter's patterns, each with the key that it stands at, with the names in the model.

    Raises:
        CheckpointError: one is no regular expression, or takes too long.
    """
    if not patterns:
        return
    answer = _run("patterns", {"patterns": patterns, "names": list(names)}, ())
    if said := answer.get("failed"):
        keys = ", ".join(sorted({key for key, _ in patterns}))
        raise CheckpointError(
            f"{file}: {keys}: matching the names of the model's layers {said}. List the names instead"
        )


def rehearse_tokenizer(folder: Path) -> None:
    """Read a folder's tokenizer.json, if it has one, and encode a page with it.

    Raises:
        ModelError: it fails, or takes too long or too much memory.
    """
    file = folder / "tokenizer.json"
    if file.exists() and (said := _tokenizer_fails(str(file), _digest(file))):
        raise ModelError(f"{file}: the tokenizer {said}. Take the tokenizer of the model's publisher")


@cache
def _tokenizer_fails(file: str, digest: str) -> str | None:
    request = {"file": file, "text": PAGE, "most": LONGEST}
    return _run("tokenizer", request, ("tokenizers", "huggingface_hub"), SECONDS_TO_READ, MEMORY_TO_READ).get("failed")


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _run(
    what: str, request: dict[str, Any], packages: Sequence[str], seconds: int = SECONDS, memory: int = MEMORY
) -> dict[str, Any]:
    """The answer of the process, or `failed`: how it ended instead, as the end of a sentence."""
    specs = (importlib.util.find_spec(package) for package in packages)
    folders = sorted({str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin})
    # Without `site`, whose .pth files may import anything, and without the environment's and the folder's modules.
    command = [sys.executable, "-I", "-S", str(PROGRAM), what, str(seconds), str(memory), str(LONGEST), *folders]
    try:
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=seconds + PATIENCE, check=False
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds} seconds"}
    except ValueError:  # it said nothing: it was ended for the time that it took, or has crashed
        if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
            return {"failed": f"took more than {seconds} seconds"}
        return {"failed": f"crashed, or took more than {memory // 2**20} MiB of memory"}
