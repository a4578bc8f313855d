"""Every recipe of docs/cookbook.md is a grid that can be given: its trainings are listed, its contrasts are found."""

import re

import pytest
import yaml
from checkout import ROOT
from foreign_resnets import pth, torchvision_weights
from foreign_weights import folder_of, tiny
from tiny_world import SETTINGS

from classify.contrasts import candidates, declared
from classify.extra_rows import extra_names
from classify.grid import check_settings, expand_grid, trials_of
from data.config import make_config

PAGE = (ROOT / "docs/cookbook.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n+```yaml\n(.*?)```", PAGE, re.M | re.S))
BASE = {**SETTINGS, "data.source": "phantom", "run": "runs/mine"}
IMAGES = 400  # labelled ones, which budgets are shares of


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch) -> None:
    """Small versions of what the recipes read from the environment; files that they name lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_MAE_BASE", str(folder_of(tiny(), tmp_path / "vit")))
    monkeypatch.setenv("RESNET18", str(pth(tmp_path / "resnet18.pth", torchvision_weights())))


def test_every_block_of_settings_is_a_recipe_with_a_heading():
    assert len(RECIPES) == PAGE.count("```yaml") >= 10


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_grid_whose_trainings_can_be_listed(name):
    raw = yaml.safe_load(RECIPES[name])
    given = {key: value for key, value in BASE.items() if key != "compare.seeds" or "seeds" not in raw["compare"]}
    config = make_config(raw, "cookbook.md", given)
    cells = list(expand_grid(config, IMAGES))

    for cell in cells:
        check_settings(config, cell)
        assert len(trials_of(cell)) == (4 if config.compare.tune else 0)
    trained = sum(max(len(row.pretraining), 1) for row in config.compare.rows if row.predictions is None)
    assert len(cells) == trained * len(config.compare.seeds) * len(config.compare.labelled)

    tested = declared(config, candidates(cells, extra_names(config, cells)))
    if config.compare.contrasts is not None:
        assert len(tested) == len(config.compare.contrasts)
    assert tested


def test_pretrainings_of_a_recipe_differ_as_they_say():
    config = make_config(yaml.safe_load(RECIPES["Which mask ratio"]), "cookbook.md", BASE)
    ratios = {cell.pretrain_config.pretrain.mask_ratio for cell in expand_grid(config) if cell.pretrain_config}
    assert ratios == {0.5, 0.75, 0.9}
