"""YAML → typed, frozen settings: overrides, and errors that say what, where and what to do.

One file configures every command; each section's class stands beside the code that reads it.
Nothing here or in the sections imports torch, so `--help` and config errors are instant.
"""

import difflib
import json
import os
import pkgutil
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, WrapValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from data.errors import UserError, did_you_mean
from data.plain_values import WITH_POINT, NotYaml, comment_in, parse_yaml, plain, read_yaml

SHIPPED = "shipped:"  # before the name of data that comes with the package: data.root=shipped:NAME
WHOLE = "classify.settings:ClassifyConfig"  # the config of all rooms; by name, so that no room imports a later one


class Settings(BaseModel):
    """Base of every config and config section: frozen, no unknown keys, no silent conversions, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    RENAMED: ClassVar[Mapping[str, str]] = {}  # dotted keys of earlier versions → their names of today


Config = TypeVar("Config", bound=Settings)


class IsPlace:
    """Marks a setting that names a place to read or write: a stranger's checkpoint must not choose it."""


PathText = Annotated[str, IsPlace()]  # the type of every such setting


def either(expected: str) -> WrapValidator:
    """One message for a setting that may take several shapes, instead of one for each: "Input should be …"."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        if isinstance(value, list):
            value = tuple(value)
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("either", expected) from None

    return WrapValidator(validate)


@cache
def whole_config() -> type[Settings]:
    """The class of a whole config: every command reads and checks all of it."""
    found = pkgutil.resolve_name(WHOLE)
    assert issubclass(found, Settings)
    return found


# ---------------------------------------------------------------- reading


def load_config(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Read a config by path, or a shipped one by name (`demo`), and apply `key=value` overrides.

    Raises UserError naming file and key for an unknown key, a wrong type or an impossible value.
    """
    path = find_config(name_or_path)
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        found = {"NoneType": "no settings", "list": "a list"}.get(type(raw).__name__, "a single value")
        raise UserError(f"{path}: found {found}, expected a mapping of settings")
    return make_config(raw, str(path), parse_overrides(overrides))


def find_config(name_or_path: str | Path) -> Path:
    """The file a config argument means: a path, else the name of a shipped config."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in shipped_configs()}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if path.is_dir():
        raise UserError(f"{name_or_path}: found a folder, expected a config file such as {path / 'config.yaml'}")
    raise UserError(
        f"{name_or_path}: no such config file, nor a shipped config; shipped are {', '.join(sorted(shipped))}"
        f"{did_you_mean(str(name_or_path), shipped)}"
    )


def shipped_configs() -> list[Path]:
    """The configs that come with the package: `configs/` in a checkout, `mae/configs/` in a wheel."""
    root = Path(__file__).parents[1]
    return sorted([*(root / "configs").glob("*.yaml"), *(root / "mae/configs").glob("*.yaml")])


def shipped_data(text: str, place: str) -> Path:
    """`shipped:NAME` → the file or folder of that name that comes with the package; UserError where there is none."""
    folder = Path(__file__).parent / "shipped"
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix != ".md"}
    name = text.removeprefix(SHIPPED)
    if name not in found:
        names = ", ".join(sorted(name for name in found if "/" not in name))
        raise UserError(f"{place}: found {text!r}, expected data that comes with this version: {names}")
    return found[name]


def shipped_credit(text: str) -> str | None:
    """Authors and licence of the data `shipped:NAME`, to be stated wherever results or pictures of them are shown.

    None for any other data, and for what came with another version.
    """
    if not text.startswith(SHIPPED):
        return None
    beginning = f"`{text.removeprefix(SHIPPED)}`: "
    about = (Path(__file__).parent / "shipped/README.md").read_text(encoding="utf-8")
    for line in about.splitlines():
        if line.startswith(beginning):
            return line.removeprefix(beginning)
    return None


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["pretrain.epochs=3"]` → `{"pretrain.epochs": 3}`; values are YAML."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"command line: found {pair!r}, expected key=value such as pretrain.epochs=3")
        found[key] = _value(key, value)
    return found


def _value(key: str, text: str) -> Any:
    """A value of the command line; UserError if the shell, or YAML, would take only a part of it."""
    place = f"command line: {key}"
    try:
        value = parse_yaml(text, place)
    except NotYaml as error:
        if text.startswith(("[", "{")) and not text.endswith(("]", "}")):
            raise NotYaml(f"{error}; a setting with blanks goes into quotes: '{key}={text[0]}…'") from None
        raise

    comment = comment_in(text)
    if comment:
        raise UserError(
            f"{place}: found {comment!r}, which YAML takes for a comment, expected none; text goes into quotes of its "
            f"own: {as_typed(key, text)}"
        )
    return value


def as_typed(key: str, value: Any) -> str:
    """A setting as one types it: quoted for any shell, and for YAML, so that this very value arrives."""
    return shlex.quote(f"{key}={_inline(value)}")


def make_config(
    raw: Mapping[str, Any],
    place: str,
    overrides: Mapping[str, Any] | None = None,
    overrides_place: str = "command line",
) -> Settings:
    """Plain settings (a config file's or a checkpoint's) → Config; errors name the place they come from."""
    overrides = plain(overrides or {}, overrides_place)

    # a copy, in which `data` is there to be filled by overrides
    merged = {"data": {}, **plain(raw, place)}
    for key, value in _single(overrides.items()):
        _put(merged, key.split("."), value)

    try:  # JSON mode: strict types, but lists may become tuples
        return whole_config().model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise UserError(_explain(error, place, overrides, overrides_place)) from None


def change_config(config: Config, overrides: Mapping[str, Any], place: str = "command line") -> Config:
    """A copy of the config with dotted keys replaced; `place` says where the overrides stand."""
    changed = make_config(config.model_dump(mode="json"), place, overrides, place)
    assert isinstance(changed, type(config))
    return changed


def with_new_names(raw: Mapping[str, Any], place: str = "settings") -> dict[str, Any]:
    """Plain settings of an earlier version, found in `place`, under today's names."""
    settings: dict[str, Any] = plain(raw, place)
    for before, now in whole_config().RENAMED.items():
        # walk down to the section that holds the old name, as far as there is one
        *sections, name = before.split(".")
        holder: Any = settings
        for section in sections:
            if isinstance(holder, dict):
                holder = holder.get(section)

        if isinstance(holder, dict) and name in holder:
            _put(settings, now.split("."), holder.pop(name))
    return settings


