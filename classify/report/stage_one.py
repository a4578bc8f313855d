"""Loss and probe of pretrainings before any fine-tuning, by their length."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from classify.comparison import Comparison, Learned
from classify.report.training import OF_PRETRAINING, epochs_of, kept_epoch
from classify.settings import ClassifyConfig
from mae.settings import PretrainSettings

STAGE_ONE = (
    "For the weights that stage two began from: mean over seeds, with the lowest and the highest. Reconstruction: loss "
    "on validation images. Compare it only among pretrainings that mask, predict and scale patches in the same way. "
    "Probe: validation AUC of a logistic regression on frozen features."
)
FOLDER = re.compile(r"^pretrain-(.+)-seed\d+$")  # as classify/grid.py names them


@dataclass(frozen=True)
class _Group:
    """Pretrainings that differ by their seeds alone."""

    name: str
    settings: PretrainSettings
    learned: tuple[Learned, ...]


def learned(pretrainings: Mapping[str, Path], configs: Mapping[str, ClassifyConfig]) -> dict[str, Learned]:
    """What the best.pt of each stage-one run reached, if its curves say so. Both arguments are by folder name."""
    found = {}
    for name, run in pretrainings.items():
        epochs = epochs_of(run, OF_PRETRAINING, warn=False)
        if epochs:
            kept = kept_epoch(epochs, configs[name].pretrain.select)
            found[name] = Learned(int(kept["epoch"]), kept["validate/loss"], kept.get("probe/logistic_auc"))
    return found


def arm_of(folder: str) -> str:
    """A pretraining's name, from its folder's name, which ends with the seed."""
    found = FOLDER.match(folder)
    return found[1] if found else folder


def stage_one_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """A row for each of the config's pretrainings whose result is known, with its seeds together."""
    groups = list(_groups(comparison))
    probed = any(each.probe is not None for group in groups for each in group.learned)
    for group in groups:
        row = {
            "Pretraining": group.name,
            "Epochs": f"{group.settings.epochs:,}",
            "Kept": _spread([each.epoch for each in group.learned], "{:,.0f}"),
            "% Masking": f"{100 * group.settings.mask_ratio:g}",
            "Seeds": str(len(group.learned)),
            "Reconstruction": _spread([each.loss for each in group.learned], "{:.4f}"),
        }
        if probed:
            row["Probe"] = _spread([each.probe for each in group.learned if each.probe is not None], "{:.3f}")
        yield row


def _groups(comparison: Comparison) -> Iterator[_Group]:
    for name in dict.fromkeys(arm_of(folder) for folder in comparison.learned):
        of_name = [folder for folder in comparison.learned if arm_of(folder) == name]
        settings = comparison.pretrain_configs[of_name[0]].pretrain
        yield _Group(name, settings, tuple(comparison.learned[folder] for folder in of_name))


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and the lowest and highest if they differ."""
    if not values:
        return "–"
    mean, low, high = (form.format(value).removeprefix("0") for value in (fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"
