"""docs/settings.md is what the code says, and every example on it can be given."""

import pytest
from checkout import ROOT, as_module

from classify.settings import ClassifyConfig
from data.config import describe, make_config

PAGE = as_module("docs/settings_page.py")
START = {"data.source": "phantom"}  # what must be given


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == PAGE.page(), "run python docs/settings_page.py"


def test_every_setting_stands_on_the_page_with_an_example():
    lines = PAGE.page().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) > 100
    assert not [line for line in rows if line.endswith("|  |")]

    keys = {name for name, _ in describe(ClassifyConfig)}
    assert not PAGE.EXAMPLES.keys() - keys
    sections = {name.rpartition(".")[0] for name in keys}
    for key in keys - sections:
        if not key.startswith(("compare.rows.", "data.sources.", "data.unlabelled.")):
            assert any(line.startswith(f"| `{key}` |") for line in rows), key


@pytest.mark.parametrize("key", [key for key in PAGE.EXAMPLES if not key.startswith("compare.rows.")])
def test_every_example_can_be_given(key):
    example = {**START, **PAGE.BESIDE.get(key, {}), key: PAGE.EXAMPLES[key]}
    if "data.sources" in example:
        del example["data.source"]
    make_config({}, "settings.md", example)


def test_an_entry_of_the_rows_can_be_given_as_the_page_has_it():
    prefix = f"{PAGE.ENTRIES}."
    examples = {key.removeprefix(prefix): value for key, value in PAGE.EXAMPLES.items() if key.startswith(prefix)}
    read = {name: examples.pop(name) for name in ("predictions", "threshold")}
    rows = [examples, {"name": "Reader", **read}]
    pretrainings = {"mae75": {"pretrain.mask_ratio": 0.75}}
    given = {**START, "compare.rows": rows, "compare.pretrainings": pretrainings}
    config = make_config({}, "settings.md", given)
    assert [row.name for row in config.compare.rows] == ["MAE, probe", "Reader"]
