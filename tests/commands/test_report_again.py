"""mae-report: a comparison's files made again from comparison.json and predictions alone."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tiny_world import mistake, succeed

from classify.cli import compare, report

GRID = (
    "compare={split: test, seeds: [0, 1], pretrainings: {mae: {}}, "
    "rows: [{name: MAE, pretraining: [mae]}, {name: ViT}, {name: ResNet, set: {finetune.model: resnet18}}]}"
)
MADE = (
    *("comparison.csv", "contrasts.csv", "comparison.md", "comparison.json", "report.html"),
    *("checklist.md", "model_cards/mae.md", "model_cards/resnet.md"),
)


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "grid"
    succeed(compare, "--config", world.config, f"run={folder}", GRID)
    return folder


@pytest.fixture
def moved(compared, tmp_path) -> Path:
    """A copy of the files that one commits, without those that are made from them."""
    to = tmp_path / "elsewhere"
    wanted = ["comparison.json", *sorted(str(p.relative_to(compared)) for p in compared.glob("*/predictions/*.*"))]
    for name in wanted:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(compared / name, to / name)
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in MADE}


def test_the_same_bytes_where_everything_is_there(compared, tmp_path):
    copy = shutil.copytree(compared, tmp_path / "copy")
    for name in MADE:
        if name != "comparison.json":
            (copy / name).unlink()
    said = succeed(report, copy)
    assert "left out" not in said
    assert contents(copy) == contents(compared)


def test_without_curves_and_pictures_numbers_are_the_same_and_what_lacks_is_said(compared, moved):
    said = succeed(report, moved)
    before, after = contents(compared), contents(moved)
    for name in ("comparison.csv", "contrasts.csv", "comparison.json"):
        assert after[name] == before[name]
    assert "left out: reconstructions of pretrain-mae-seed0: reconstructions/pretrain-mae-seed0.png is missing" in said
    assert "left out: the curves of vit-seed1: none in" in said
    page = after["report.html"].decode()
    assert "No curve was recorded" in page
    assert "Left out: reconstructions of pretrain-mae-seed0" in page
    assert "data:image" not in page
    assert "data:image" in before["report.html"].decode()


def test_what_was_made_again_can_be_made_again(moved):
    succeed(report, moved)
    before = contents(moved)
    succeed(report, moved)
    assert contents(moved) == before


@pytest.mark.parametrize("name", ["predictions/test.csv", "predictions/test.json"])
def test_missing_and_edited_predictions_are_one_line(moved, name):
    path = moved / "vit-seed0" / name
    content = path.read_text()
    path.write_text(content.replace("0.", "1.", 1))
    assert "changed since they were written" in mistake(report, moved, keep=moved)
    path.unlink()
    assert f"{path}: found no such file, expected the predictions" in mistake(report, moved, keep=moved)


def test_predictions_of_another_run_are_not_taken(moved):
    for ending in ("csv", "json"):
        shutil.copy(moved / f"vit-seed1/predictions/test.{ending}", moved / f"vit-seed0/predictions/test.{ending}")
    assert "found other predictions than the comparison was made from" in mistake(report, moved, keep=moved)


def test_an_edited_comparison_is_one_line(moved):
    path = moved / "comparison.json"
    written = json.loads(path.read_text())
    written["declared"] = written["declared"][:1]
    path.write_text(json.dumps(written))
    assert f"{path}: changed since it was written" in mistake(report, moved, keep=moved)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{}", "found format None, expected 2"),
        ("[]", "found format None, expected 2"),
        ('{"format": 3}', "found format 3, expected 2"),
        ('{"format": 2}', "changed since it was written"),
        ("nonsense", "found no valid JSON"),
    ],
)
def test_what_is_no_comparison_is_one_line(tmp_path, written, message):
    (tmp_path / "comparison.json").write_text(written)
    assert message in mistake(report, tmp_path, keep=tmp_path)


def test_a_wrong_folder_is_one_line(world, tmp_path):
    assert "found no comparison.json, expected the folder of a mae-compare" in mistake(report, tmp_path, keep=tmp_path)
    assert "found no such folder" in mistake(report, tmp_path / "nowhere", keep=tmp_path)
    assert "found no comparison.json" in mistake(report, world.classifier, keep=world.classifier)


def rewritten(folder: Path, change) -> None:
    """comparison.json as a stranger writes it: with a digest that fits."""
    from classify.report.write import digest_of

    path = folder / "comparison.json"
    written = json.loads(path.read_text())
    del written["digest"]
    change(written)
    path.write_text(json.dumps(written | {"digest": digest_of(written)}))


def test_nothing_outside_the_folder_is_read(moved, tmp_path):
    secret = shutil.copytree(moved / "vit-seed0", tmp_path / "secret")
    rewritten(
        moved, lambda written: written["rows"][1]["seeds"][0].update(predictions="../secret/predictions/test.csv")
    )
    assert "found ../secret/predictions/test.csv, expected a path below" in mistake(report, moved, keep=moved)
    rewritten(
        moved, lambda written: written["rows"][1]["seeds"][0].update(predictions=f"{secret}/predictions/test.csv")
    )
    assert "expected a path below the folder" in mistake(report, moved, keep=moved)


def test_no_picture_is_taken_from_elsewhere(moved, tmp_path):
    def change(written):
        written["pretrainings"]["pretrain-mae-seed0"]["reconstructions"]["file"] = "../secret.png"

    rewritten(moved, change)
    assert "found a picture ../secret.png" in mistake(report, moved, keep=moved)


def test_links_out_of_the_folder_are_not_followed(moved, tmp_path):
    outside = shutil.move(moved / "vit-seed0", tmp_path / "outside")
    (moved / "vit-seed0").symlink_to(outside)
    assert "found a link out of the folder" in mistake(report, moved, keep=moved)


def test_a_comparison_that_lacks_something_is_one_line(moved):
    rewritten(moved, lambda written: written.pop("rows"))
    assert "found no 'rows', expected what mae-compare writes" in mistake(report, moved, keep=moved)


# ---------------------------------------------------------------- what the models look at


def section_of(page: str) -> str:
    """The page's section on heatmaps; empty if there is none."""
    return page.partition('<section id="heatmaps"')[2].partition("</section>")[0]


