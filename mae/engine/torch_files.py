"""torch files of strangers: what they declare is compared with the file before torch builds anything from it.

torch runs no code that a file carries (`weights_only`). But a file of some kB may still ask for hundreds of GB: by the
size of a storage, by strides that repeat a number, by compression, or by a harmless class with a large number. So the
instructions of the pickle are read first, without building anything.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch

from data.errors import printable
from data.stand_ins import stand_in

ZIP = b"PK\x03\x04"  # how the files of torch.save begin; torch tells them from older ones by this
LONGEST = 2**26  # bytes of a pickle, which holds names and sizes; the tensors' numbers are stored outside it
OFTEN = 32  # times that tensors may use a file's numbers: layers may share theirs, and masks repeat one
SMALL = 2**26  # bytes of tensors that are always allowed
OLDER_HEADS = 3  # pickles before the content: a mark, a version, the machine
ITEM_SIZES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4, "QInt32": 4}
ITEM_SIZES |= {"Half": 2, "BFloat16": 2, "Short": 2}  # bytes; of all others, 1
CALLED = ("REDUCE", "NEWOBJ")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_qtensor")  # and their versions: _v2, _v3
# called with sizes, but take no memory
COSTLESS = ("torch.device", "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_wrapper_subclass")


class Refused(ValueError):
    """The file is none of torch's, asks for more than it has or carries code; callers put its place before this."""


def load_torch_file(path: Path, allowed: Sequence[type | tuple[type, str]] = (), held: bool = False) -> Any:
    """What a torch file holds: tensors, plain values and objects of the `allowed` classes, on the CPU.

    allowed: classes, or pairs of a class and the name that the file has for it. held: `check_sizes` has passed the file
    before. Raises Refused if the file declares more than it has, names other classes, or is a page or a pointer; and
    torch's own errors for a file that is damaged.
    """
    if not held:
        check_sizes(path)
    with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what torch finds odd: the file is either read or refused
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
        except UnpicklingError as error:
            if code := re.search(r"GLOBAL (\S+)", str(error)):
                raise Refused(
                    f"found a pickle that carries code ({printable(code[1])}), expected tensors and plain values; ask "
                    "for its state_dict alone, as safetensors"
                ) from None
            raise


