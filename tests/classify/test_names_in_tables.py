"""A name in a comparison cannot write markup, a formula or a line of its own."""

import csv
import html
from html.parser import HTMLParser
from importlib.util import find_spec

import pandas as pd
import pytest
from tiny_world import make_world, succeed

from classify.cli import compare, evaluate
from classify.report.tables import markdown, plain

NAMES = [
    "a | b",
    "`code`",
    "``two`` `",
    "[link](https://evil.example)",
    "![picture](x.png)",
    "[foot][note]",
    "[x]: https://evil.example",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden",
    "</table>",
    "*bold* **bold** _slanted_ __bold__ ~~gone~~",
    "$x^2$",
    "&lt;b&gt; &#60; &amp;",
    "\\| \\` \\",
    "# heading #",
    "https://evil.example www.evil.example me@evil.example @someone",
    "two\nlines\r\n| a | b |",
    "\x1b[31mred\u202egnp.exe",
    "ViT α, 75 % (plain) - 1.5",
    "1. first",
    "23) second",
    "- third",
    "+ fourth",
    "> fifth",
    ">> sixth",
]


class Text(HTMLParser):
    """The text of a page, and the tags and addresses in it."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def shown(text: str) -> Text:
    """A text as a renderer of Markdown with tables and automatic links shows it."""
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("gfm-like") if find_spec("linkify_it") else MarkdownIt("commonmark").enable("table")
    return Text(renderer.render(text))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_one_cell_of_one_line(name):
    header, rule, line = markdown([{"Model": name, "AUC": ".755 [.735, .774]"}]).splitlines()
    cells = pd.Series(line).str.split(r"(?<!\\)(?:\\\\)*\|", regex=True)[0]  # at bars without a backslash before them
    assert len(cells) == 4
    assert len(header) == len(rule) == len(line)
    assert line.isprintable()


@pytest.mark.skipif(not find_spec("markdown_it"), reason="needs markdown-it-py")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name):
    table = markdown([{"Model": name, "p": "< .001"}])
    page = shown("\n\n".join([f"# {plain(name)}", table, plain(f"Best: {name}."), plain(f"{name} is best.")]))
    assert set(page.tags) <= {"h1", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert not page.links
    if name.isprintable():
        assert page.text.count(" ".join(name.split())) == 4


def test_what_needs_no_care_is_left_alone():
    usual = "MAE 75 %, linear probe: .755 [.735, .774] (p < .001); probe/logistic_auc, a&b, x_1"
    assert plain(usual) == usual
    for usual in ("-.003 [-.010, +.004]", "+.012", "1.5 epochs", "12 images", "3e-4", "–"):
        assert plain(usual) == usual


def test_a_comparison_of_odd_names_goes_all_the_way(tmp_path):
    world = make_world(tmp_path)
    names = ["=1+1|<b>`x`", "@SUM(A1)[a](b)"]
    rows = ", ".join(f"{{name: '{name}'}}" for name in names)
    printed = succeed(compare, "--config", world.config, f"compare={{split: test, rows: [{rows}]}}")
    folder = world.root / "runs/mae"
    with (folder / "comparison.csv").open(newline="", encoding="utf-8") as file:
        models = [line["Model"] for line in csv.DictReader(file)]
    assert models == [f"'{name}" for name in names]
    assert "\\|<b>" not in printed and "\\|\\<b>\\`x\\`" in printed
    report = (folder / "report.html").read_text()
    assert "<b>`x`" not in report and html.escape("<b>`x`") in report


def test_predictions_of_ids_that_look_like_formulas_are_read_back(tmp_path):
    world = make_world(tmp_path)
    table = pd.read_csv(world.images / "manifest.csv")
    table["patient_id"] = "=" + table["patient_id"]
    table["image_id"] = "-" + table["path"]
    table.to_csv(world.images / "manifest.csv", index=False)
    succeed(compare, "--config", world.config, "compare={split: test, rows: [{name: a}]}", f"run={tmp_path}/grid")
    [run] = (tmp_path / "grid").glob("a-seed0")
    with (run / "predictions/test.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert all(line["patient_id"].startswith("'=p") and line["image_id"].startswith("'-") for line in lines)
    before = (run / "predictions/test.csv").stat().st_mtime_ns
    succeed(evaluate, run)
    assert (run / "predictions/test.csv").stat().st_mtime_ns == before  # they were used as they are
