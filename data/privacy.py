"""How credentialed data is treated: which data that is, who may see it, and how it is remembered.

The terms of a credentialed data set forbid passing it on. So its images and plain ids are shown only if its own config
asks for it. What is made of it is written for its owner alone (`keep_private` in data/writing.py). Checkpoints remember
its ids by hashes with a secret of this machine. docs/security.md promises all this.
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from data.config import SHIPPED, change_config, expand
from data.errors import UserError
from data.known_layouts import TABLES, known_data_set
from data.settings import DataConfig, DataSettings
from data.sex_and_age import plain_name
from data.sources import SOURCES
from data.writing import flush_to_disk

Kind = TypeVar("Kind", bound=DataConfig)
# what a config may allow for its own data: (setting, value that allows it, value where nothing is said)
PERMISSIONS = (
    ("report.images", True, None),
    ("data.credentialed", False, None),
    ("data.share", "group", "private"),
)
KEY_BYTES = 32
SALT = "salt"
# plain names of columns that describe groups of people: of credentialed tables no others are passed on unasked
OF_PEOPLE = (
    *("race", "ethnicity", "ethnicgroup", "raceethnicity", "primaryrace", "insurance", "insurancetype", "language"),
    *("maritalstatus", "agegroup", "bmi", "bmigroup", "smoking", "smokingstatus"),
)


# ---------------------------------------------------------------- which data


def is_credentialed(settings: DataSettings) -> bool:
    """Whether what is made of this data must stay private; a mix must if any part must."""
    return bool(credentialed_sources(settings))


def credentialed_sources(settings: DataSettings) -> tuple[str, ...]:
    """The names of the credentialed data sets among those of the settings; () where all are open.

    If the settings do not say it, the files decide too: MIMIC-CXR's files read by another source are MIMIC-CXR's.
    """
    names = list(credentialed_by_name(settings))
    if settings.credentialed is None:
        names += recognised(settings)
    return tuple(name for name in settings.each_source() if name in names)


def credentialed_unlabelled(settings: DataSettings) -> tuple[str, ...]:
    """The same for the data sets that serve pretraining alone."""
    further = settings.of_unlabelled()
    return credentialed_sources(further) if further else ()


def credentialed_by_name(settings: DataSettings) -> tuple[str, ...]:
    """The same by the settings alone: those of a stranger's checkpoint must not choose a place to look at."""
    names = []
    for name, part in settings.each_source().items():
        by_terms = SOURCES[part.source].credentialed
        if settings.credentialed or (settings.credentialed is None and by_terms):
            names.append(name)
    return tuple(names)


def recognised(settings: DataSettings) -> dict[str, str]:
    """Data sets that are read by an open source but hold a credentialed one's files: name → which one."""
    found = {}
    for name, part in settings.each_source().items():
        if SOURCES[part.source].credentialed or part.source == "phantom":
            continue
        with suppress(UserError):  # a path that cannot be resolved, which its reader reports
            known = known_data_set(*_places(part))
            if known is not None:
                found[name] = known
    return found


def credentialed_places(paths: Iterable[str | Path]) -> tuple[str, ...]:
    """The credentialed data sets to which these files, folders and tables belong, told as `recognised` tells."""
    found = set()
    for word in paths:
        if str(word).startswith(SHIPPED):  # open data, whatever the working folder
            continue
        path = Path(word)
        table = path if path.name.lower().endswith(TABLES) else None
        found.add(known_data_set(path, table))
    return tuple(sorted(name for name in found if name is not None))


def terms(sources: Collection[str]) -> str:
    """The notice that goes with everything made from these data sets."""
    return (
        f"Made from credentialed data ({', '.join(sorted(sources))}): check the data use agreement before sharing any "
        "of it."
    )


# ---------------------------------------------------------------- who may see it


def may_show(credentialed: bool, wished: bool | None) -> bool:
    """Whether images and plain ids may be shown: those of credentialed data only if it is wished for.

    wished: `report.images` of the config of this very data. This is the one place that decides.
    """
    if wished is None:
        return not credentialed
    return wished


def may_hand_on(column: str, credentialed: bool, wished: Collection[str]) -> bool:
    """Whether a further column of a user's table may go into predictions: it may hold surnames, or worse.

    Of credentialed data only columns known to describe groups of people may, and those that `wished` names.
    """
    return not credentialed or plain_name(column) in OF_PEOPLE or column in wished


