"""Licences of weights: read from a folder, carried by checkpoints as plain values, written into another folder.

A licence is a text, such as `mit`, or several fields of a README's front matter: one that a hub has no name for is
`license: other`, with its name and where to find it. Strangers write these fields, so each is written as one line.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError, printable
from data.plain_values import NotYaml, parse_yaml
from mae.weights.files import leads_out

License = str | Mapping[str, str]
UNKNOWN = "unknown"
FIELDS = ("license", "license_name", "license_link")
FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
LONGEST = 2**20  # bytes of a README that may still be read for its front matter


def license_of(folder: Path) -> License:
    """The licence a folder names: in its README's front matter, else its LICENSE's first line, else "unknown"."""
    front = _front_matter(folder)
    fields = fields_of(front)
    if set(fields) == {"license"}:
        return fields["license"]
    if fields:
        return fields

    for name in FILES:
        for line in _lines(folder, name):
            if text := _one_line(line.strip("# \t")):
                return text
    return UNKNOWN


def spoken(license: License | None) -> str:
    """The licence as words for a line of text."""
    fields = fields_of(license)
    if not fields:
        return "not stated"
    words = ", ".join(fields[name] for name in ("license", "license_name") if name in fields)
    if "license_link" in fields:
        words = f"{words} ({fields['license_link']})"
    return words


def fields_of(license: Any) -> dict[str, str]:
    """The fields that are there, each in one line, for a config.json or a README's front matter."""
    if isinstance(license, str):
        license = {"license": license}
    if not isinstance(license, Mapping):
        return {}
    lines = {name: _one_line(license.get(name)) for name in FIELDS}
    return {name: line for name, line in lines.items() if line}


def front_matter(license: License | None, others: Mapping[str, Any]) -> str:
    """The front matter of a README, for any name of a licence: YAML escapes values, so none can end its line."""
    fields = fields_of(license)
    if re.fullmatch(r"[\w.+-]+", fields.get("license", "")):  # a hub's names are in lower case
        fields["license"] = fields["license"].lower()
    front = yaml.safe_dump(
        {**fields, **others}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6
    )
    return f"---\n{front}---\n"


def _one_line(value: Any) -> str:
    """A text, a number or several texts, as one line that moves no cursor; "" for anything else."""
    if isinstance(value, list):
        value = ", ".join(each for each in value if isinstance(each, str))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return printable(" ".join(str(value).split()), longest=1000)


def _front_matter(folder: Path) -> dict[str, Any]:
    """The YAML between a README's leading --- lines."""
    lines = _lines(folder, "README.md")
    if next(lines, "").rstrip() != "---":
        return {}

    inner: list[str] = []
    for line in lines:
        if line.rstrip() == "---":
            break
        inner.append(line)
    else:
        return {}

    try:
        front = parse_yaml("\n".join(inner), str(folder / "README.md"))
    except NotYaml:
        return _by_line(inner)
    except UserError:  # far more than a licence
        return {}
    return front if isinstance(front, dict) else {}


def _by_line(lines: list[str]) -> dict[str, Any]:
    """The licence in a front matter that is not valid YAML, such as `license: Name: the second`."""
    pairs = [line.partition(":") for line in lines]
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs if name.strip() in FIELDS}


def _lines(folder: Path, name: str) -> Iterator[str]:
    """The lines of a text file of the folder; none if it links to a file elsewhere, which is not part of the folder."""
    path = folder / name
    if not path.is_file() or leads_out(path):
        return
    with path.open("rb") as file:
        text = file.read(LONGEST).decode("utf-8-sig", errors="replace")
    yield from text.splitlines()
