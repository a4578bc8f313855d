"""Laws of licences: the name that a folder gives goes through load, checkpoint and export, and is only a name."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from foreign_weights import folder_of, from_weights, quiet, timm_weights, tiny
from safetensors.torch import save_file
from tiny_world import succeed

from classify.cli import export as mae_export
from classify.finetune import finetune
from data.config import change_config
from mae.engine.checkpoint import load_checkpoint
from mae.pretrain import pretrain
from mae.weights import load_huggingface, load_timm

OTHER = {"license": "other", "license_name": "hospital: research only", "license_link": "https://example.org/a#b: c"}
FIRST_LINES = (
    "MIT License",
    "License: research only, no commercial use",
    "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0): see below",
    "- not: a list",
    "'quoted' \"twice\"",
    "{braces: [and more]}",
    "100 % ours # no comment",
    "лицензия: открытая",
    "yes",
    "*star & anchor",
    "---",
)


def front_of(folder: Path) -> dict:
    """What a YAML parser finds between a README's first two lines of dashes."""
    start, front, rest = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert start == "" and rest
    return yaml.safe_load(front)


def weights_with(root: Path, front: str | None = None, license: str | None = None) -> Path:
    """A folder with this front matter, or with this LICENSE."""
    folder = folder_of(tiny(), root)
    (folder / "README.md").unlink()
    if front is not None:
        (folder / "README.md").write_text(f"---\n{front}\n---\n# Weights\n", encoding="utf-8")
    if license is not None:
        (folder / "LICENSE").write_text(license, encoding="utf-8")
    return folder


@pytest.mark.parametrize("line", FIRST_LINES)
def test_a_first_line_of_any_kind_goes_there_and_back(line, tmp_path):
    model = load_huggingface(weights_with(tmp_path / "there", license=f"\n# {line}\n\nterms\n"), quiet)
    assert model.report.license == line
    back = folder_of(model, tmp_path / "back")
    assert front_of(back)["license"] == line
    assert front_of(back)["library_name"] == "transformers"
    assert json.loads((back / "config.json").read_text())["license"] == line
    assert load_huggingface(back, quiet).report.license == line
    assert f"licence {line}" in str(model.report)


@pytest.mark.parametrize(
    "fields",
    [
        OTHER,
        {"license": "other", "license_name": "deepseek"},
        {"license_name": "a", "license_link": "LICENSE"},
        {"license": "apache-2.0", "license_link": "https://example.org"},
    ],
)
def test_a_licence_with_a_name_of_its_own_goes_there_and_back(fields, tmp_path):
    model = load_huggingface(weights_with(tmp_path / "there", yaml.safe_dump(fields)), quiet)
    back = folder_of(model, tmp_path / "back")
    assert {name: front_of(back)[name] for name in fields} == fields
    written = json.loads((back / "config.json").read_text())
    assert {name: written[name] for name in fields} == fields
    assert load_huggingface(back, quiet).report.license == model.report.license
    for text in fields.values():
        assert text in (back / "README.md").read_text().split("---\n", 2)[2]  # a human reader finds it too


def test_it_goes_through_pretraining_fine_tuning_and_export(tmp_path):
    config = from_weights(tmp_path, weights_with(tmp_path / "weights", yaml.safe_dump(OTHER)))
    run = pretrain(config)
    made = load_checkpoint(run / "last.pt").config
    tuned = finetune(change_config(made, {"finetune.pool": "cls"}), run / "last.pt")
    for folder in (run, tuned):
        assert load_checkpoint(folder / "best.pt").meta["license"] == OTHER
        succeed(mae_export, "--checkpoint", folder / "best.pt", "--out", tmp_path / "out" / folder.name)
        front = front_of(tmp_path / "out" / folder.name)
        assert {name: front[name] for name in OTHER} == OTHER


def test_a_folder_of_timm_has_them_too(tmp_path):
    save_file(timm_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {}}))
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(OTHER)}---\n")
    assert load_timm(tmp_path, quiet, heads=3).report.license == OTHER


@pytest.mark.parametrize(
    ("front", "expected"),
    {
        "license: Name: with a colon": "Name: with a colon",  # not YAML, but its meaning is clear
        "license: 'a\n\n  library_name: evil'": "a library_name: evil",
        'license: "mit\\nlicense_link: evil\\n---\\n# Heading"': "mit license_link: evil --- # Heading",
        'license: "\\e[2Jmit\\a"': "\\x1b[2Jmit\\x07",
        "license: [mit, apache-2.0]": "mit, apache-2.0",
        "license: {a: b}": "unknown",
        "license: true": "unknown",
        "license:": "unknown",
        "license: " + 3000 * "x": 1000 * "x" + "…",
        "title: x": "unknown",
        "- a list": "unknown",
    }.items(),
)
def test_an_odd_front_matter_is_one_plain_line_or_nothing(front, expected, tmp_path):
    model = load_huggingface(weights_with(tmp_path / "there", front), quiet)
    assert model.report.license == expected
    back = folder_of(model, tmp_path / "back")
    assert front_of(back)["license"] == expected
    assert set(front_of(back)) == {"license", "library_name", "tags"}
    assert str(model.report).count("\n") == str(load_huggingface(back, quiet).report).count("\n")


def test_a_bomb_of_aliases_is_no_licence(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12)]
    model = load_huggingface(weights_with(tmp_path, "\n".join([*lines, "license: *a11"])), quiet)
    assert model.report.license == "unknown"


def test_a_licence_that_lies_elsewhere_is_not_the_folders_word(tmp_path):
    (tmp_path / "secret").write_text("password\n")
    folder = weights_with(tmp_path / "weights")
    for name in ("LICENSE", "README.md"):
        (folder / name).symlink_to(tmp_path / "secret")
    assert load_huggingface(folder, quiet).report.license == "unknown"


def test_the_links_of_a_hubs_cache_are_followed(tmp_path):
    folder = weights_with(tmp_path / "models--a--b/snapshots/0123")
    (tmp_path / "models--a--b/blobs").mkdir()
    (tmp_path / "models--a--b/blobs/89ab").write_text("---\nlicense: mit\n---\n")
    (folder / "README.md").symlink_to("../../blobs/89ab")
    assert load_huggingface(folder, quiet).report.license == "mit"


def test_a_checkpoints_licence_is_no_more_trusted_than_a_folders(tmp_path):
    run = pretrain(from_weights(tmp_path, weights_with(tmp_path / "weights", "license: mit")))
    raw = torch.load(run / "last.pt", weights_only=True)
    del raw["digests"]  # as in a file of an earlier version
    raw["meta"]["license"] = "mit\n---\n# Heading\x1b[2J"
    torch.save(raw, run / "last.pt")
    said = succeed(mae_export, "--checkpoint", run / "last.pt", "--out", tmp_path / "out")
    assert "\x1b" not in said + (tmp_path / "out/README.md").read_text()
    assert front_of(tmp_path / "out")["license"] == "mit --- # Heading\\x1b[2J"
