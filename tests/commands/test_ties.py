"""Rows that are equal: none of them is called highest, better or best."""

import re

import yaml
from tiny_world import TINY, succeed

from classify.cli import compare


def test_a_tie_of_five_has_no_winner_and_a_mask_ratio_stands_once(world, tmp_path):
    same = {"finetune.model": "resnet18", "finetune.stem": "imagenet"}
    rows = [{"name": f"row {letter}, 75 %", "set": same} for letter in "ABCDE"]
    settings = {"compare": {"seeds": [0], "rows": rows}}
    (tmp_path / "tie.yaml").write_text(yaml.safe_dump(settings))
    words = [*TINY, "data.source=table", f"data.root={world.images}", f"data.store={world.root}/stores"]
    printed = succeed(compare, "--config", tmp_path / "tie.yaml", *words, f"run={tmp_path}/runs")

    aucs = re.findall(r"^\| row [A-E], 75 % .*\| (\S+ \[\S+ \S+\]) +\|$", printed, flags=re.MULTILINE)
    assert len(aucs) >= 5 and len(set(aucs[:5])) == 1  # it is a tie
    said = printed + (tmp_path / "runs/comparison.md").read_text()
    assert "Not shown" in said  # the answer to "is one better than the other?"
    claims = re.findall(r".{60}\b(?:highest AUC:|is better|better still|wins?\b).{60}", said, flags=re.IGNORECASE)
    assert claims == []
    assert "75 75" not in said
    assert f"mae-predict --checkpoint {tmp_path}/runs/" in printed