def with_settings(
    made: Kind,
    *layers: Mapping[str, Any],
    place: str = "command line",
    made_on: Collection[str] | None = None,
) -> Kind:
    """A copy of a config with dotted keys replaced, layer by layer, as `change_config` does; consent stays behind.

    What a config allows (`PERMISSIONS`) holds for its own data. A layer that changes the data does not inherit it: it
    must allow it itself. What is forbidden stays so.

    made_on: the `data_sets` of a checkpoint's config when it was made, as its variables and links may lead elsewhere by
    now.
    """
    configs = [made]
    for layer in layers:
        configs.append(change_config(configs[-1], layer, place))
    changed = configs[-1]

    lost = {}
    for name, allowing, without in PERMISSIONS:
        if _value(changed, name) != allowing:
            continue
        allowed = [_value(made, name) == allowing, *(dict(_leaves(layer)).get(name) == allowing for layer in layers)]
        wanted = data_sets(changed.data)
        for_this_data = [wanted <= data_sets(config.data) for config in configs]
        if made_on is not None:
            for_this_data[0] = wanted <= set(made_on)
        if not any(a and b for a, b in zip(allowed, for_this_data, strict=True)):
            lost[name] = without
    return change_config(changed, lost, place) if lost else changed


def data_sets(settings: DataSettings) -> set[str]:
    """Each data set of the settings, as 16 hexadecimal digits of its source and the place it really lies at."""
    found = set()
    parts = list(settings.each_source().values())
    further = settings.of_unlabelled()
    if further is not None:
        parts += further.each_source().values()
    for part in parts:
        try:
            root, table = _places(part)
            where = [os.path.realpath(root), os.path.realpath(table) if table else ""]
        except UserError:  # a variable is not set: the path is taken as it is written
            where = [part.root, part.table]
        found.add(hashlib.sha256("\n".join((part.source, *where)).encode()).hexdigest()[:16])
    return found


def _places(part: DataSettings) -> tuple[Path, Path | None]:
    """The folder of one data set, and the table that lists its images if there is one."""
    root = Path(expand(part.root, "data.root"))
    if part.source != "table":
        return root, None
    return root, root / expand(part.table, "data.table")


def _value(config: DataConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _leaves(changes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of changes that are given in sections or one by one."""
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


# ---------------------------------------------------------------- how it is remembered


def secret_key() -> bytes:
    """The secret of this machine's user, made when it is first needed; if it cannot be kept, another one each time.

    Ids can be guessed: a hospital's numbers, or all those of a published data set. Without the secret no guess can be
    checked.
    """
    try:
        path = _key_place()
        with suppress(FileExistsError):  # another process was first
            _make_key(path)
        trouble = f"{path}: found no secret of {KEY_BYTES} bytes"
    except (OSError, RuntimeError) as error:
        trouble = str(error)
    key = kept_key()
    if key is not None:
        return key
    print(f"warning: no secret kept ({trouble}): later runs will not know these images by their ids", file=sys.stderr)
    return secrets.token_bytes(KEY_BYTES)


def kept_key() -> bytes | None:
    """The secret by which ids are remembered; None if none is kept."""
    try:
        key = _key_place().read_bytes()
    except (OSError, RuntimeError):
        return None
    return key if len(key) == KEY_BYTES else None


def _key_place() -> Path:
    given = os.environ.get("XDG_DATA_HOME", "")
    folder = Path(given) if given.startswith("/") else Path.home() / ".local/share"
    return folder / "mae-cxr" / "key"


def salt_of(folder: Path | None) -> bytes | None:
    """The salt for hashing the ids of files: the one that lies in `folder`, else one derived from this user's secret.

    It travels with the stores, so that a moved project keeps its patients. If the stores are deleted, the same salt is
    derived again. None if there is neither: it would be another one each time.
    """
    if folder is not None:
        with suppress(OSError):
            salt = (folder / SALT).read_bytes()
            if len(salt) == KEY_BYTES:
                return salt
    secret_key()
    key = kept_key()
    return None if key is None else hashlib.blake2b(b"ids of files", key=key, digest_size=KEY_BYTES).digest()


def keep_salt(folder: Path, salt: bytes) -> None:
    """Write the salt for this user alone: with it, anybody could check a guessed id."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        _make_key(folder / SALT, salt)


def _make_key(path: Path, key: bytes | None = None) -> None:
    """Write a key whole or not at all; of several processes that do so at once, the first one's key stands."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    key = key or secrets.token_bytes(KEY_BYTES)

    try:
        _write_new(temporary, key)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # exFAT and some network file systems have no hard links
            _write_new(path, key)
    finally:
        temporary.unlink(missing_ok=True)


def _write_new(path: Path, key: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            file.write(key)
            flush_to_disk(file)
        except OSError:  # a full disk: no part of a key stays
            path.unlink()
            raise
