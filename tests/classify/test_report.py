"""Laws of report.html: one file, nothing from outside, no markup of users', no identifiers, whatever the grid."""

import html
import json
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

import classify.report.pictures
import classify.report.training
from classify.comparison import Comparison, Learned, Line, describe
from classify.contrasts import candidates, declared
from classify.decisions import origin_of_threshold
from classify.evaluate import Evaluation
from classify.grid import expand_grid
from classify.metrics import expected_calibration_error
from classify.provenance import facts_of
from classify.report.budgets import budgets_of
from classify.report.calibrations import calibrated_scores
from classify.report.checklist_facts import checklist_facts
from classify.report.costs import tuning_rows
from classify.report.curves import decisions, precision_recall, roc
from classify.report.facts import facts, notices
from classify.report.figures import COLOURS, Row, svg
from classify.report.html import first_warnings, report_html, with_names_apart
from classify.report.labels import efficiency_rows
from classify.report.mistakes import draw_mistakes, mistake_rows, mistakes_of, strips
from classify.report.numbers import show, show_number, show_p, show_share, show_threshold
from classify.report.operating import confusion_caption, confusion_rows, decision_curves, operating_rows
from classify.report.reconstructions import draw_reconstructions, panels
from classify.report.runs import own_settings
from classify.report.sections import comparison_text, first_sections
from classify.report.stage_one import stage_one_rows
from classify.report.subgroup_tables import gap_rows, subgroup_rows
from classify.report.tables import caption, contrast_caption, evaluation_row, markdown
from classify.report.training import kept_epoch
from classify.report.warnings import warnings
from classify.report.write import comparison_table, write_comparison
from classify.settings import ClassifyConfig
from classify.style import MARKERS
from data.config import change_config, make_config
from data.loader import Data
from data.manifest import Manifest
from mae.engine.checkpoint import Checkpoint, save_checkpoint
from mae.model import mae_from
from mae.settings import PretrainSettings

NASTY = '<script>alert("$x$")</script> & "Söhne" $y'
IMAGES, TESTED, SIDE = 6, 60, 16
PRETRAINED = {"name": "MAE", "pretraining": ["mae75"]}
RESNET = {"name": "ResNet-18", "set": {"finetune.model": "resnet18"}}


def config_of(
    folder: Path, rows=(PRETRAINED, RESNET), source="phantom", report=None, target=None, **compare
) -> ClassifyConfig:
    model = {"preset": "vit_tiny_patch16", "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    model |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    settings = {
        "run": str(folder),
        "data": {"source": source, "image_size": SIDE, "target": target},
        "model": model,
        "report": {"images": report},
        "compare": {"rows": rows, "pretrainings": {"mae75": {}}, "split": "test", "seeds": [0]} | compare,
    }
    return make_config(settings, "test")


def comparison_of(config: ClassifyConfig, epochs: int = 3, one_class: bool = False) -> Comparison:
    """A comparison of untrained models: random scores and losses, a real checkpoint of random weights."""
    data = data_of(config.data.source == "mimic-cxr-jpg", config.data.target)
    cells, evaluations, folders = list(expand_grid(config)), {}, {}
    for cell in cells:
        checkpoint = None
        if cell.pretrain_config:
            folders[Path(cell.pretrain_config.run).name] = checkpoint = pretraining(cell.pretrain_config, epochs)
        evaluations.setdefault(cell.row, []).append(evaluation(cell, checkpoint, epochs, one_class))
    lines = tuple(line_of(next(c for c in cells if c.row == row), found) for row, found in evaluations.items())
    configs = {Path(cell.pretrain_config.run).name: cell.pretrain_config for cell in cells if cell.pretrain_config}
    folder = Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    return Comparison(
        config=config,
        folder=folder,
        facts=facts_of(data, [each for found in evaluations.values() for each in found]),
        lines=lines,
        declared=declared(config, candidates(cells)),
        pretrainings=folders,
        pretrain_configs=configs,
        reconstructions=draw_reconstructions(folders, configs, lambda _: data, folder),
    )


def data_of(credentialed: bool, target: str | None) -> Data:
    ids = [f"secret-image-{i}" for i in range(IMAGES)]
    table = pd.DataFrame({"image_id": ids, "patient_id": [f"secret-patient-{i}" for i in range(IMAGES)]})
    table = table.assign(split="validate", label=1.0)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE), np.uint8)
    store = SimpleNamespace(
        fingerprint="ab" * 32,
        rows=lambda ids: np.arange(len(ids)),
        read=lambda batches: (images[rows] for rows in batches),
        unreadable=set(),
    )
    return Data(Manifest(table, ("a note",), credentialed, target=target), store)


