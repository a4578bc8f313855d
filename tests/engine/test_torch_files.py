"""Files of torch.save are read, whoever wrote them and when; what they declare is first checked against their size.

tests/commands/test_files_of_strangers.py tests the refusals.
"""

import argparse
import random
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from stage_runs import assert_same
from torch import nn

from data.errors import UserError
from mae.engine.torch_files import load_torch_file
from mae.weights.files import read_facebook


def trained() -> dict[str, object]:
    """What a trainer keeps beside its weights."""
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(
            lr=1e-3, crop=(0.2, 1.0), device=torch.device("cuda", 1), inner=argparse.Namespace(x=None)
        ),
        "rng": [torch.get_rng_state(), np.random.RandomState(0).get_state(), random.Random(0).getstate()],
        "best": np.float64(0.5),
        "history": np.arange(1000.0),
        "counts": Counter("abca"),
        "seen": {2, 3, 5},
        "size": torch.Size([512, 512, 7, 7]),
        "dtype": torch.bfloat16,
        "code": [b"abc" * 10, bytearray(b"xyz" * 1000), 3 + 4j, 10**30],
        (2, 3): 5,
    }


def kinds() -> dict[str, torch.Tensor]:
    """Tensors of all dtypes and layouts."""
    numbers = torch.randn(7, 5)
    cast = {name: numbers.to(getattr(torch, name)) for name in ("float16", "bfloat16", "float64", "int8", "bool")}
    return {
        **cast,
        "complex": torch.randn(3, 2, dtype=torch.complex64),
        "view": numbers[2:5],
        "transposed": numbers.t(),
        "channels last": torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(numbers),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.0),
        "repeated": torch.zeros(1).expand(1000, 1000),  # a mask that was broadcast
        "quantized": torch.quantize_per_tensor(torch.randn(300, 301)[:, 1:], 0.1, 0, torch.qint8),
        "sparse": numbers.to_sparse(),
        "nowhere": torch.empty(3000, 3000, device="meta"),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_keep_is_read(zipped, tmp_path):
    content = trained()
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = read_facebook(tmp_path / "x.pt")
    assert list(found) == list(content)
    assert_same(found["model"], content["model"])
    assert vars(found["args"])["crop"] == (0.2, 1.0)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_of_all_kinds_are_read(zipped, protocol, tmp_path):
    content = kinds()
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = load_torch_file(tmp_path / "x.pt")
    assert list(found) == list(content)
    for name in ("quantized", "sparse", "nowhere"):  # which torch cannot compare
        assert found.pop(name).shape == content.pop(name).shape
    assert_same(found, content)


def test_numbers_of_eight_bits_are_read(tmp_path):
    content = {
        "w": torch.zeros(300, 2, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "u": torch.ones(3).to(torch.uint16),
    }
    torch.save(content, tmp_path / "x.pt")
    assert load_torch_file(tmp_path / "x.pt")["w"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("zipped", [True, False])
def test_layers_may_share_their_numbers(zipped, tmp_path):
    shared = torch.randn(512, 1024)
    content = OrderedDict((f"layers.{number}", shared.detach()) for number in range(24))
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_same(load_torch_file(tmp_path / "x.pt"), content)


def rewritten(source: Path, path: Path, left_out: Mapping[str, object], changed: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            short = name.partition("/")[2]
            if short not in left_out:
                after.writestr(name, changed.get(short, before.read(name)))
    return path


def test_archives_of_older_torch_and_of_other_machines_are_read(tmp_path):
    content = {"a": torch.randn(7, 5), "b": torch.arange(3), "c": torch.randn(2, dtype=torch.float16)}
    torch.save(content, tmp_path / "new.pt")
    later = dict.fromkeys(("byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"))
    assert_same(load_torch_file(rewritten(tmp_path / "new.pt", tmp_path / "old.pt", later, {})), content)

    swapped = {"byteorder": b"big"}
    for number, tensor in enumerate(content.values()):
        swapped[f"data/{number}"] = tensor.numpy().byteswap().tobytes()
    assert_same(load_torch_file(rewritten(tmp_path / "new.pt", tmp_path / "big.pt", {}, swapped)), content)


def test_files_of_many_gigabytes_are_read_without_their_numbers(tmp_path):
    with torch.serialization.skip_data():  # reserves room for the numbers, and writes none
        torch.save({f"{number}": torch.empty(2**29 + number) for number in range(3)}, tmp_path / "x.pt")
    if (tmp_path / "x.pt").stat().st_blocks > 2**12:
        pytest.skip("this file system knows no holes")
    assert (tmp_path / "x.pt").stat().st_size > 3 * 2**31
    found = load_torch_file(tmp_path / "x.pt")
    assert [len(tensor) for tensor in found.values()] == [2**29, 2**29 + 1, 2**29 + 2]


def test_many_views_of_few_numbers_ask_for_too_much(tmp_path):
    numbers = torch.randn(2**20)
    torch.save([numbers.detach() for _ in range(100)], tmp_path / "x.pt")
    with pytest.raises(UserError, match="bytes that spread over 419,430,400, expected"):
        read_facebook(tmp_path / "x.pt")
