"""Values that strangers wrote (YAML, JSON, settings), as plain ones: bounded in size, depth and alphabet.

A config, a run folder's files, a checkpoint and a model's config.json may come from anywhere. All of them pass through
here once. So no later code asks whether a text is text, a list holds itself, or 400 bytes stand for a billion values.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import yaml

from data.errors import UserError, printable

LARGEST_YAML = 2**20  # bytes; its reader takes seconds for a million
LARGEST_JSON = 2**26
MOST = 10**6  # values in all; one that stands in several places counts in each
MOST_IN_YAML = 10**5
DEEPEST = 40  # lists and mappings nested in each other
DIGITS = 400  # of a number: a float has no more
LARGEST = 2**63  # of whole numbers: what 64 bits hold
# numbers as in YAML 1.2: 1e-3 is one; 010 and 1:30 are texts, and neither 8 nor 90
WHOLE = re.compile(r"^[-+]?(0|[1-9][\d_]*)$")
WITH_POINT = re.compile(r"^[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


class NotYaml(UserError):
    """A text that is no YAML, whatever else it may be."""


class Refused(ValueError):
    """What is odd about a value, worded so that a place can be put before it."""


# ---------------------------------------------------------------- values


def plain(value: Any, place: str) -> Any:
    """A copy of None, bool, int, float, str, lists, and mappings whose keys are names; UserError for anything else."""
    try:
        return _copied(value, "", iter(range(MOST)))
    except Refused as odd:
        raise UserError(f"{place}: {odd}") from None


def _copied(value: Any, name: str, left: Iterator[int], depth: int = 0) -> Any:
    if next(left, None) is None:
        raise Refused(f"{_place(name)}found more than {MOST:,} values, expected settings")
    if depth > DEEPEST:
        raise Refused(f"{_place(name)}found values nested more than {DEEPEST} deep, expected settings")

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _whole_number(int(value), name)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str | PurePath):
        return _text(str(value), name)

    if isinstance(value, Mapping):
        copy = {}
        for key, part in value.items():
            named = _name(key, name)
            copy[named] = _copied(part, f"{name}.{named}".strip("."), left, depth + 1)
        return copy
    if isinstance(value, list | tuple):
        return [_copied(part, f"{name}.{number}".strip("."), left, depth + 1) for number, part in enumerate(value)]
    raise Refused(f"{_place(name)}found {type(value).__name__}, expected a plain value")


def _place(name: str) -> str:
    """The beginning of a line about the value of this name."""
    return f"{printable(name)}: " if name else ""


def _whole_number(value: int, name: str) -> int:
    if -LARGEST <= value < LARGEST:
        return value
    raise Refused(f"{_place(name)}found a whole number of {value.bit_length()} bits, expected at most 64")


def _text(value: str, name: str) -> str:
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise Refused(f"{_place(name)}found half a character in {value!r}, expected text")
    return value


def _name(key: Any, name: str) -> str:
    """A key of the mapping called `name`, as text; YAML and a checkpoint may have numbers there."""
    if isinstance(key, str):
        return _text(key, name)
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(_copied(key, "", iter(range(1))))
    raise Refused(f"{_place(name)}found {type(key).__name__} for a name, expected text")


# ---------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2, names as they are written, none given twice, and not endlessly deep."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEEPEST:  # thousands of brackets would take seconds
            raise Refused(f"found values nested more than {DEEPEST} deep, expected settings")
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: found no text for a name")
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value)

        # a column called No is neither false nor off
        self.flatten_mapping(node)
        for key, _ in node.value:
            if key.tag.endswith((":bool", ":float")):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _as_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":int", ":float"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)  # 2026-01-01 is a name
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", WITH_POINT, list("-+0123456789."))


def parse_yaml(text: str, place: str) -> Any:
    """Plain values of a YAML text; UserError if it is not YAML, or expands to far more than it says."""
    try:
        value = _parsed(text)
    except Refused as odd:
        raise UserError(f"{place}: {odd}") from None
    except yaml.YAMLError as error:
        raise NotYaml(f"{place}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{place}: found values nested more than {DEEPEST} deep, expected settings") from None
    except Exception as error:  # a tag such as !!bool before another word may raise anything
        raise NotYaml(f"{place}: not valid YAML: {type(error).__name__} in a value") from None
    return plain(value, place)


@lru_cache(maxsize=32)  # a command reads its run's config.yaml several times, and each takes some 20 ms
def _parsed(text: str) -> Any:
    loader = _Loader(text)  # which looks for characters that YAML does not allow
    node = loader.get_single_node()
    _expect_bounded(node)
    return None if node is None else loader.construct_document(node)


def comment_in(text: str) -> str:
    """The end of a valid YAML text that YAML passes over as a comment; "" where there is none."""
    node = yaml.compose(text, Loader=_Loader)
    return "" if node is None else text[node.end_mark.index :].strip()


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML file; UserError where it is none."""
    text = _text_of(path, LARGEST_YAML, "not valid YAML")
    return parse_yaml(text, str(path))


def _expect_bounded(node: yaml.Node | None) -> None:
    """Refused if aliases make a list hold itself, or make a text expand to much more than it says."""
    if node is None:
        return
    count, depth = _extent(node, {})
    if count > MOST_IN_YAML:
        raise Refused(f"found aliases for more than {MOST_IN_YAML:,} values, expected settings")
    if depth > DEEPEST:
        raise Refused(f"found values nested more than {DEEPEST} deep, expected settings")


def _extent(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node stands for, and how deep they lie; each node is looked at once."""
    if id(node) in known:
        extent = known[id(node)]
        if extent is None:  # it is being looked at
            raise Refused("found a value that holds itself, expected settings")
        return extent

    known[id(node)] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            inner += pair
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif not node.tag.endswith(":str") and len(node.value) > DIGITS:
        raise Refused(f"found a number of {len(node.value)} digits, expected at most {DIGITS}")

    extents = [_extent(part, known) for part in inner]
    count = 1 + sum(number for number, _ in extents)
    depth = 1 + max((below for _, below in extents), default=0)
    known[id(node)] = count, depth
    return count, depth


# ---------------------------------------------------------------- JSON


def read_json_values(path: Path) -> Any:
    """Plain values of a JSON file; UserError where it is none."""
    text = _text_of(path, LARGEST_JSON, "found no valid JSON")
    try:
        value = json.loads(text, parse_int=_int)
    except (ValueError, RecursionError):  # no JSON, numbers without end, far too deep
        raise UserError(f"{path}: found no valid JSON, expected settings") from None
    return plain(value, str(path))


def _int(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"found a number of {len(digits)} digits")
    return int(digits)


def _text_of(path: Path, largest: int, wrong: str) -> str:
    """The text of a file that is not absurdly large; UserError where it is no UTF-8."""
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise UserError(f"{path}: found more than {largest:,} bytes, expected a file of settings")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: {wrong}: found another encoding, expected UTF-8; save it as UTF-8") from None
