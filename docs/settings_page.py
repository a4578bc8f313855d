"""Writes docs/settings.md: every setting of a config, from the classes that read them.

python docs/settings_page.py            # write the page
python docs/settings_page.py --check    # exit 1 if it is not what this would write
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from classify.settings import ClassifyConfig
from data.config import _inline, _section

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """# Settings

Every setting of a config, its default and an example. `python docs/settings_page.py` writes this page from the code,
and a test holds it against that and loads every example.

- In a YAML file, sections are nested: `pretrain: {mask_ratio: 0.5}`. On a command line a setting is a word with dots:
  `mae-pretrain --config demo pretrain.mask_ratio=0.5`. Lists and mappings are written as YAML in quotes:
  `'data.views=[PA]'`.
- What a config leaves out has its default. A key that does not exist, a wrong type or an impossible value is one line
  that names it.
- `mae-pretrain --config demo --print-config` prints all settings of that config with their meanings.
- Each command reads the whole file and uses its part: one file serves from `mae-prepare` to `mae-compare`.
- A run's `config.yaml` holds all of its settings, resolved.
"""

# for settings whose default does not show how a value is written
EXAMPLES: dict[str, Any] = {
    "run": "runs/mask50",
    "seed": 1,
    "device": "cuda:1",
    "precision": "bf16",
    "compile": True,
    "product": "onednn",
    "threads": 8,
    "data.source": "folder",
    "data.root": "${MIMIC_CXR_ROOT}",
    "data.sources": [{"source": "folder", "root": "clinic"}, {"source": "nih-cxr14", "root": "nih"}],
    "data.unlabelled": [{"source": "images", "root": "archive"}],
    "data.table": "labels.csv",
    "data.labels_root": "mimic-cxr-jpg/2.1.0",
    "data.patients": "patients.csv.gz",
    "data.labeler": "agreement",
    "data.uncertain": "positive",
    "data.target": "Pneumonia",
    "data.normal": ["Controls"],
    "data.dicom_ids": False,
    "data.columns.path": "Image Index",
    "data.columns.label": "diagnosis",
    "data.columns.image_id": "accession",
    "data.columns.patient_id": "MRN",
    "data.columns.study_id": "study",
    "data.columns.split": "fold",
    "data.columns.view": "projection",
    "data.views": ["PA"],
    "data.where": {"pixels": 128},
    "data.sample": 10000,
    "data.validate_fraction": 0.2,
    "data.test_fraction": 0.2,
    "data.image_size": [224, 192],
    "data.resize": "squash",
    "data.tone": "mimic_jpg",
    "data.credentialed": True,
    "data.share": "group",
    "data.max_rejected": 0.05,
    "data.store": False,
    "data.workers": 4,
    "report.images": True,
    "report.subgroups": ["view", "sex"],
    "report.checklist": {"CLAIM 5": "retrospective"},
    "model.preset": "vit_small_patch16",
    "model.init": "vit-mae-base",
    "model.in_channels": 3,
    "model.embed": "conv",
    "model.patch_size": 8,
    "model.width": 256,
    "model.depth": 8,
    "model.heads": 4,
    "model.decoder": "cross",
    "model.decoder_width": 128,
    "model.decoder_depth": 2,
    "model.decoder_heads": 4,
    "model.norm_pixel_loss": False,
    "model.pixel_mean": [0.485, 0.456, 0.406],
    "model.pixel_std": [0.229, 0.224, 0.225],
    "pretrain.epochs": 800,
    "pretrain.mask_ratio": 0.9,
    "pretrain.predict_ratio": 0.25,
    "pretrain.masking": "green",
    "pretrain.augment.blur": 1.5,
    "finetune.augment.blur": 1.0,
    "pretrain.visible_loss": 0.1,
    "pretrain.probe_every": 10,
    "pretrain.select": "probe",
    "pretrain.continue_from": "runs/long/epoch100.pt",
    "pretrain.keep_epochs": [10, 30, 100],
    "pretrain.optimizer.schedule": "constant",
    "pretrain.optimizer.cooldown_epochs": 20,
    "pretrain.optimizer.warmup_epochs": 40,
    "pretrain.optimizer.clip_grad": 1.0,
    "pretrain.optimizer.ema": 0.999,
    "engine.save_steps": 500,
    "engine.pictures_every": 10,
    "finetune.run": "runs/first",
    "finetune.model": "resnet18",
    "finetune.mode": "linear",
    "finetune.pool": "cls",
    "finetune.stem": "imagenet",
    "finetune.init": "resnet18-f37072fd.pth",
    "finetune.init_mean": [0.485, 0.456, 0.406],
    "finetune.init_std": [0.229, 0.224, 0.225],
    "finetune.sample": 500,
    "finetune.sample_covers": "train_and_validate",
    "finetune.draw": 1,
    "finetune.optimizer.base_lr": 1e-3,
    "finetune.optimizer.warmup_epochs": 5,
    "finetune.optimizer.weight_decay": 0.1,
    "finetune.optimizer.schedule": "constant",
    "finetune.optimizer.cooldown_epochs": 5,
    "finetune.optimizer.layer_decay": 0.65,
    "finetune.optimizer.ema": 0.999,
    "finetune.select": "loss",
    "finetune.threshold": "accuracy",
    "evaluate.split": "test",
    "evaluate.unit": "study",
    "compare.seeds": [0, 1, 2, 3, 4],
    "compare.pretraining_seeds": [0],
    "compare.labelled": ["5 %", "all"],
    "compare.labelled_settings": {"5 %": {"finetune.epochs": 100}},
    "compare.tune": {"finetune.optimizer.base_lr": [5e-4, 1e-3]},
    "compare.pretrainings": {"mae75": {"pretrain.mask_ratio": 0.75}, "mae90": {"pretrain.mask_ratio": 0.9}},
    "compare.rows": [
        {"name": "MAE", "pretraining": ["mae75"]},
        {"name": "ResNet-18", "set": {"finetune.model": "resnet18"}},
    ],
    "compare.rows.name": "MAE, probe",
    "compare.rows.pretraining": ["mae75"],
    "compare.rows.set": {"finetune.mode": "linear"},
    "compare.rows.labelled": ["5 %", "all"],
    "compare.rows.tune": {"finetune.optimizer.base_lr": [0.01, 0.1]},
    "compare.rows.ensemble": True,
    "compare.rows.predictions": "reader.csv",
    "compare.rows.threshold": 3,
    "compare.baseline": "ResNet-18",
    "compare.contrasts": [["MAE", "ResNet-18"]],
    "compare.ensembles": True,
}

ENTRIES = "compare.rows"  # a list; its settings stand in each of its entries

TORCHVISION = {
    "finetune.model": "resnet18",
    "finetune.init": "resnet18-f37072fd.pth",
    "finetune.init_mean": [0.485, 0.456, 0.406],
    "finetune.init_std": [0.229, 0.224, 0.225],
}

CONSTANT = {"pretrain.optimizer.schedule": "constant", "pretrain.optimizer.warmup_epochs": 5}

# what an example needs beside it to make a valid config
BESIDE: dict[str, dict[str, Any]] = {
    "model.pixel_mean": {"model.in_channels": 3},
    "model.pixel_std": {"model.in_channels": 3},
    "pretrain.select": {"pretrain.probe_every": 5},
    "pretrain.continue_from": CONSTANT,
    "pretrain.optimizer.schedule": CONSTANT,
    "pretrain.optimizer.cooldown_epochs": CONSTANT,
    "finetune.optimizer.schedule": {"finetune.optimizer.warmup_epochs": 5},
    "finetune.optimizer.cooldown_epochs": {
        "finetune.optimizer.schedule": "constant",
        "finetune.optimizer.warmup_epochs": 5,
    },
    "finetune.init": {"finetune.model": "resnet18"},
    "finetune.init_mean": TORCHVISION,
    "finetune.init_std": TORCHVISION,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is another")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE}: found another page than the settings give; run python {Path(__file__).name}")


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION, "## Above all sections\n", table(ClassifyConfig, "")]
    for name, section in sections(ClassifyConfig, ""):
        about = (section.__doc__ or "").strip().splitlines()[0]
        parts += [f"## `{name}`\n", f"{about}\n", table(section, f"{name}.")]
    return "\n".join(parts)


def sections(cls: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with its dotted name, in the order of the file; entries of lists are told with their list."""
    for name, field in cls.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            continue
        if prefix + name in ("data.sources", "data.unlabelled"):  # data.* again
            continue
        yield prefix + name, section
        yield from sections(section, f"{prefix}{name}.")


def table(cls: type[BaseModel], prefix: str) -> str:
    """The single settings of a section."""
    lines = ["| setting | default | meaning | for example |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        if _section(field.annotation) and not is_list(field):
            continue
        key = prefix + name
        shown = name if prefix == f"{ENTRIES}." else key
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{shown}` | {default_of(field)} | {meaning} | {example_of(key, field)} |")
    return "\n".join(lines) + "\n"


def is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list, maybe of sections."""
    return any(getattr(part, "__origin__", part) is tuple for part in (field.annotation, *get_args(field.annotation)))


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "none: must be given"
    return f"`{_inline(field.get_default(call_default_factory=True))}`"


def example_of(key: str, field: FieldInfo) -> str:
    """A setting as a command line has it: an example of its own, else the default."""
    value = EXAMPLES.get(key)
    if value is None and not field.is_required():
        value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    if key.startswith(f"{ENTRIES}."):
        return f"`{key.removeprefix(f'{ENTRIES}.')}: {_inline(value)}`"
    word = f"{key}={_inline(value)}"
    return f"`'{word}'`" if any(letter in word for letter in " ${}[]") else f"`{word}`"


if __name__ == "__main__":
    main()
