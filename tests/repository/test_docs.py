"""The docs name what is there: files, modules, links. Shipped configs name no path of anybody's machine."""

import re
from pathlib import Path

import pytest
import yaml
from checkout import ROOT

from mae.recipes import RECIPES, recipe_for

PAGES = [Path(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/*.md"))
MAP = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
# in backticks: a file or folder of the repository; other words in backticks (run folders, settings) look different
NAMED = re.findall(r"`((?:data|mae|classify|tests|docs|configs|benchmarks)/[\w./]*|[\w.]+\.(?:cfg|toml))`", MAP)
LINK = re.compile(r"\]\(([^)]+)\)")


# ---------------------------------------------------------------- the map


def test_every_file_that_the_map_names_exists():
    assert len(NAMED) > 150
    assert not [name for name in NAMED if not (ROOT / name).exists()]


@pytest.mark.parametrize("room", ["data", "mae", "classify"])
def test_the_map_names_every_module_once_in_its_list(room):
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.py")]
    listed = re.findall(rf"^- `({room}/[\w/]+\.py)`:", MAP, re.M)
    assert sorted(listed) == sorted(modules)


def test_every_name_that_the_map_takes_from_the_code_is_there():
    files = [ROOT / "setup.cfg"]
    for folder in ("data", "mae", "classify", "tests"):
        files += (ROOT / folder).rglob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)

    words = {part for name in re.findall(r"`(\w+(?:\.\w+)?)`", MAP) for part in name.split(".")}
    taken = {word for word in words if "_" in word or word != word.lower()}  # not a plain word of English
    assert len(taken) > 80
    assert not taken - set(re.findall(r"\w+", text))


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target, _, heading = link.partition("#")
        place = ROOT / page.parent / target if target else ROOT / page
        assert place.exists(), link
        assert not heading or heading in anchors(place), link


def anchors(page: Path) -> set[str]:
    """A page's headings, as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_leads_to_every_page():
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {page.as_posix() for page in PAGES if page.parent.name == "docs"} <= linked


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_names_no_path_outside_of_where_it_is_used(path):
    words = list(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))
    assert words
    # also the default of an environment variable: ${NAME:-/path}
    assert not [word for word in words if re.search(r"(^|:-)\s*(\.\./|/|~)", word)]


def leaves(tree: object) -> list[str]:
    """Every value of nested settings, as text."""
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    if isinstance(tree, list):
        return [leaf for part in tree for leaf in leaves(part)]
    return [str(tree)]


# ---------------------------------------------------------------- numbers that stand in two places


def test_the_faq_has_the_epochs_that_are_chosen():
    text = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (up to [\d,]+|more) \| (\d+)(?: epochs)? \| (\d+) \|$", text, re.M)
    limits = {recipe.up_to for recipes in RECIPES.values() for recipe in recipes}
    assert [limit for limit, _, _ in rows] == [f"up to {int(limit):,}" for limit in sorted(limits)[:-1]] + ["more"]
    for (_, *told), images in zip(rows, sorted(limits), strict=True):
        assert [int(epochs) for epochs in told] == [recipe_for(device, images).epochs for device in ("cpu", "cuda")]


def test_the_faq_has_the_areas_of_the_results():
    areas = re.findall(r"\.\d{3}", re.search(r"^\| 4,005.*\n\| 4,128.*$", (ROOT / "docs/faq.md").read_text(), re.M)[0])
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8").partition("\n## Kermany, 64 px\n")[2]
    table = r"^\| {name} +\|.* (\.\d+) \[[^|]*\|$"
    names = ("MAE, linear probe", "MAE, fine-tuned", "Random encoder, linear probe", "Random ViT, trained", "ResNet-18")
    found = [re.findall(table.replace("{name}", re.escape(name)), results, re.M)[:2] for name in names]
    assert areas == [by_set[number] for number in (0, 1) for by_set in found]