def single_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by the dotted keys of single settings, also where a mapping gives several of a section."""
    return dict(_single(overrides.items()))


def keys_given(overrides: Mapping[str, Any]) -> set[str]:
    """The dotted keys that overrides set, also where a mapping gives several of a section."""
    return {key for key, _ in _single(overrides.items())}


def _single(overrides: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """A mapping given for a section changes what it names and leaves the section's other settings alone."""
    for key, value in overrides:
        if isinstance(value, dict) and value and key in _keys(sections=True):
            yield from _single((f"{key}.{name}", part) for name, part in value.items())
        else:
            yield key, value


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested value, making the sections on the way to it."""
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def expand(text: str, place: str) -> str:
    """A setting that is a path, in one form, as names are made from it: `./runs//x/../mae/` becomes `runs/mae`.

    `${NAME}` and `${NAME:-default}` are replaced by the environment, and `~` by the home folder. UserError if NAME is
    not set, the home is not known, or nothing is left. A data set may also be one that comes with the package.
    """
    if place == "data.root" and text.startswith(SHIPPED):
        return str(shipped_data(text, place))

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise UserError(f"{place}: ${{{name}}} is not set; export {name}=/path, or give {place}=/path")
        return found

    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)
    if not text or "\0" in text:
        raise UserError(f"{place}: found {text!r}, expected a path")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{place}: found {text}, whose home folder is not known; give the whole path") from None
    return str(_without_detours(path))


def _without_detours(path: Path) -> Path:
    """The path without `..` after a name: if the name is a link, `..` is not the folder that the link lies in."""
    names = list(path.parts)
    while names and names[0] == "..":
        names.pop(0)
    if ".." not in names:
        return path

    direct = Path(os.path.realpath(path))
    if path.is_absolute():
        return direct
    return Path(os.path.relpath(direct))


def beside(folder: Path, ending: str, place: str) -> Path:
    """The folder beside `folder` with `ending` added to its name: `runs/mae-vit`; UserError if there is no name."""
    if folder.name in ("", ".."):
        folder = folder.resolve()
    if not folder.name:
        raise UserError(f"{place}: found {folder}, which has no name to add {ending} to, expected a folder with a name")
    return folder.with_name(folder.name + ending)


# ---------------------------------------------------------------- errors


def _explain(error: ValidationError, place: str, overrides: Mapping[str, Any], overrides_place: str) -> str:
    """The first thing wrong, in one line; unknown keys first, as a missing key may be a misspelt one."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    found = first.get("input")
    message = first["msg"]

    # the command line is to blame where it gives the key, a section above it or a setting below it
    if any(given == key or given.startswith(key + ".") or key.startswith(given + ".") for given in overrides):
        place = overrides_place

    if first["type"] == "extra_forbidden":
        return f"{place}: {_unknown(key, found)}"
    if first["type"] == "missing":
        meaning = dict(describe(whole_config())).get(key, "")
        if not meaning:
            return f"{place}: {key} is missing"
        return f"{place}: {key} is missing ({meaning})"
    if first["type"] == "value_error":  # from a setting's own check, or from a section's, which names the setting
        said = message.removeprefix("Value error, ")
        return f"{place}: {key}: {said}" if said.startswith("found ") else f"{place}: {key}.{said}"

    # pydantic's own words, made like ours
    expected = re.sub(r"^\w+ should be", "expected", message)
    expected = expected.replace("an object", "a mapping").replace("a valid array", "a list")
    expected = re.sub(r"^[A-Z][a-z]+ should", "expected to", expected)
    if first["type"] == "string_type" and isinstance(found, bool):
        expected += "; a text such as 'no' needs its quotes"
    return f"{place}: {key}: found {json.dumps(found)}, {expected}"