def _is_archive(path: Path) -> bool:
    """Whether the file has the format that torch writes today."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def check_sizes(path: Path) -> None:
    """Refused where the file declares more than it has."""
    size = path.stat().st_size
    if _is_archive(path):
        _check_archive(path, size)
        return
    with path.open("rb") as file:
        start = file.read(LONGEST)
    if instead := stand_in(start):
        raise Refused(f"found {instead}, expected a torch file")
    older = io.BytesIO(start)

    # a file of torch before 1.6: the content, and then the numbers of its storages
    for _ in range(OLDER_HEADS):
        _Declared({}).follow(older)
    declared = _Declared({})
    declared.follow(older)
    declared.check(size)


def _check_archive(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"found {len(pickles)} pickles, expected the one of torch.save")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Refused("found compressed tensors, expected them as torch.save writes them")
        if sum(member.file_size for member in members) > size:
            raise Refused(f"found members of more bytes than the file's {size:,}, expected a whole archive")

        if pickles[0].file_size > LONGEST:
            raise Refused(f"found names and sizes of {pickles[0].file_size:,} bytes, expected at most {LONGEST:,}")
        folder = pickles[0].filename.removesuffix("data.pkl") + "data/"
        records = {
            member.filename.removeprefix(folder): member.file_size
            for member in members
            if member.filename.startswith(folder)
        }
        declared = _Declared(records)
        declared.follow(io.BytesIO(archive.read(pickles[0])))
    declared.check(size)


class _Name(NamedTuple):
    """A class or function that the pickle names."""

    text: str


class _Storage(NamedTuple):
    """The numbers of one or more tensors."""

    bytes: int
    item: int  # bytes of a number


class _Made:
    """An object of any class."""


class _Declared:
    """Follows the instructions of a pickle as torch does, and notes what they ask for."""

    def __init__(self, records: dict[str, int]):
        self.records = records  # bytes of each storage, where the file says them
        self.storages: dict[str, int] = {}  # bytes that the pickle says
        self.tensors = 0  # bytes of all tensors, each counted in full
        self.largest = 1  # largest product of the numbers that a class is called with

    def check(self, size: int) -> None:
        """Refused where a file of `size` bytes cannot have what it asks for."""
        asked = max(sum(self.storages.values()), self.largest)
        if asked > size:
            raise Refused(f"found {size:,} bytes that ask for {asked:,}, expected a whole file")
        if self.tensors > OFTEN * size + SMALL:
            raise Refused(f"found {size:,} bytes that spread over {self.tensors:,}, expected a number for each place")

    def follow(self, file: io.BytesIO) -> None:
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        argument: Any

        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name

            # containers
            if name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("TUPLE", "LIST", "APPENDS", "SETITEMS"):
                given = stack
                stack = marks.pop()
                self._gather(name, stack, given)
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            elif name in ("APPEND", "BUILD"):
                stack.pop()
            elif name == "SETITEM":
                stack.pop()
                _expect_name(stack.pop())

            # classes, functions and storages
            elif name in CALLED:
                arguments = stack.pop()
                stack.append(self._called(stack.pop(), arguments))
            elif name == "GLOBAL":
                stack.append(_Name(str(argument).replace(" ", ".")))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))

            # values that are used again, and plain values
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("PROTO", "STOP"):
                continue
            else:
                stack.append(_value(name, argument))

    def _gather(self, name: str, stack: list[Any], given: list[Any]) -> None:
        if name == "TUPLE":
            stack.append(tuple(given))
        elif name == "LIST":
            stack.append(_Made())
        elif name == "SETITEMS":
            for key in given[::2]:
                _expect_name(key)

    def _storage(self, named: Any) -> _Storage:
        """The storage of `("storage", type, key, location, count, …)`."""
        _, kind, key, _, count = named[:5]
        kind_name = kind.text.rpartition(".")[2].removesuffix("Storage")
        item = ITEM_SIZES.get(kind_name, 1)
        size = count * item
        if self.records and size > self.records.get(key, 0):
            raise Refused(f"found a storage of {size:,} bytes in {self.records.get(key, 0):,}, expected all of them")
        self.storages[key] = max(size, self.storages.get(key, 0))
        return _Storage(size, item)

    def _called(self, what: Any, arguments: Any) -> Any:
        name = what.text if isinstance(what, _Name) else ""
        if name == "torch._tensor._rebuild_from_type_v2":  # of function, type, arguments
            return self._called(arguments[0], arguments[2])
        if name.startswith("torch._utils._rebuild_parameter"):
            return arguments[0]
        if name.startswith(TENSORS):  # of storage, offset, size, stride
            self.tensors += prod(arguments[2]) * arguments[0].item
            return _Made()
        if name == "torch.Size":
            return tuple(*arguments)
        if name in COSTLESS:
            return _Made()

        # for any other class, all that matters is how much it could be asked for
        numbers = [each for part in arguments for each in (part if isinstance(part, tuple) else [part])]
        for each in numbers:
            _expect_name(each)
        self.largest = max(self.largest, prod(abs(each) for each in numbers if isinstance(each, int) and each))
        return _Made()


def _value(name: str, argument: Any) -> Any:
    """What an instruction for a plain value puts on the stack."""
    if name in ("NONE", "NEWTRUE", "NEWFALSE"):
        return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
    if name == "EMPTY_TUPLE":
        return ()
    if name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
        return _Made()
    return argument


def _expect_name(key: Any) -> None:
    """Names are texts and numbers: hashing a tuple in a tuple in a … would crash the process."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, tuple) for part in parts):
        raise Refused("found tuples in each other for a name, expected texts and numbers")
