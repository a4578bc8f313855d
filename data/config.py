"""YAML → typed, frozen settings: overrides, and errors that say what, where and what to do.

One file configures every command; each section's class stands beside the code that reads it.
Nothing here or in the sections imports torch, so `--help` and config errors are instant.
"""

import argparse
import difflib
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, create_model
from pydantic_core import PydanticCustomError

# who reads which section; by name, so that no room imports a later one
SECTIONS = {
    "data": "data.settings:DataSettings",
    "model": "mae.settings:ModelSettings",
    "pretrain": "mae.settings:PretrainSettings",
    "finetune": "classify.settings:FinetuneSettings",
    "engine": "mae.settings:EngineSettings",
    "evaluate": "classify.settings:EvaluateSettings",
    "compare": "classify.settings:CompareSettings",
    "report": "classify.settings:ReportSettings",
}


class UserError(ValueError):
    """A mistake the user can mend: one line, `place: found X, expected Y`; commands exit with 2."""


class Settings(BaseModel):
    """Base of every config section: frozen, no unknown keys, no silent conversions, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


def either(expected: str) -> WrapValidator:
    """One message for a setting that may take several shapes, instead of one from each: "Input should be …"."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(tuple(value) if isinstance(value, list) else value)
        except ValidationError:
            raise PydanticCustomError("either", expected) from None

    return WrapValidator(validate)


class Root(Settings):
    """The settings every command shares; `config_class` adds the sections."""

    run: str = Field("runs/default", description="folder this run writes to")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order, masks, augmentation (not of splits)")
    device: str = Field("auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="fp32; tf32: matrix products on CUDA; bf16: autocast; fp16: autocast with loss scaling, for older "
        "GPUs (weights, loss and norms stay fp32)",
    )
    compile: bool = Field(
        False, description="train with torch.compile: a ViT's blocks, a ResNet whole; on a CPU takes a C++ compiler"
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute a ViT's activations again in the backward pass: less memory, about a third more time; "
        "a ResNet keeps its own",
    )
    threads: int = Field(0, ge=0, description="CPU threads torch computes with; 0 leaves the choice to torch")


@cache
def config_class() -> type[Root]:
    """The whole config as one class, sections included."""
    sections = {name: pkgutil.resolve_name(where) for name, where in SECTIONS.items()}
    fields: dict[str, Any] = {name: (cls, Field(default_factory=cls)) for name, cls in sections.items()}
    return create_model("Config", __base__=Root, **fields)


