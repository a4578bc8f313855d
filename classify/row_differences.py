"""What differs between the rows of a comparison, in every setting of stage two and of the model."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from classify.finetune import optimizer_choice
from classify.grid import Cell
from classify.models.build import stem_of
from classify.settings import ClassifyConfig
from mae.engine.run import flat

NOT_TOLD = {"finetune.run", "finetune.sample", "finetune.draw"}  # whose heading or folder says it, equal in all rows
OF_VITS = {"finetune.pool", "finetune.drop_path", "finetune.drop_patches", "finetune.optimizer.layer_decay"}
OF_RESNETS = {"finetune.stem", "finetune.init", "finetune.init_mean", "finetune.init_std"}
OF_BOTH = {"model.in_channels", "model.pixel_mean", "model.pixel_std"}
NONE = "–"  # a setting that a row's network does not have


@dataclass(frozen=True)
class Arm:
    """A training of a row: its settings, and the pretraining it begins from."""

    row: str
    config: ClassifyConfig
    pretraining: str | None

    def settings(self) -> dict[str, Any]:
        """All that was decided for it, null settings resolved."""
        config = self.config
        sections = {name: getattr(config, name).model_dump(mode="json") for name in ("finetune", "model")}
        found = {key: value for key, value in flat(sections).items() if key not in NOT_TOLD}
        weights = self.pretraining or (
            config.model.init if config.finetune.model == "vit" else found.get("finetune.init")
        )

        # what the mode or the size decides
        chosen = optimizer_choice(config.finetune, pretrained=weights is not None)
        found |= {f"finetune.optimizer.{name}": value for name, value in asdict(chosen).items()}
        found["finetune.stem"] = stem_of(config.finetune, config.data.image_size)

        # what the network does not have
        of_vit = config.finetune.model == "vit"
        for key in found:
            of_other = key in (OF_RESNETS if of_vit else OF_VITS)
            if of_other or (key.startswith("model.") and key not in OF_BOTH and not of_vit):
                found[key] = NONE
        return {"weights": weights or "random"} | found


def differences_between_rows(cells: Iterable[Cell]) -> list[dict[str, str]]:
    """`differences_between_arms` of a grid's cells, with the settings that they have chosen."""
    return differences_between_arms(Arm(cell.name, cell.config, cell.pretraining) for cell in cells)


def differences_between_arms(arms: Iterable[Arm]) -> list[dict[str, str]]:
    """A row for each setting that is not equal in all rows of the comparison: `Setting`, then a column for each.

    If the trainings of a row differ, as tuned ones may by label budget, all their values are listed.
    """
    # setting → row → its values, each once
    found: dict[str, dict[str, dict[str, None]]] = {}
    rows: dict[str, None] = {}
    for arm in arms:
        rows[arm.row] = None
        for key, value in arm.settings().items():
            found.setdefault(key, {}).setdefault(arm.row, {})[_shown(value)] = None

    table = []
    for key, values in found.items():
        shown = {row: ", ".join(values.get(row, {NONE: None})) for row in rows}
        if len(set(shown.values())) > 1:
            table.append({"Setting": key, **shown})
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " to ".join(_shown(part) for part in value)
    return str(value)