def test_the_page_shows_what_each_row_looks_at_in_the_first_cases_by_id(compared):
    section = section_of((compared / "report.html").read_text())
    assert section.count("data:image/png") == 1
    cases = pd.read_csv(compared / "vit-seed0/predictions/test.csv", dtype={"image_id": str}).sort_values("image_id")
    abnormal, normal = (cases["image_id"][cases["label"] == label] for label in (1, 0))
    in_turn = [f"{abnormal.iloc[0]}: abnormal", f"{normal.iloc[0]}: normal", f"{abnormal.iloc[1]}: abnormal"]
    places = [section.index(head) for head in in_turn]
    assert places == sorted(places) and f"{normal.iloc[1]}: normal" not in section
    assert "not chosen by their looks" in section and section.count('<th scope="row"') == 3  # rows of the grid

    with Image.open(compared / "heatmaps/sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_a_sheet_that_is_not_there_or_another_is_left_out_and_said(compared, moved):
    (moved / "heatmaps").mkdir()
    (moved / "heatmaps/sheet.png").write_bytes((compared / "heatmaps/sheet.png").read_bytes() + b"more")
    assert "left out: what the models look at: heatmaps/sheet.png is missing or was changed" in succeed(report, moved)
    assert section_of((moved / "report.html").read_text()) == ""


def test_no_sheet_is_taken_from_elsewhere(moved):
    rewritten(moved, lambda written: written.update(heatmaps=["../secret.png", "0" * 16]))
    assert "found a picture ../secret.png, expected heatmaps/sheet.png" in mistake(report, moved, keep=moved)


def test_a_comparison_of_before_there_were_heatmaps_is_read(moved):
    rewritten(moved, lambda written: written.pop("heatmaps"))
    assert "what the models look at" not in succeed(report, moved)


@pytest.mark.parametrize("words", [["report.heatmaps=0"], ["report.images=false"]])
def test_a_sheet_that_is_not_wished_goes(compared, world, tmp_path, words):
    copy = shutil.copytree(compared, tmp_path / "copy")
    succeed(compare, "--config", world.config, f"run={copy}", GRID, *words)
    assert not (copy / "heatmaps/sheet.png").exists()
    assert section_of((copy / "report.html").read_text()) == ""
