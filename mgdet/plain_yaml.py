"""YAML restricted to what a configuration needs: mappings with text keys, lists, texts, numbers, booleans and null.

The rest of YAML is refused: its other types, merges, values that contain themselves, and documents that are small as
text and huge as values, because a few aliases of aliases stand for billions of values. Dates are texts.
"""

import re
from typing import Any

import yaml

MOST_BYTES = 1 << 20
"""The largest file that is read."""
MOST_LEVELS = 32
"""The greatest depth of lists and mappings in each other."""
MOST_VALUES = 50_000
"""The largest number of keys and values, those behind an alias counted wherever it stands."""
INT64 = range(-(2**63), 2**63)

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_PLAIN = [f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")]
_OTHER_BASE = re.compile(r":|^[-+]?0[0-9_]")
"""Numbers to the base 60 and 8, `1:30` and `010`, which YAML 1.1 reads without a sign that they are."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        ValueError: it is not YAML, or not plain; the message says what and where, without an excerpt of the text, which
            might begin in the middle of a password.
    """
    try:
        return yaml.load(text, _PlainLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(_problem(error, text)) from None


def require_plain(value: Any, where: str = "the configuration") -> None:
    """See that a value from Python could stand in a YAML text.

    Raises `ValueError` for a key that is no text, control characters, integers of more than 64 bits, and too many
    levels, which a value that contains itself has as well.
    """
    waiting = [(value, 0)]
    seen = 0
    while waiting:
        node, level = waiting.pop()
        seen += 1
        if level > MOST_LEVELS:
            raise ValueError(f"{where}: lists and mappings lie in each other, more than {MOST_LEVELS} levels deep")
        if seen > MOST_VALUES:
            raise ValueError(f"{where}: more than {MOST_VALUES:,} values")
        if isinstance(node, dict):
            if odd := [key for key in node if not isinstance(key, str)]:
                raise ValueError(f"{where}: the key {str(odd[0])[:80]!r} is no text")
            waiting += [(item, level + 1) for pair in node.items() for item in pair]
        elif isinstance(node, list | tuple):
            waiting += [(item, level + 1) for item in node]
        elif wrong := _unfit(node):
            raise ValueError(f"{where}: {wrong}")


def _unfit(value: Any) -> str:
    """What is wrong with a text or a number; empty where nothing is."""
    if isinstance(value, str) and (found := _CONTROL.search(value)):
        return f"a text holds the control character {found[0]!a}, which nothing here takes"
    if isinstance(value, int) and value not in INT64:
        return "an integer has more than 64 bits"
    return ""


class _PlainLoader(yaml.SafeLoader):
    """Checks extent and keys while the nodes are put together, before a value is made of any of them."""

    yaml_constructors = {k: v for k, v in yaml.SafeLoader.yaml_constructors.items() if k in (*_PLAIN, None)}  # noqa: RUF012  # as the base class has it
    yaml_implicit_resolvers = {  # noqa: RUF012  # likewise
        first: [(tag, pattern) for tag, pattern in found if tag in (*_PLAIN, _MERGE)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}
        """Of each complete node: how many nodes it stands for, itself included, and how many levels they have."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As the base class, within the limits of this module."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has few types
        mark = event.start_mark
        self._level += 1
        if self._level > MOST_LEVELS + 1:  # on the way down: Python's own stack is not much deeper
            raise _wrong(f"lists and mappings lie in each other, more than {MOST_LEVELS} levels deep", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._extents:
            raise _wrong("a value contains itself", mark)
        if node is not None:
            self._extents[node] = self._extent(node, mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As the base class; each key must be a text and stand once."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                raise _wrong("<< is not read; `base: other.yaml` starts from another file", key.start_mark)
            if key.tag != f"{_TAG}str" or not isinstance(key, yaml.ScalarNode):
                kind = key.tag.removeprefix(_TAG)
                raise _wrong(f"a key must be a text, and this is {kind}; write it in quotes", key.start_mark)
            if key.value in seen:
                raise _wrong(f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As the base class; a value that its type does not allow is an error of YAML."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            shown = str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "this"
            raise _wrong(f"{shown!r} is no {node.tag.removeprefix(_TAG)}", node.start_mark) from error
        if wrong := _unfit(value):
            raise _wrong(wrong, node.start_mark)
        if type(value) in (int, float) and isinstance(node, yaml.ScalarNode) and _OTHER_BASE.search(node.value):
            raise _wrong(f"{node.value[:40]!r} is {value} to YAML; write that, or a text in quotes", node.start_mark)
        return value

    def _extent(self, node: yaml.Node, mark: yaml.Mark) -> tuple[int, int]:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        extents = [self._extents[child] for child in children]
        count = 1 + sum(count for count, _ in extents)
        levels = 1 + max((levels for _, levels in extents), default=0)
        if count > MOST_VALUES:
            raise _wrong(f"more than {MOST_VALUES:,} values, with those behind aliases", mark)
        if levels > MOST_LEVELS + 1:
            raise _wrong(f"lists and mappings lie in each other, more than {MOST_LEVELS} levels deep", mark)
        return count, levels


def _wrong(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _problem(error: yaml.YAMLError, text: str) -> str:
    """What is wrong and where, without the excerpt that YAML adds."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"the character {chr(error.character)!a} is not allowed (line {line})"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return ", ".join(p for p in parts if p) + where
