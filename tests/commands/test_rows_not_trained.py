"""mae-compare with rows of files and with ensembles: they stand in the tables, and are the same when it is repeated."""

import shutil

import pandas as pd
from tiny_world import mistake, succeed

from classify.cli import compare, report


def test_files_and_ensembles_are_rows_of_the_comparison(world, tmp_path):
    table = pd.read_csv(world.images / "manifest.csv")
    validation = table[table["split"] == "validate"]
    readings = validation[["path"]].assign(rating=[1, 5, 2, 4, 3] * 2)
    for number in (1, 2):
        readings.assign(rating=readings["rating"] * number).to_csv(tmp_path / f"reader{number}.csv", index=False)
    files = f"[{tmp_path}/reader1.csv, {tmp_path}/reader2.csv]"
    plain = "{name: Plain, set: {finetune.augment.enabled: false}}"
    rows = f"[{{name: ViT}}, {{name: Readers, predictions: {files}}}, {plain}]"
    words = ["--config", world.config, f"run={tmp_path}/grid", f"compare.rows={rows}", "compare.seeds=[0,1]"]
    said = succeed(compare, *words, "compare.ensembles=true")
    found = pd.read_csv(tmp_path / "grid/comparison.csv")
    assert found["Model"].tolist() == ["ViT", "ViT, ensemble of 2", "Readers", "Plain", "Plain, ensemble of 2"]
    assert found["seeds"].tolist() == [2, 1, 2, 2, 1]
    assert found["n"].tolist() == [10] * 5
    assert "40 labelled training images" in said

    # files are read again, trained runs are not trained again
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("grid/*/*.pt")}
    again = succeed(compare, *words, "compare.ensembles=true")
    assert again.splitlines()[-12:] == said.splitlines()[-12:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("grid/*/*.pt")} == before

    # a report of predictions alone needs no reader's file either
    made = [tmp_path / "grid" / name for name in ("report.html", "comparison.md", "comparison.csv", "contrasts.csv")]
    written = [path.read_bytes() for path in made]
    assert "left out" not in succeed(report, shutil.copytree(tmp_path / "grid", tmp_path / "copy"))
    assert [(tmp_path / "copy" / path.name).read_bytes() for path in made] == written

    # a missing case is reported before anything is trained
    readings[1:].to_csv(tmp_path / "reader2.csv", index=False)
    line = mistake(compare, *words, f"run={tmp_path}/other", keep=tmp_path / "grid")
    assert "reader2.csv: found no row for 1 of 10 labelled validate images" in line
    assert not list(tmp_path.glob("other/*/*.pt"))