def _unknown(key: str, found: Any) -> str:
    """What to say of a key that does not exist: today's name for it, or the key that may be meant."""
    renamed = whole_config().RENAMED
    if key in renamed:
        return f"{key} is renamed to {renamed[key]}"

    while isinstance(found, dict) and len(found) == 1:  # optim: {lr: 1} → optim.lr
        [(name, found)] = found.items()
        key += f".{name}"
    names = _keys(sections=False)
    if isinstance(found, dict):
        names = _keys(sections=True) + names
    near = _nearest(key, names)
    if near is None:
        return f"{key} is unknown; see --print-config"
    if near == key:  # as on the command line
        section, _, name = key.rpartition(".")
        return f"{key} is unknown so, expected {name} in the mapping {section}"
    return f"{key} is unknown; did you mean {near}?"


def _nearest(key: str, names: Iterable[str]) -> str | None:
    """The valid name an unknown key may mean: a sibling if one is near, else one elsewhere."""
    parent, _, leaf = re.sub(r"\.\d+", "", key).rpartition(".")
    if key.rpartition(".")[2].isdigit():  # as in 0,75: no name is meant
        return None
    best = None
    best_rank = (False, 0.0, False, 0.0)
    for name in names:
        section, _, setting = name.rpartition(".")
        nearness = _nearness(leaf, setting)
        sibling = section == parent
        least = 0.6 if sibling else 0.7

        # siblings first, then what is spelt most alike
        same_room = parent.split(".")[0] == section.split(".")[0]
        rank = (sibling, nearness, same_room, difflib.SequenceMatcher(None, parent, section).ratio())
        if nearness >= least and rank > best_rank:
            best = name
            best_rank = rank
    return best


def _nearness(wrong: str, right: str) -> float:
    """0 to 1; a name made of words of the other, as lr is of base_lr, is near."""
    words = set(wrong.split("_"))
    others = set(right.split("_"))
    if words < others or others < words:
        return 0.8
    return difflib.SequenceMatcher(None, wrong, right).ratio()


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of a config class with its meaning."""
    for name, field in cls.model_fields.items():
        yield prefix + name, field.description or ""
        if inner := _section(field.annotation):
            yield from describe(inner, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class a field holds, alone or in a tuple."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def paths_in(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every setting of a config that is a `PathText`; of a list, of each entry."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts:
            if isinstance(part, BaseModel):
                yield from paths_in(part, f"{prefix}{name}.")
            elif is_path(field):
                yield f"{prefix}{name}", part


def is_path(field: FieldInfo) -> bool:
    """Whether a setting is a `PathText`, alone or among other shapes."""
    return any(isinstance(part, IsPlace) for part in (*field.metadata, *_parts(field.annotation)))


def _parts(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _parts(part)


@cache
def _keys(sections: bool) -> tuple[str, ...]:
    """The dotted keys of all sections, or of all single settings."""
    names = [name for name, _ in describe(whole_config())]
    parents = {name.rpartition(".")[0] for name in names}
    return tuple(name for name in names if (name in parents) == sections)


# ---------------------------------------------------------------- writing


def print_config(config: BaseModel, indent: str = "") -> str:
    """The resolved config as YAML, every field with its meaning and, where it differs, its default."""
    lines: list[str] = []
    fields = type(config).model_fields.items()
    # a room's config extends that of the room before it, but single settings stand above all sections
    for name, field in sorted(fields, key=lambda item: isinstance(getattr(config, item[0]), BaseModel)):
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            if not indent:
                lines.append("")
            lines.append(f"{indent}{name}:")
            lines.append(print_config(value, indent + "  "))
            continue

        meaning = field.description or ""
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            if default != value:
                meaning += f" (default: {_inline(default)})"
        lines.append(f"{indent}{name}: {_inline(value)}  # {meaning}")
    return "\n".join(lines)


class _Dumper(yaml.SafeDumper):
    """Writes values so that they are read back as they were: the string "1e-3" in quotes."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", WITH_POINT, list("-+0123456789."))


def _inline(value: Any) -> str:
    """A value as YAML in one line; whatever a stranger's checkpoint holds, it does not move the cursor."""
    return _inline_of_json(json.dumps(value, default=lambda section: section.model_dump(mode="json")))


@lru_cache(maxsize=1000)  # most settings of most runs have the same values, and each takes YAML a millisecond
def _inline_of_json(value: str) -> str:
    plainly = json.loads(value)
    for readable in (True, False):  # False: every letter beyond ASCII as an escape
        text = yaml.dump(
            plainly, Dumper=_Dumper, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=readable
        )
        text = text.strip().removesuffix("\n...")
        if text.isprintable():
            break
    return text