def log(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started = [{"step": 1, "train/loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in started + rows))


def pretraining(config: ClassifyConfig, epochs: int) -> Path:
    folder = Path(config.run)
    log(
        folder,
        [{"step": e, "epoch": e, "epoch/train_loss": 1 / e, "validate/loss": 1 / e} for e in range(1, epochs + 1)],
    )
    model = mae_from(config.model, config.data.image_size)
    save_checkpoint(Checkpoint("mae", config.model_dump(mode="json"), model.state_dict()), folder / "best.pt")
    return folder


def evaluation(cell, checkpoint: Path | None, epochs: int, one_class: bool) -> Evaluation:
    rng = np.random.default_rng([cell.row, cell.config.seed])
    labels = np.ones(TESTED) if one_class else np.arange(TESTED) % 2
    ids = {f"{kind}_id": [f"secret-{kind}-{i}" for i in range(TESTED)] for kind in ("image", "patient", "study")}
    logits = rng.normal(0, 1, TESTED) + labels - 0.5
    scores = 1 / (1 + np.exp(-logits))
    run = Path(cell.config.finetune.run)
    losses = {"epoch/train_loss": 0.7, "validate/loss": 0.6}
    log(run, [{"step": e, "epoch": e, "validate/auc": 0.6 + 0.01 * e, **losses} for e in range(1, epochs + 1)])
    meta = {
        "train_images": cell.labelled or 100,
        "pretrained_from": str(checkpoint / "best.pt") if checkpoint else None,
    }
    summary = {"n": TESTED, "unit": "image", "patients": TESTED, "patients_known": True, "pretrained_on": 0}
    summary |= {"seed": cell.config.seed, "commit": "c0ffee", "meta": meta, "metrics": {}, "origin": {}}
    return Evaluation(
        run / "predictions/test.csv",
        cell.config,
        0.5,
        pd.DataFrame(ids | {"label": labels, "logit": logits, "score": scores}),
        summary,
    )


def line_of(cell, evaluations: list[Evaluation]) -> Line:
    return Line(describe(cell.config, bool(cell.pretraining)) | {"Model": cell.name}, cell.labelled, tuple(evaluations))


def render(comparison: Comparison, folder: Path) -> str:
    path = folder / "report.html"
    path.write_text(report_html(comparison), encoding="utf-8")
    return path.read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Fails where a tag is not closed in its order."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag: str, attributes) -> None:
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def drawn(comparison: Comparison, folder: Path) -> str:
    """The page with its real figures, which are blank in other tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (classify.report.pictures, classify.report.training):
            patch.setattr(module, "svg", svg)
        return render(comparison, folder)


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> tuple[Comparison, str]:
    folder = tmp_path_factory.mktemp("usual")
    comparison = comparison_of(config_of(folder))
    return comparison, drawn(comparison, folder)


def test_report_is_one_file_without_scripts_or_network(usual):
    _, text = usual
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|url\(\s*['\"]?(?!#)", text)
    for value in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert value.startswith(("data:image/", "#")), value
    assert len(text) < 1_000_000


def test_report_is_well_formed_and_its_ids_are_unique(usual):
    page = Balance(usual[1])
    assert len(page.ids) == len(set(page.ids))
    anchors = {"results", "roc", "calibration", "operating", "training", "reconstructions", "mistakes", "data", "costs"}
    assert anchors | {"runs", "again"} <= set(page.ids)
    # two forests, ROC, precision and recall, raw scores, decisions, one pretraining, two rows
    assert page.tags.count("svg") == 9


def test_report_says_what_was_measured_and_how(usual):
    comparison, text = usual
    line = comparison.lines[0]
    said = html.unescape(text)
    for part in ("Not a medical device", "synthetic", "60 images of 60 patients", "50.0 % abnormal", "c0ffee",
                 comparison.facts.manifest, "abababababababab", "MAE minus ResNet-18", "Holm p",
                 f"{line.intervals['auc'].estimate:.3f}".lstrip("0"), "mask_ratio: 0.75", "a note"):  # fmt: skip
        assert part in said, part


@pytest.mark.parametrize(
    ("target", "task", "words"),
    [
        (None, "Normal against abnormal", ("normal", "abnormal")),
        ("Pneumonia", "Pneumonia: positive against negative", ("negative", "positive")),
    ],
)
def test_every_text_has_the_words_of_the_target(target, task, words, tmp_path):
    comparison = comparison_of(config_of(tmp_path, target=target))
    page, table = html.unescape(drawn(comparison, tmp_path)), comparison_text(comparison)
    negative, positive = words
    for part in (f"<title>{task}: {tmp_path}</title>", f">{task} chest radiographs.",
                 f"50.0 % {positive} (30)", f"called {positive} is {positive} (PPV)",
                 f">{negative}, called {positive}<", f">{positive}, called {negative}<", f">Probability of {positive}<",
                 f"probabilities of {positive} have slope 1", f">Share {positive}<"):  # fmt: skip
        assert part in page, part
    assert table.lower().startswith(f"# {tmp_path}: {task}\n".lower()) and f"; 50 % {positive}. " in table
    said = re.sub(r"<style.*?</style>|<pre>.*?</pre>|\n    [^\n]*", "", page + table, flags=re.DOTALL)  # no settings
    others = {"normal", "abnormal", "negative", "positive"} - set(words)
    assert not others & set(re.findall(r"[a-z]+", said.replace(str(tmp_path), "").lower()))


def test_page_and_markdown_say_the_same(usual):
    comparison, text = usual
    page = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
    for section in first_sections(comparison):
        said = [*section.texts, section.conclusion, *(table.caption for table in section.tables)]
        for table in section.tables:
            for row in table.rows:
                said += row.values()
        for part in said:
            assert " ".join(part.split()) in page, part


def test_sections_stand_in_the_order_in_which_one_asks(tmp_path):
    text = render(comparison_of(config_of(tmp_path, seeds=[0, 1], labelled=[20, None])), tmp_path)
    found = re.findall(r'<section id="([^"]*)"', text)
    order = ["results", "results-2", "roc", "calibration", "labels", "operating", "training", "reconstructions"]
    order += ["mistakes", "data", "costs", "runs", "checklist", "again"]
    assert found == order
    assert re.findall(r'<a href="#([^"]*)"', text) == order
    assert text.index('class="warnings"') < text.index("<h1>") < text.index('class="effect"') < text.index("<nav")


@pytest.mark.parametrize(("letters", "shown"), [((10, 10, 10), 3), ((2000, 10), 1), ((300, 300, 300), 2), ((), 0)])
def test_the_first_screen_has_as_many_warnings_as_it_has_room_for(letters, shown):
    assert first_warnings(tuple("x" * count for count in letters)) == shown


def test_figures_have_the_colours_of_the_page_and_few_points(usual):
    _, text = usual
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", drawing)
        assert re.match(r"<svg[^>]*><title>[^<]+</title>", drawing)
    dark = text[text.index("prefers-color-scheme") :]
    for number in range(len(COLOURS)):
        assert f"--row{number}: " in dark

    # as many cases as a large hospital has
    rng = np.random.default_rng(0)
    labels = np.arange(30_000) % 2
    logits = rng.normal(0, 1, len(labels)) + labels
    predictions = pd.DataFrame(
        {"label": labels, "logit": logits, "score": logits, "patient_id": np.arange(len(labels))}
    )
    config = SimpleNamespace(evaluate=SimpleNamespace(level=0.95))
    line = Line({}, None, (SimpleNamespace(predictions=predictions, threshold=0.0, config=config),))
    assert len(svg("ROC", roc, [Row("row", 0, line)])) < 25_000


def test_names_from_the_right_leave_numbers_as_they_are():
    said = with_names_apart(["MAE", "נסיון", "נסיון <2>"])
    assert said("נסיון <2> .740 & MAE") == "<bdi>נסיון &lt;2&gt;</bdi> .740 &amp; MAE"
    assert said("נסיון") == "<bdi>נסיון</bdi>"
    assert with_names_apart(["MAE"])("<MAE>") == "&lt;MAE&gt;"


def test_mistakes_are_the_furthest_from_what_they_are(usual):
    line = usual[0].lines[0]
    found = mistakes_of(line)
    scores, wrong = line.scores[0], (line.scores[0] >= 0.5) != (line.labels == 1)
    for is_positive in (False, True):
        members = np.flatnonzero(wrong & ((line.labels == 1) == is_positive))
        furthest = sorted(members, key=lambda place: abs(line.labels[place] - scores[place]), reverse=True)[:3]
        assert [mistake.place for mistake in found if mistake.is_positive == is_positive] == furthest


@pytest.mark.parametrize(("kind", "said"), [("rating", " (rating, from 0 to 1)"), ("probability", "")])
def test_a_readers_rating_is_called_no_probability(kind, said, tmp_path):
    comparison = comparison_of(config_of(tmp_path, [RESNET]))
    comparison.lines[0].evaluations[0].summary["file"] = {"kind": kind}
    rows = list(mistake_rows(comparison))
    assert rows and all(re.fullmatch(rf"\.\d{{3}}{re.escape(said)}", row["Probability of abnormal"]) for row in rows)


def test_mistakes_are_drawn_where_cases_may_be_shown_and_taken_back_where_not(tmp_path):
    table = pd.DataFrame({"image_id": [f"secret-image-{i}" for i in range(TESTED)], "row": np.arange(TESTED)})
    images = np.random.default_rng(0).integers(0, 256, (TESTED, SIDE, SIDE), np.uint8)
    data = SimpleNamespace(split=lambda _: table, store=SimpleNamespace(read=lambda rows: (images[r] for r in rows)))
    comparison = comparison_of(config_of(tmp_path))
    drawn = draw_mistakes(comparison, data)
    assert set(drawn) == {"MAE", "ResNet-18"}
    shown = replace(comparison, mistakes=drawn)
    page = Balance(render(shown, tmp_path))
    assert [strip.name for strip in strips(shown)] == ["MAE", "ResNet-18"] and page.tags.count("img") == 3

    # a picture other than the one drawn is not shown, and one that may no longer be shown is removed
    file = tmp_path / drawn["MAE"][0]
    file.write_bytes((tmp_path / drawn["ResNet-18"][0]).read_bytes())
    assert [strip.name for strip in strips(shown)] == ["ResNet-18"]
    private = comparison_of(config_of(tmp_path, source="mimic-cxr-jpg"))
    assert draw_mistakes(private, data) == {} and not file.exists()
    assert strips(replace(private, mistakes=drawn)) == []


def test_same_comparison_gives_the_same_bytes_and_leaves_global_state_alone(usual, tmp_path):
    comparison, text = usual
    before, state = dict(matplotlib.rcParams), torch.get_rng_state()
    assert drawn(comparison, tmp_path) == text
    assert dict(matplotlib.rcParams) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_names_are_text_never_markup(tmp_path):
    rows = [{"name": NASTY}, {"name": "# & $", "set": {"finetune.model": "resnet18"}}]
    text = render(comparison_of(config_of(tmp_path / "<b>run", rows)), tmp_path)
    Balance(text)
    assert "<script" not in text and "<b>run" not in text
    assert html.unescape(text).count(NASTY) >= 5  # table, forest, legends, matrices, runs


def test_credentialed_report_shows_neither_images_nor_ids(tmp_path):
    text = render(comparison_of(config_of(tmp_path, source="mimic-cxr-jpg")), tmp_path)
    assert "data:image" not in text and "secret" not in text
    assert "withheld, because the source is credentialed" in text and "report.images=true" in text
    assert "data use agreement" in text


def test_credentialed_images_shown_on_request_come_with_a_warning(tmp_path):
    comparison = comparison_of(config_of(tmp_path, source="mimic-cxr-jpg", report=True))
    assert panels(comparison)[0].source.startswith("data:image/png")
    assert any(
        "data use agreement" in notice and "The report shows radiographs" in notice for notice in notices(comparison)
    )


def test_images_can_be_withheld_from_any_report(tmp_path):
    assert panels(comparison_of(config_of(tmp_path, report=False))) is None


@pytest.mark.parametrize(("root", "named"), [("shipped:pneumoniamnist_demo.npz", True), ("shipped:gone.npz", False)])
def test_shipped_images_have_their_authors_and_licence_in_the_report(tmp_path, root, named):
    config = change_config(config_of(tmp_path, source="medmnist"), {"data.root": root})
    credit = dict(facts(comparison_of(config))).get("Images of", "")
    assert ("Kermany" in credit and "CC BY 4.0" in credit) == named


def test_several_seeds_and_budgets(tmp_path):
    comparison = comparison_of(config_of(tmp_path, seeds=[0, 1, 2], labelled=[20, None]))
    text = render(comparison, tmp_path)
    page = Balance(text)
    assert len(page.ids) == len(set(page.ids))
    # per budget two forests, ROC, precision and recall, raw scores; per stage-one run; per row; labels, decisions
    assert page.tags.count("svg") == 2 * 5 + 3 + 4 + 2
    assert "20 labelled training images" in text and "100 labelled training images" in text
    assert "summed over the 3 seeds" in text
    assert ">20 images<" in text and ">100 images<" in text
    assert text.count('class="pixelated"') == 3


def test_a_row_keeps_its_colour_in_every_budget(tmp_path):
    first, second = budgets_of(comparison_of(config_of(tmp_path, labelled=[20, None])))
    assert [row.colour for row in first.rows] == [row.colour for row in second.rows] == list(COLOURS[:2])


def test_more_rows_than_colours_still_differ(tmp_path):
    rows = [{"name": f"row {i}"} for i in range(9)]
    [budget] = budgets_of(comparison_of(config_of(tmp_path, rows)))
    assert len({(row.colour, row.symbol) for row in budget.rows}) == 9


@pytest.mark.parametrize("draw", [roc, precision_recall, decisions])
def test_rows_of_one_colour_differ_by_markers_in_every_figure(draw, tmp_path):
    comparison = comparison_of(config_of(tmp_path, [{"name": f"row {i}"} for i in range(9)]))
    [budget] = budgets_of(comparison)
    rows = budget.rows
    if draw is decisions:
        curves = {line.name: curve for line, curve in decision_curves(comparison)}
        rows = [(row, curves[row.name]) for row in rows]
    drawn = [line for line in draw(rows).axes[0].lines if line.get_marker() in MARKERS]
    assert {(line.get_color(), line.get_marker()) for line in drawn} == {(r.colour, r.marker) for r in budget.rows}


def test_markers_of_precision_and_recall_are_the_tables_numbers(tmp_path):
    comparison = comparison_of(config_of(tmp_path, [RESNET], seeds=[0, 1, 2]))
    [line], [budget] = comparison.lines, budgets_of(comparison)
    [drawn] = [each for each in precision_recall(budget.rows).axes[0].lines if each.get_marker() in MARKERS]
    recall, precision = drawn.get_data()
    assert len(recall) == 3
    assert np.mean(recall) == pytest.approx(line.intervals["recall"].estimate)
    assert np.mean(precision) == pytest.approx(line.intervals["precision"].estimate)

    # a seed that calls nothing positive has no precision
    first, *others = line.evaluations
    silent = replace(line, evaluations=(replace(first, threshold=2.0), *others))
    [drawn] = [each for each in precision_recall([Row("A", 0, silent)]).axes[0].lines if each.get_marker() in MARKERS]
    assert np.isfinite(drawn.get_data()).all() and drawn.get_data()[0].size == 2


def test_one_row_without_pretraining(tmp_path):
    text = render(comparison_of(config_of(tmp_path, [RESNET])), tmp_path)
    Balance(text)
    assert "<h3>Contrasts</h3>" not in text and "No row is tested against another here." in text
    assert "No row of this comparison is pretrained" in text


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_or_missing_curves(tmp_path, epochs):
    text = render(comparison_of(config_of(tmp_path), epochs), tmp_path)
    Balance(text)
    assert ("No curve was recorded" in text) == (epochs == 0)


@pytest.mark.filterwarnings("error")
def test_one_class_has_no_roc_curve(tmp_path):
    text = render(comparison_of(config_of(tmp_path, [RESNET]), one_class=True), tmp_path)
    assert "the split holds one class only" in text


def test_validation_results_are_called_too_optimistic(tmp_path):
    assert "too optimistic" in " ".join(notices(comparison_of(config_of(tmp_path, split="validate"))))


def sections(text: str) -> dict[str, list[str]]:
    """Heading → models in the first table of each label budget's section of comparison.md."""
    found = {}
    for section in text.split("\n## ")[1:]:
        heading, _, rest = section.partition("\n")
        table = rest.strip().split("\n\n")[0]
        if "labelled training images" not in heading:
            continue
        assert table.startswith("| Model")
        found[heading] = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    return found


def test_a_row_with_a_budget_of_its_own_stands_under_it(tmp_path):
    own = {"name": "B", "set": {"finetune": {"sample": 10}}}
    rows = [{"name": "A"}, own, {"name": "C", "set": {"finetune.sample": None}}]
    comparison = comparison_of(config_of(tmp_path / "grid", rows, labelled=[10, 20]))
    tables = {10: ["A", "B"], 100: ["C"], 20: ["A"]}
    assert sections(comparison_text(comparison)) == {f"{n} labelled training images": tables[n] for n in (10, 100, 20)}

    write_comparison(comparison, tmp_path / "grid")
    page = (tmp_path / "grid/report.html").read_text()
    assert re.findall(r"<h2>(\d+) labelled", page) == ["10", "100", "20"]
    table = pd.read_csv(tmp_path / "grid/comparison.csv")
    assert table["Model"].tolist() == ["A", "B", "C", "A"]
    assert table["labelled images"].tolist() == [10, 10, 100, 20]
    scores = calibrated_scores(comparison.lines[0])
    assert table["ece"][0] == pytest.approx(
        np.mean([expected_calibration_error(comparison.lines[0].labels, of_seed) for of_seed in scores])
    )
    assert (table["brier low"] < table["brier"]).all() and (table["brier"] < table["brier high"]).all()
    written = json.loads((tmp_path / "grid/comparison.json").read_text())["rows"]
    assert [row["labelled"] for row in written] == [10, 10, None, 20]
    folders = {path.name for path in (tmp_path / "grid").glob("*-seed0")}
    assert folders == {"a-n10-seed0", "b-n10-seed0", "c-seed0", "a-n20-seed0"}


def test_a_budget_of_the_whole_config_needs_no_mention(tmp_path):
    config = change_config(config_of(tmp_path), {"finetune.sample": 20, "compare.labelled": [20]})
    cells = list(expand_grid(config))
    assert [cell.labelled for cell in cells] == [20, 20]
    assert [Path(cell.run).name for cell in cells] == ["mae-mae75-seed0", "resnet-18-seed0"]


def test_settings_of_a_row_and_of_its_pretraining_are_joined_one_by_one(tmp_path):
    row = {"name": "A", "pretraining": ["p"], "set": {"finetune": {"epochs": 7}}}
    config = config_of(tmp_path, [row], pretrainings={"p": {"finetune": {"label_smoothing": 0.2, "epochs": 3}}})
    [cell] = expand_grid(config)
    assert (cell.config.finetune.label_smoothing, cell.config.finetune.epochs) == (0.2, 7)


def test_two_budgets_of_as_many_images_are_told_apart(tmp_path):
    comparison = comparison_of(config_of(tmp_path, [RESNET], labelled=[100, None]))
    headings = ["100 labelled training images (a sample of 100)", "100 labelled training images (all)"]
    assert list(sections(comparison_text(comparison))) == headings
    [efficiency] = efficiency_rows(comparison)  # none of the two results is lost
    sample, whole = (show(line.intervals["auc"]) for line in comparison.lines)
    assert efficiency == {"Model": "ResNet-18", "100 images (a sample of 100)": sample, "100 images (all)": whole}
    page = Balance(render(comparison, tmp_path))
    assert len(page.ids) == len(set(page.ids))


def test_rows_of_other_training_images_say_how_many(tmp_path):
    comparison = comparison_of(config_of(tmp_path))
    comparison.lines[1].evaluations[0].summary["meta"]["train_images"] = 90
    text = comparison_text(comparison)
    assert list(sections(text)) == ["90 to 100 labelled training images"]
    assert "Labelled training images by row: MAE: 100; ResNet-18: 90." in text


def test_one_patient_with_most_cases_of_a_class_is_a_warning(tmp_path):
    comparison = comparison_of(config_of(tmp_path, [RESNET]))
    predictions = comparison.lines[0].evaluations[0].predictions
    positives = predictions.index[predictions["label"] == 1]
    for count, warned in ((len(positives) // 2, False), (len(positives) // 2 + 1, True), (len(positives), False)):
        predictions.loc[positives[:count], "patient_id"] = "secret-patient"
        said = [line for line in warnings(comparison) if line.startswith("One patient has more than half")]
        assert bool(said) == warned  # one patient for a whole class has notes of its own
        assert "secret" not in " ".join(said)


def test_draws_of_other_sizes_are_a_range_whichever_seed_is_first(tmp_path):
    comparison = comparison_of(config_of(tmp_path, seeds=[0, 1, 2], labelled=[20, None]))
    for line in comparison.lines_of(20):
        for evaluation, count in zip(line.evaluations, (20, 23, 21), strict=True):
            evaluation.summary["meta"]["train_images"] = count
    text = comparison_text(comparison)
    assert list(sections(text)) == ["20 to 23 labelled training images", "100 labelled training images"]
    assert "Labelled training images by row" not in text
    assert next(iter(efficiency_rows(comparison))).keys() == {"Model", "20 to 23 images", "100 images"}
    write_comparison(comparison, tmp_path)
    assert pd.read_csv(tmp_path / "comparison.csv")["labelled images"].tolist() == [21, 21, 100, 100]


@pytest.mark.parametrize(("split", "mark"), [("validate", ", tested on validation images"), ("test", "")])
def test_results_of_validation_are_marked_and_those_of_testing_not(split, mark, tmp_path):
    comparison = comparison_of(config_of(tmp_path, split=split))
    write_comparison(comparison, tmp_path)
    for name in ("comparison.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert f"100 labelled training images{mark}\n" in text.replace("</h2>", "\n")
        assert ("the numbers are too optimistic" in text) == (split == "validate")
    assert pd.read_csv(tmp_path / "comparison.csv")["split"].tolist() == [split] * 2


def test_contamination_stands_wherever_cases_are_counted(tmp_path):
    comparison = comparison_of(config_of(tmp_path))
    comparison.lines[1].evaluations[0].summary["pretrained_on"] = 7
    write_comparison(comparison, tmp_path)
    counted = "n = 60 images of 60 patients, of which 7 images served pretraining"
    assert counted in (tmp_path / "comparison.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert re.search(rf">Evaluated</th>\s*<td[^>]*>{counted}</td>", page)
    assert f"compared on the same {counted}." in page
    assert pd.read_csv(tmp_path / "comparison.csv")["served pretraining"].tolist() == [0, 7]
    written = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert [row["pretrained_on"] for row in written] == [0, 7]


def test_a_row_of_several_pretrainings_has_a_name_for_each(tmp_path):
    rows = [{"name": "MAE", "pretraining": ["mae75", "long"]}]
    config = config_of(tmp_path, rows, pretrainings={"mae75": {}, "long": {"pretrain.epochs": 800}})
    [budget] = budgets_of(comparison_of(config))
    assert [row.name for row in budget.rows] == ["MAE/mae75", "MAE/long"]


def test_confusion_counts_every_case_of_every_seed_once():
    predictions = [pd.DataFrame({"label": [0, 0, 0, 1, 1], "score": s}) for s in ([0, 0, 1, 1, 1], [0, 1, 1, 0, 1])]
    evaluations = tuple(
        SimpleNamespace(predictions=p, threshold=0.5, summary={"meta": {"train_images": 7}}) for p in predictions
    )
    line = Line({"Model": "M"}, None, evaluations)
    config = SimpleNamespace(data=SimpleNamespace(target=None))
    [row] = confusion_rows(SimpleNamespace(config=config, budgets=[None], lines_of=lambda _: [line]))
    assert row == {
        "Model": "M",
        "normal, called normal": "3 (50 %)",
        "normal, called abnormal": "3 (50 %)",
        "abnormal, called normal": "1 (25 %)",
        "abnormal, called abnormal": "3 (75 %)",
    }


@pytest.mark.parametrize(
    ("known", "unit", "plural"), [(True, "image", "patients"), (False, "image", "images"), (False, "study", "studies")]
)
def test_a_caption_names_what_is_taken_as_independent(known, unit, plural, tmp_path):
    summary = {"pretrained_on": 0, "patients_known": known, "unit": unit}
    evaluations = [SimpleNamespace(summary=summary)]
    config = config_of(tmp_path, [])
    found = SimpleNamespace(config=config, evaluations=evaluations, seen_elsewhere=False, tests=2)
    assert f"its variance is over {plural} and, where" in contrast_caption(found)


def test_a_threshold_that_is_fixed_is_not_called_chosen(tmp_path):
    rows = [{"name": "A", "set": {"finetune.threshold": "half"}}, {"name": "B"}]
    found = comparison_of(config_of(tmp_path, rows))
    chosen = {(row["Model"], row["At"]): row["Chosen on"] for row in operating_rows(found)}
    assert (chosen["A", "own threshold"], chosen["B", "own threshold"]) == ("fixed at 0.5", "validation")
    assert origin_of_threshold("half") == "fixed at 0.5"
    assert origin_of_threshold("youden") == "chosen on validation (rule youden)"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (("half", "half"), "threshold fixed at 0.5 (A "),
        (("half", "youden"), "chosen on validation by Youden's index, except for A (0.5 by finetune.threshold) (A "),
        (("f1", "youden"), "chosen on validation by F1 and chosen on validation by Youden's index (A "),
    ],
)
def test_the_checklist_calls_no_threshold_an_exception_from_itself(rules, said, tmp_path):
    rows = [{"name": name, "set": {"finetune.threshold": rule}} for name, rule in zip("AB", rules, strict=True)]
    assert said in checklist_facts(comparison_of(config_of(tmp_path, rows)))["thresholds"]


@pytest.mark.parametrize(("known", "unit", "one"), [(True, "study", "patient"), (False, "study", "study")])
def test_the_checklist_names_what_is_taken_as_independent(known, unit, one, tmp_path):
    comparison = comparison_of(config_of(tmp_path))
    for each in comparison.evaluations:
        each.summary.update(unit=unit, patients_known=known)
    assert f"clustered by {one}: " in checklist_facts(comparison)["statistics"]


@pytest.mark.parametrize("women", [0, 7, 19, 23, 30])
def test_the_checklist_claims_the_subgroups_that_were_computed_and_no_others(women, tmp_path):
    comparison = comparison_of(config_of(tmp_path, [RESNET]))
    sex = np.where(np.arange(TESTED) < women, "F", "M")
    for each in comparison.evaluations:
        each.predictions["sex"] = sex
        each.predictions["view"] = np.arange(TESTED) % 5  # five groups, all too small
        each.predictions["site"] = np.arange(TESTED) % 7  # seven, which become one of rare values
        each.predictions["source"] = sex
    wished = {"report.subgroups": ["sex", "view", "source", "site"]}
    comparison = replace(comparison, config=change_config(comparison.config, wished))
    groups = [row["Group"] for row in subgroup_rows(comparison) if row["AUC"] != "too few"]
    computed = {group.partition(":")[0] for group in groups if "values of fewer than" not in group}
    gaps = {row["Largest gap"].partition(":")[0] for row in gap_rows(comparison)}
    known = checklist_facts(comparison)
    assert computed == {"sex", "source"} and gaps == (computed if women >= 20 else set())
    assert known["fairness"].startswith("Results by sex and source")
    assert ("with the largest gap of each" in known["fairness"]) == bool(gaps)
    assert "; no results by view and site, as no value has 10 cases of each class; " in known["fairness"]
    assert (known["clusters"] is not None) == bool(gaps)


@pytest.mark.parametrize("metrics", [("auc", "auc"), ("loss", "auc"), ("loss", "loss")])
def test_rows_that_were_tuned_by_other_metrics_stand_in_one_table(metrics, tmp_path):
    rest = {"labelled": None, "settings": [{"finetune.epochs": 3}, {"finetune.epochs": 5}], "chosen": 1}
    tuning = [{"row": f"{n}", "metric": m, "scores": [None, 0.5], **rest} for n, m in enumerate(metrics)]
    rows = list(tuning_rows(replace(comparison_of(config_of(tmp_path, [RESNET])), tuning=tuple(tuning))))
    assert len(markdown(rows).splitlines()) == 4
    names = ["AUC" if metric == "auc" else "loss" for metric in metrics]
    for row, name in zip(rows, names, strict=True):
        [column] = [column for column in row if column.startswith("Tried")]
        said = f"{name} " if len(set(names)) > 1 else ""
        assert column == f"Tried, with validation {' or '.join(dict.fromkeys(names))}"
        assert row[column] == f"epochs=3: diverged; epochs=5: {said}.500"


def test_numbers_of_images_are_whole_beside_rows_without(tmp_path):
    comparison = comparison_of(config_of(tmp_path, [{"name": "A"}, {"name": "B"}]))
    comparison.lines[1].evaluations[0].summary["meta"]["train_images"] = None
    text = comparison_table(comparison)[["Model", "labelled images"]].to_csv(index=False)
    assert text.split() == ["Model,labelled", "images", "A,100", "B,"]


def test_the_confusion_table_says_over_how_many_trainings_it_sums(tmp_path):
    comparison = comparison_of(config_of(tmp_path, seeds=[0, 1, 2]))
    assert confusion_caption(comparison).endswith("summed over the 3 seeds.")
    [first, *others] = comparison.lines
    fewer = replace(first, evaluations=first.evaluations[:2])
    assert confusion_caption(replace(comparison, lines=(fewer, *others))).endswith("each row's own trainings or files.")


@pytest.mark.parametrize(
    ("init", "begun_from", "model", "masking"),
    [
        (None, None, "ViT", "–"),
        (None, "runs/mae/best.pt", "MAE", "75"),
        ("timm.pth", "timm.pth", "ViT, pretrained", "–"),
        ("hub/vit", "hub/vit/model.safetensors", "ViT, pretrained", "–"),
        ("timm.pth", "runs/mae/best.pt", "MAE", "75"),
        ("${NOT_SET_HERE}/timm.pth", "runs/mae/best.pt", "MAE", "75"),
    ],
)
def test_weights_of_others_are_no_pretraining_of_ours(init, begun_from, model, masking, tmp_path):
    config = change_config(config_of(tmp_path), {"model.init": init})
    names = ("accuracy", "precision", "f1", "recall", "auc")
    summary = {"split": "test", "meta": {"pretrained_from": begun_from}}
    summary |= {"metrics": dict.fromkeys(names, 0.5), "intervals": dict.fromkeys(names, (0.3, 0.7))}
    row = evaluation_row(SimpleNamespace(config=config, summary=summary))
    assert (row["Model"], row["% Masking"]) == (model, masking)


def test_kept_epoch_is_the_first_of_the_best():
    epochs = [
        {"epoch": e, "validate/auc": a, "validate/loss": b} for e, a, b in ((1, 0.6, 3), (2, 0.7, 2), (3, 0.7, 2))
    ]
    assert kept_epoch(epochs, "auc")["epoch"] == kept_epoch(epochs, "loss")["epoch"] == 2
    probed = [{"epoch": 4, "validate/loss": 1}, *({**row, "probe/logistic_auc": row["validate/auc"]} for row in epochs)]
    assert kept_epoch(probed, "reconstruction")["epoch"] == 4
    assert kept_epoch(probed, "probe")["epoch"] == 2  # an epoch without a probe is not kept


def test_pretrainings_stand_by_their_length_with_their_seeds_together():
    long = SimpleNamespace(pretrain=PretrainSettings(epochs=1000))
    short = SimpleNamespace(pretrain=PretrainSettings(epochs=7, mask_ratio=0.6))
    found = SimpleNamespace(
        learned={
            "pretrain-a-seed0-seed0": Learned(7, 0.25),
            "pretrain-b-seed0": Learned(900, 0.5, 0.75),
            "pretrain-b-seed11": Learned(1000, 0.375, 0.875),
        },
        pretrain_configs={"pretrain-a-seed0-seed0": short, "pretrain-b-seed0": long, "pretrain-b-seed11": long},
    )
    a, b = stage_one_rows(found)
    assert list(a.values()) == ["a-seed0", "7", "7", "60", "1", ".2500", "–"]
    assert list(b.values()) == [
        *("b", "1,000", "950 (900 to 1,000)", "75", "2", ".4375 (.3750 to .5000)", ".812 (.750 to .875)"),
    ]
    found.learned = {"pretrain-b-seed0": Learned(900, 0.5)}
    [row] = stage_one_rows(found)
    assert "Probe" not in row


def test_own_settings_name_what_a_row_changed(tmp_path):
    config = config_of(tmp_path, [{"name": "probe", "set": {"finetune.mode": "linear"}}])
    [cell] = expand_grid(config)
    assert list(own_settings(config, cell.config)) == ["finetune.mode=linear"]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (show_threshold, 0.30549, "0.305"), (show_threshold, 0.00012, "0.0001"), (show_threshold, 0.99994, "0.9999"),
        (show_threshold, 0.0, "0.000"), (show_threshold, 1.0, "1.000"), (show_share, 0.03, "3 %"),
        (show_share, 0.002, "0.2 %"), (show_share, 0.9975, "99.8 %"), (show_share, 0.0, "0 %"),
        (show_share, 1.0, "100 %"),
        (partial(show_share, least=1), 0.0002, "0.02 %"), (partial(show_share, least=1), 1 / 3, "33.3 %"),
        (show_p, 0.0496, ".0496"), (show_p, 0.05004, ".05004"), (show_p, 0.05, ".050"), (show_p, 0.023, ".023"),
        (show_p, 1.0, "1.000"),
    ],
)  # fmt: skip
def test_rounding_turns_no_threshold_share_or_p_value_into_its_end(show, value, text):
    assert show(value) == text


def test_an_interval_that_holds_zero_shows_the_sign_of_both_ends():
    ends = [show_number(value, signed=True) for value in (-0.0002, 0.0002, -1e-17, -0.0)]
    assert ends == ["-.000", "+.000", "+.000", "+.000"]
    assert show_number(-0.0002) == "-.000"


def test_caption_counts_the_trainings_of_every_row(tmp_path):
    comparison = comparison_of(config_of(tmp_path, seeds=[0, 1]))
    ensemble = replace(comparison.lines[1], evaluations=comparison.lines[1].evaluations[:1])
    said = caption(replace(comparison, lines=(comparison.lines[0], ensemble)), None)
    assert "means over 2 training seeds" in said and f"training varies: {ensemble.name}. " in said
    assert "fewer" not in caption(comparison, None)
