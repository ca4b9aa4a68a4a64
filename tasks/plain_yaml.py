"""Loads YAML of plain values: text, numbers, true, false, null, lists, and mappings whose keys are text.

Tags are not executed, `1e-3` is a number, a date is text. What is not plain, or would grow beyond bounds, is refused
before it is built: files come from others, and ten lines with aliases can stand for a billion values.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from tasks.plain_text import DEPTH, DIGITS, SHOWN, Unreadable, check_characters, read_text, shown

SIZE = 512 * 1024
"""Bytes of the largest text: written by hand they are a hundred times shorter, and it takes half a second to read."""
VALUES = 20_000
"""Values in a text, those that an alias repeats counted every time, and long ones once per hundred characters."""
TEXT = 20_000
"""Characters of the longest text value."""

_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_NUMBER = re.compile(r"[-+]?(0[xX][\da-fA-F_]+|[\d_.:]+([eE][-+]?\d*)?)")


class NotYaml(Unreadable):
    """A text is not YAML at all. Internal, as `Unreadable` is."""


def read(file: Path) -> Any:
    """The value in a file; None where it is empty.

    Raises:
        NoSuchFile: there is none.
        Unreadable: the file cannot be read, is not YAML, or not plain. The message lacks the file's name.
    """
    return load(read_text(file, SIZE))


def load(text: str) -> Any:
    """Parses a YAML text; None where it is empty.

    Raises:
        NotYaml: it is not YAML; the message says where.
        Unreadable: it is not plain, or too much; the message names the line.
    """
    return construct(compose(text))


def compose(text: str) -> Node | None:
    """The nodes of a YAML text, checked; None where there is none. `construct` makes values of them.

    Raises:
        NotYaml, Unreadable: as `load`.
    """
    if len(text) > SIZE:
        raise Unreadable(f"{len(text):,} characters, and at most {SIZE:,} are read")
    check_characters(text)
    try:
        return _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise NotYaml(_explained(error)) from None
    except Unreadable:
        raise
    except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:  # PyYAML's own slips
        raise NotYaml(f"not YAML ({type(error).__name__}: {shown(str(error))})") from None


def construct(node: Node | None) -> Any:
    """The value of checked nodes.

    Raises:
        Unreadable: a value does not fit its tag, or is not finite.
    """
    if node is None:
        return None
    try:
        return _Loader("").construct_document(node)
    except yaml.YAMLError as error:
        raise NotYaml(_explained(error)) from None


class _Loader(yaml.SafeLoader):
    """Composes nodes within bounds, and constructs plain values of them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0
        self._sizes: dict[Node, int] = {}
        """Values in a node, itself included; a node that is not complete is missing."""

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        event = self.peek_event()
        if self._depth > DEPTH:
            raise Unreadable(f"{_line(event)}: more than {DEPTH} sections or lists within each other")
        before, self._depth = self._values, self._depth + 1
        node: Node = super().compose_node(parent, index)  # type: ignore[assignment]  # there is one for every event
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise Unreadable(f"{_line(event)}: *{event.anchor} stands inside of what it repeats. Write it out")
            self._values += self._sizes[node]
        else:
            self._values += 1 + (len(node.value) // 100 if isinstance(node, ScalarNode) else 0)
            self._sizes[node] = self._values - before
            self._check(node)
        if self._values > VALUES:
            raise Unreadable(f"{_line(event)}: more than {VALUES:,} values, those that aliases repeat included")
        return node

    def _check(self, node: Node) -> None:
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise Unreadable(
                f"{_line(node)}: the tag {shown(tag)[1:-1]} is not read: plain text, numbers, lists and mappings are"
            )
        if isinstance(node, ScalarNode):
            if len(node.value) > TEXT:
                raise Unreadable(f"{_line(node)}: a text of {len(node.value):,} characters; at most {TEXT:,} are read")
            _in_place(node, check_characters, node.value)
        elif isinstance(node, MappingNode):
            self._check_keys(node)

    def _check_keys(self, node: MappingNode) -> None:
        lines: dict[str, str] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise Unreadable(f"{_line(key)}: a list or a mapping stands where a key is expected")
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise Unreadable(
                    f"{_line(key)}: the key {shown(key.value)[1:-1] or 'null'} is read as a value that is no text. "
                    f'Quote it: "{shown(key.value)[1:-1]}"'
                )
            if key.value in lines:
                instead = "Write <<: [*one, *other]" if key.tag.endswith("merge") else "Keep one of them"
                raise Unreadable(
                    f"{_line(key)}: the key {shown(key.value)[1:-1]} is there already, in {lines[key.value]}. {instead}"
                )
            lines[key.value] = _line(key)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        # Before the patterns of numbers see it: their time grows with the square of the number of digits.
        if kind is ScalarNode and implicit[0] and len(value) > DIGITS:
            if _NUMBER.fullmatch(value):
                raise Unreadable(f"{_line(self.peek_event())}: a number of {len(value):,} digits is too large")
            return "tag:yaml.org,2002:str"
        return super().resolve(kind, value, implicit)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, OverflowError):
            if not isinstance(node, ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            raise Unreadable(f"{_line(node)}: {shown(node.value)} cannot be read as {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise Unreadable(f"{_line(node)}: {node.value[:SHOWN]} is not finite, and numbers are")
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # YAML 1.1 takes 1e-3 for text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _in_place(node: Node, check: Any, *values: Any) -> None:
    try:
        check(*values)
    except Unreadable as error:
        raise Unreadable(f"{_line(node)}: {error}") from None


def _line(marked: Any) -> str:
    return f"line {marked.start_mark.line + 1}"


def _explained(error: yaml.YAMLError) -> str:
    """A syntax error as a sentence: where, and what stands there."""
    if isinstance(error, yaml.reader.ReaderError):  # of a text, so that its character is a number
        return f"not YAML: the character U+{error.character:04X} is not allowed"
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    problem = ", ".join(" ".join(str(part).split()) for part in parts if part) or "it cannot be read"
    if "'\\t'" in problem:
        problem += ". Indent with spaces: YAML takes no tabs there"
    if "expected a single document" in problem:
        problem = "a second document begins (---), and one is expected"
    return f"not YAML: {where}{problem}"