# ---------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 as a number (YAML 1.2) and without silently repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {key!r} is given twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: the string "1e-3" in quotes."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)  # 2026-01-01 is a name
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def load_config(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Root:
    """Read a config by path, or a shipped one by name (`demo`), and apply `key=value` overrides.

    Raises UserError naming file and key for an unknown key, a wrong type or an impossible value.
    """
    path = find_config(name_or_path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: found {type(raw).__name__}, expected a mapping of settings")
    return make_config(raw, str(path), parse_overrides(overrides))


def find_config(name_or_path: str | Path) -> Path:
    """The file a config argument means: a path, else the name of a shipped config."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in shipped_configs()}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    raise UserError(
        f"{name_or_path}: no such config file, nor a shipped config; shipped are {', '.join(sorted(shipped))}"
    )


def shipped_configs() -> list[Path]:
    """The configs that come with the package: `configs/` in a checkout, `mae/configs/` in a wheel."""
    here = Path(__file__).parents[1]
    return sorted(file for folder in ("configs", "mae/configs") for file in (here / folder).glob("*.yaml"))


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["pretrain.epochs=3"]` → `{"pretrain.epochs": 3}`; values are YAML."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"command line: found {pair!r}, expected key=value such as pretrain.epochs=3")
        try:
            found[key] = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise UserError(f"command line: {key}: not valid YAML: {' '.join(str(error).split())}") from None
    return found


def make_config(
    raw: Mapping[str, Any],
    place: str,
    overrides: Mapping[str, Any] | None = None,
    overrides_place: str = "command line",
) -> Root:
    """Plain settings (a config file's or a checkpoint's) → Config; errors name the place they come from."""
    merged, overrides = {"data": {}, **json.loads(json.dumps(raw, default=str))}, overrides or {}
    for key, value in _single(overrides.items()):
        _put(merged, key.split("."), value)
    try:  # JSON mode: strict types, but lists may become tuples
        return config_class().model_validate_json(json.dumps(merged, default=str))
    except ValidationError as error:
        raise UserError(_explain(error, place, overrides, overrides_place)) from None


def change_config(config: Root, overrides: Mapping[str, Any], place: str = "command line") -> Root:
    """A copy of the config with dotted keys replaced; `place` says where the overrides stand."""
    return make_config(config.model_dump(mode="json"), place, overrides, place)


def _single(overrides: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """A mapping given for a section changes what it names and leaves the section's other settings alone."""
    for key, value in overrides:
        if isinstance(value, dict) and value and key in _keys(sections=True):
            yield from _single((f"{key}.{name}", part) for name, part in value.items())
        else:
            yield key, value


def _put(tree: dict, keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def expand(text: str, place: str) -> str:
    """Replace `${NAME}` and `${NAME:-default}` by the environment; UserError if NAME is not set."""

    def value(match: re.Match) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name) or default
        if found is None:
            raise UserError(f"{place}: ${{{name}}} is not set; export {name}=/path, or give {place}=/path")
        return found

    return str(Path(re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)).expanduser())


# ---------------------------------------------------------------- errors


def _explain(error: ValidationError, place: str, overrides: Mapping[str, Any], overrides_place: str) -> str:
    """The first thing wrong, in one line; a key that is missing may be one that is misspelt."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key, found, message = ".".join(str(part) for part in first["loc"]), first.get("input"), first["msg"]
    if any(given == key or given.startswith(key + ".") or key.startswith(given + ".") for given in overrides):
        place = overrides_place
    if first["type"] == "extra_forbidden":
        while isinstance(found, dict) and len(found) == 1:  # optim: {lr: 1} → optim.lr
            [(name, found)] = found.items()
            key += f".{name}"
        near = _nearest(key, _keys(True) + _keys(False) if isinstance(found, dict) else _keys(False))
        return f"{place}: {key} is unknown" + (f"; did you mean {near}?" if near else "; see --print-config")
    if first["type"] == "missing":
        meaning = dict(describe(config_class())).get(key, "")
        return f"{place}: {key} is missing" + (f" ({meaning})" if meaning else "")
    if first["type"] == "value_error":  # from a section's own check, which names the setting
        return f"{place}: {key}.{message.removeprefix('Value error, ')}"
    expected = re.sub(r"^\w+ should be", "expected", message)
    expected = expected.replace("an object", "a mapping").replace("a valid array", "a list")
    return f"{place}: {key}: found {json.dumps(found)}, {re.sub(r'^[A-Z][a-z]+ should', 'expected to', expected)}"


def _nearest(key: str, names: Iterable[str]) -> str | None:
    """The valid name an unknown key may mean: a sibling if one is near, else one elsewhere."""
    parent, _, leaf = re.sub(r"\.\d+", "", key).rpartition(".")
    best, best_rank = None, (False, 0.0)
    for name in names:
        other, _, right = name.rpartition(".")
        near, sibling = _nearness(leaf, right), other == parent
        room = parent.split(".")[0] == other.split(".")[0]
        rank = (sibling, near, room, difflib.SequenceMatcher(None, parent, other).ratio())
        if near >= (0.6 if sibling else 0.7) and rank > best_rank:
            best, best_rank = name, rank
    return best


def _nearness(wrong: str, right: str) -> float:
    """0 to 1; words of the other, as lr of base_lr, are near."""
    words, others = set(wrong.split("_")), set(right.split("_"))
    return 0.8 if words < others or others < words else difflib.SequenceMatcher(None, wrong, right).ratio()


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of a config class with its meaning."""
    for name, field in cls.model_fields.items():
        yield prefix + name, field.description or ""
        if inner := _section(field.annotation):
            yield from describe(inner, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class a field holds, alone or in a tuple."""
    classes = (part for part in (annotation, *get_args(annotation)) if isinstance(part, type))
    return next((part for part in classes if issubclass(part, BaseModel)), None)


@cache
def _keys(sections: bool) -> tuple[str, ...]:
    """The dotted keys of all sections, or of all single settings."""
    names = [name for name, _ in describe(config_class())]
    parents = {name.rpartition(".")[0] for name in names}
    return tuple(name for name in names if (name in parents) == sections)


# ---------------------------------------------------------------- writing


def print_config(config: BaseModel, indent: str = "") -> str:
    """The resolved config as YAML, every field with its meaning and, where it differs, its default."""
    lines = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            lines += ["", f"{indent}{name}:"] if not indent else [f"{indent}{name}:"]
            lines.append(print_config(value, indent + "  "))
            continue
        meaning = field.description or ""
        if not field.is_required() and (default := field.get_default(call_default_factory=True)) != value:
            meaning += f" (default: {_inline(default)})"
        lines.append(f"{indent}{name}: {_inline(value)}  # {meaning}")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    plain = json.loads(json.dumps(value, default=lambda v: v.model_dump(mode="json")))
    text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("\n...")


# ---------------------------------------------------------------- commands


class Parser(argparse.ArgumentParser):
    """argparse, with errors like everyone's and key=value before, between or after options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; see {self.prog} --help")

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        return self.parse_intermixed_args(argv)


def command_parser(prog: str, about: str) -> Parser:
    """A parser with what all commands share: --config, --print-config and key=value overrides."""
    parser = Parser(prog, description=about, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="a YAML file, or the name of a shipped config")
    parser.add_argument("--print-config", action="store_true", help="print every setting and its meaning, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config's")
    return parser


FLAGS = {"verbose": "engine.verbose=true", "deterministic": "engine.deterministic=true"}  # stand for settings


def training_parser(prog: str, about: str) -> Parser:
    """`command_parser` with what both stages of training share."""
    parser = command_parser(prog, about)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="insist on going on from the run folder's checkpoint, which is gone on from anyway where there is one",
    )
    parser.add_argument("--verbose", action="store_true", help="a line every engine.log_every steps")
    parser.add_argument("--deterministic", action="store_true", help="only deterministic algorithms, also on CUDA")
    parser.add_argument(
        "--overfit",
        type=int,
        metavar="N",
        help="train and validate on the same N training images without augmentation, to see the loss go to the floor; "
        "the run folder's name gets -overfitN",
    )
    return parser


def parse_training(parser: Parser, argv: list[str] | None, overfit: Iterable[str]) -> argparse.Namespace:
    """Parse; what flags stand for and --overfit changes goes before the overrides, which may say otherwise."""
    arguments = parser.parse_args(argv)
    count = arguments.overfit
    if count is not None and count < 2:
        raise UserError(f"command line: --overfit: found {count}, expected at least 2 images")
    implied = [setting for flag, setting in FLAGS.items() if getattr(arguments, flag)]
    arguments.overrides = [*implied, *(overfit if count else ()), *arguments.overrides]
    return arguments


def configure(arguments: argparse.Namespace) -> Root | None:
    """The config a parsed command line asks for; None where none is given and another file brings it.

    --print-config prints it and stops.
    """
    if arguments.config:
        config = load_config(arguments.config, arguments.overrides)
    elif getattr(arguments, "checkpoint", None):
        return None
    elif arguments.print_config:
        overrides = parse_overrides(arguments.overrides)
        config = make_config({}, "command line", {"data.source": "phantom", **overrides})
    else:
        either = "--config or --checkpoint" if hasattr(arguments, "checkpoint") else "--config"
        raise UserError(f"command line: {either} is missing; a config is a YAML file or a shipped one such as demo")
    return config if not arguments.print_config else print_and_stop(config)


def print_and_stop(config: Root) -> NoReturn:
    print(print_config(config))
    raise SystemExit(0)


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command; a user's mistake becomes one line on stderr and exit code 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint is kept, the same command continues from it", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `mae-pretrain --print-config | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # no permission, a file where a folder is wanted
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
