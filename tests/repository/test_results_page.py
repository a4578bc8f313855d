"""docs/results.md says what the committed predictions say, and is made of nothing else."""

from types import ModuleType

import pytest
from checkout import as_module
from tiny_world import tiny_config

from classify.compare import compare
from data.cli import say_nothing
from data.errors import UserError


@pytest.fixture
def page() -> ModuleType:
    return as_module("docs/results_page.py")


def test_the_page_is_what_the_predictions_say(page):
    found = page.PAGE.read_text(encoding="utf-8")
    assert found == page.filled(found), "run python docs/results_page.py"


def test_tables_are_made_of_predictions_alone_and_prose_stays(page, tmp_path, monkeypatch):
    rows = [{"name": "A"}, {"name": "B", "set": {"finetune.drop_path": 0.0}}]
    settings = {"rows": rows, "seeds": [3], "labelled": [20, None], "contrasts": [["A", "B"]]}
    config = {f"compare__{name}": value for name, value in settings.items()}
    run = tmp_path / "runs/mine"
    comparison = compare(tiny_config(tmp_path, run=str(run), finetune__epochs=1, **config), say=say_nothing)
    (tmp_path / "images").rename(tmp_path / "elsewhere")

    monkeypatch.setattr(page, "KEPT", tmp_path / "kept")
    page.keep(run)
    page.unpack(tmp_path / "kept/mine.tar.xz", tmp_path / "unpacked")
    kept = [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".json", ".csv"}
    assert not [path for path in kept if str(tmp_path) in path.read_text()]
    kinds = ["efficiency", "table", "table 20", "contrasts", "calibration", "costs 20"]
    blocks = [f"before\n<!-- made of mine: {kind} -->\nold\n<!-- end -->\nafter" for kind in kinds]
    made = page.filled("\n".join(blocks))
    assert made.count("before\n<!--") == made.count("-->\nafter") == len(kinds) and "\nold\n" not in made
    assert page.filled(made) == made
    for line in comparison.lines:
        assert made.count(f"{line.intervals['auc'].estimate:.3f}".lstrip("0")) >= 2
    assert made.count("| A minus B") == 2

    for kind in ("subgroups", "tables"):  # the images have no groups, and there is no such table
        with pytest.raises(SystemExit, match=kind):
            page.filled(f"<!-- made of mine: {kind} -->\n<!-- end -->")

    # changed predictions are no source of numbers
    page.comparison_of.cache_clear()
    changed = next((tmp_path / "unpacked").rglob("*.csv"))
    changed.write_text(changed.read_text().replace(",0.", ",0.9", 1))
    page.pack(tmp_path / "unpacked", tmp_path / "kept/mine.tar.xz")
    with pytest.raises(UserError, match="found"):
        page.filled(made)
