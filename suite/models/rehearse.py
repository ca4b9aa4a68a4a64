"""The process of `rehearsal`: runs a template, patterns or a tokenizer within limits. A script, which imports no suite.

python -I -S rehearse.py WHAT SECONDS BYTES CHARACTERS [FOLDER OF PACKAGES ...] < request.json > answer.json
"""

from __future__ import annotations

import json
import re
import resource
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

MOST_GROWTH = 64
"""Published tokenizers replace a space by a mark of one character, and a letter by a handful at most."""


def limit(seconds: int, memory: int) -> None:
    """Nothing more can be opened, written or started, and time and memory are bounded."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for which, value in limits.items():
        try:
            resource.setrlimit(which, (value, value + (which == resource.RLIMIT_CPU)))
        except (ValueError, OSError):  # not every system has every limit
            continue


def environment() -> Any:
    """What transformers renders chat templates with (`transformers.utils.chat_template_utils`; a test compares them).

    In one thing it is stricter: an attribute that the sandbox hides is an error here even if it is only printed.
    """
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012  # jinja2 declares it as an attribute of instances

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Any) -> str:
            return caller()

    class Strict(jinja2.sandbox.ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise jinja2.sandbox.SecurityError(f"it reaches for the attribute {attribute}")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = Strict(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = datetime(2024, 7, 26).strftime
    # Imports what is imported late: within the limits nothing can be opened.
    for text in ("{{ strftime_now('%d %B %Y') }}{{ [] | tojson }}{{ raise_exception('') }}", "{% for %}"):
        with suppress(jinja2.TemplateError):
            made.from_string(text).render()
    return made


def said(error: BaseException) -> str:
    """An error in one line."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line[:300]}"


def render(request: dict[str, Any], longest: int, made: Any) -> dict[str, Any]:
    """The text of each conversation, or the error that the template raises for it."""
    template = made.from_string(request["template"])
    today = datetime.fromisoformat(request["date"]).strftime
    rendered = []
    for messages in request["conversations"]:
        answers = messages[-1]["role"] == "user"
        values = {"tools": None, "documents": None, "add_generation_prompt": answers, "strftime_now": today}
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.generate(messages=messages, **{**request["special"], **values}):
                length += len(piece)
                if length > longest:
                    return {"failed": f"writes more than {longest} characters for a short question"}
                pieces.append(piece)
            rendered.append({"text": "".join(pieces)})
        except MemoryError:
            raise
        except Exception as error:
            rendered.append({"error": said(error)})
    return {"rendered": rendered}


def match(request: dict[str, Any]) -> dict[str, Any]:
    """Match as peft does: whole names, their ends, and names that go on."""
    for key, pattern in request["patterns"]:
        forms = (pattern, rf"(.*\.)?({pattern})$", rf"(^|.*\.){pattern}($|\..*)", rf"(?:^|.*?\.){pattern}\.(\d+)\.")
        try:
            compiled = [re.compile(form) for form in forms]
        except Exception as error:
            return {"failed": f"fails, as {key} is no regular expression ({said(error)})"}
        for form in compiled:
            for name in request["names"]:
                form.match(name), form.fullmatch(name)
    return {}


def growth(part: Any) -> float:
    """How many times as long as a text the replacements in a part of a tokenizer can make it, by their own lengths."""
    if isinstance(part, list):
        factors = [growth(one) for one in part]
    elif isinstance(part, dict):
        factors = [growth(one) for one in part.values()]
        content, pattern = part.get("content"), part.get("pattern")
        if isinstance(content, str) and isinstance(pattern, dict):
            # What a regular expression matches may be one character.
            factors.append(max(1.0, len(content) / max(1, len(pattern.get("String") or ""))))
    else:
        return 1.0
    grown = 1.0
    for factor in factors:
        grown *= factor
    return grown


def encode(request: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Encode a page, and decode it."""
    ids = tokenizer.encode(request["text"], add_special_tokens=True).ids
    if len(ids) > request["most"]:
        return {"failed": f"makes more than {request['most']} tokens of a page"}
    tokenizer.decode(ids[:4096])
    return {}


def main(what: str, seconds: str, memory: str, longest: str, *folders: str) -> dict[str, Any]:
    sys.path.extend(folders)
    request = json.load(sys.stdin)
    if what == "template":
        made = environment()
        limit(int(seconds), int(memory))
        return render(request, int(longest), made)
    if what == "patterns":
        limit(int(seconds), int(memory))
        return match(request)
    import tokenizers

    with open(request["file"], "rb") as stream:
        content = stream.read().decode("utf-8")
    limit(int(seconds), int(memory))
    parts = json.loads(content)
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if (grown := growth(parts.get(name))) > MOST_GROWTH:
            return {"failed": f"has a {name} that can make a text {grown:g} times as long"}
    del parts
    tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return encode(request, tokenizer)


if __name__ == "__main__":
    try:
        answer = main(*sys.argv[1:])
    except MemoryError:
        answer = {"failed": f"takes more than {int(sys.argv[3]) // 2**20} MiB of memory"}
    except BaseException as error:
        answer = {"failed": f"cannot be used: {said(error)}"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
