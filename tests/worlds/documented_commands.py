"""The commands of the documentation, each run at small size: what a reader is told to type, and what it prints."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from checkout import ROOT
from PIL import Image
from radiograph_files import dicom
from tiny_world import call, radiograph

import classify.cli
import data.cli
import mae.cli
from data.phantom import write_tree

MAINS = {
    "mae-prepare": data.cli.prepare,
    "mae-pretrain": mae.cli.pretrain,
    "mae-reconstruct": mae.cli.reconstruct,
    "mae-finetune": classify.cli.finetune,
    "mae-evaluate": classify.cli.evaluate,
    "mae-compare": classify.cli.compare,
    "mae-report": classify.cli.report,
    "mae-embed": classify.cli.embed,
    "mae-predict": classify.cli.predict,
    "mae-export": classify.cli.export,
}
SMALL = [
    *("precision=fp32", "data.image_size=16", "data.phantom.images=60", "model.preset=vit_tiny_patch16"),
    *("threads=1", "product=onednn"),  # only its own tests measure which product is faster
    *("model.patch_size=8", "model.width=24", "model.depth=1", "model.heads=3", "model.decoder_width=16"),
    *("model.decoder_depth=1", "model.decoder_heads=2", "pretrain.epochs=1", "pretrain.batch_size=16"),
    *("finetune.epochs=1", "finetune.batch_size=16"),
]

MAKE_DEMO = ["make", "demo"]
PLACES = {"MIMIC_CXR_ROOT": "mimic", "VIT_MAE_BASE": "runs/demo-hf"}  # stand-ins for what nobody may ship


class Ran(NamedTuple):
    """A command that was run, and what it said."""

    name: str
    printed: str


# ---------------------------------------------------------------- what a page says


def commands_of(block: str) -> list[list[str]]:
    """The words of every command in a block of a page, in order."""
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def commands(page: str) -> list[list[str]]:
    """The words of every command in a page's bash blocks, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [words for block in re.findall(r"```bash\n(.*?)```", text, re.S) for words in commands_of(block)]


def steps_of_demo() -> list[list[str]]:
    """The words of every command that `make demo` runs after it has installed the package."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    return [shlex.split(line.replace("$(BIN)/", "")) for line in recipe[1].replace("\\\n", " ").splitlines()]


# ---------------------------------------------------------------- a reader, and what lies before him


def write_what_readers_have(root: Path) -> None:
    """Class folders of pictures, DICOM files with a CSV, some new ones, and MIMIC-CXR-JPG, all in small."""
    write_tree(root / "mimic", 120)
    rng = np.random.default_rng(0)
    rows = []
    for folder in ("hospital", "new", "radiographs/normal", "radiographs/pneumonia", "unlabelled"):
        (root / folder).mkdir(parents=True)
    for number in range(60):
        abnormal = bool(number % 2)
        name = ("normal", "pneumonia")[number % 2]
        Image.fromarray(radiograph(abnormal, rng)).save(root / "radiographs" / name / f"{number}.png")
        Image.fromarray(radiograph(abnormal, rng)).save(root / "unlabelled" / f"{number}.png")

        image = dicom(radiograph(abnormal, rng), bits=8)
        image.PatientID = f"p{number}"
        image.save_as(root / "hospital" / f"{number:04}.dcm")
        rows.append({"path": f"{number:04}.dcm", "label": ("normal", "abnormal")[abnormal]})
    pd.DataFrame(rows).to_csv(root / "hospital/manifest.csv", index=False)

    # films of today, one of which cannot be read
    dicom(radiograph(True, rng), bits=8).save_as(root / "new/0001.dcm")
    (root / "new/0002.dcm").write_bytes(b"\0" * 500)


def in_small(name: str, words: list[str]) -> list[str]:
    """A command's words, with sizes at which it takes seconds."""
    if name == "mae-predict":  # the run is named after its number of labels, 5 % of all
        return [word.replace("-n206-", "-n10-") for word in words]
    if name in ("mae-embed", "mae-evaluate", "mae-export", "mae-reconstruct", "mae-report"):
        return words
    sample = ["data.sample=200"] if "demo" in words else []
    grid = ["compare.labelled=[24]", "compare.seeds=[0]"] if "compare_mimic" in words else []
    return [*words, *SMALL, *sample, *grid]


def run_in_small(lines: list[list[str]], root: Path, patch: pytest.MonkeyPatch) -> list[Ran]:
    """Run commands in order, in the working folder `root`; each must succeed. Other programs are skipped."""
    ran = []
    for name, *words in [step for line in lines for step in (steps_of_demo() if line == MAKE_DEMO else [line])]:
        if name == "export":
            variable = words[0].partition("=")[0]
            patch.setenv(variable, str(root / PLACES[variable]))
        if name in MAINS:
            outcome = call(MAINS[name], *in_small(name, words))
            passes = (0, 1) if "--overfit" in words else (0,)  # one epoch is too short to pass: exit code 1
            assert outcome.code in passes, f"{name} {words}: {outcome.err}"
            ran.append(Ran(name, outcome.out + outcome.err))
    return ran
