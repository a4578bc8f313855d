"""Names become folders: in one form, apart from each other on every file system, or with one clear line."""

from pathlib import Path

import pytest
from tiny_world import call, mistake, tiny_config

from classify.cli import compare, finetune
from classify.grid import expand_grid, folder_name, pretraining_folder_name
from classify.start import run_folder
from data.config import beside, expand
from data.errors import UserError
from mae.cli import pretrain

# ---------------------------------------------------------------- paths


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with a folder in it, and a link to one elsewhere."""
    (tmp_path / "work/runs").mkdir(parents=True)
    (tmp_path / "elsewhere/inside").mkdir(parents=True)
    (tmp_path / "work/link").symlink_to(tmp_path / "elsewhere/inside")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "work"


@pytest.mark.parametrize(
    "text",
    ["runs/mae", "runs/mae/", "./runs//mae", "runs/./mae/.", "runs/x/../mae", "${R:-runs}/mae//", "../work/runs/mae"],
)
def test_a_folder_has_one_form_and_one_neighbour(here, text):
    config = tiny_config(here, run=text)
    assert run_folder(config, None).resolve() == here / "runs/mae-vit"
    assert ".." not in Path(expand(text, "run")).parts[1:]
    assert not expand(text, "run").endswith("/")


@pytest.mark.parametrize(
    ("text", "neighbour"),
    [(".", "work-vit"), ("./", "work-vit"), ("runs/..", "work-vit"), ("..", "../{parent}-vit"), ("~", "home-vit")],
)
def test_a_folder_without_a_name_of_its_own_has_that_of_its_place(here, text, neighbour):
    found = run_folder(tiny_config(here, run=text), None)
    assert found.resolve() == (here.parent / neighbour.format(parent=here.parent.name)).resolve()


def test_up_from_a_link_is_up_from_where_it_leads(here):
    assert Path(expand("link/../x", "run")).resolve() == here.parent / "elsewhere/x"
    assert expand(f"{here}/link/../x", "run") == str(here.parent / "elsewhere/x")
    assert expand("../../x", "run") == "../../x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run: found '', expected a path"),
        ("${NOT_SET:-}", "run: found '', expected a path"),
        ("a\0b", "run: found 'a\\x00b', expected a path"),
        ("~nobody-of-that-name/x", "run: found ~nobody-of-that-name/x, whose home folder is not known"),
    ],
)
def test_what_is_no_path_is_one_line(text, message):
    with pytest.raises(UserError) as caught:
        expand(text, "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_root_has_no_neighbour():
    with pytest.raises(
        UserError, match=r"^run: found /, which has no name to add -vit to, expected a folder with a name$"
    ):
        beside(Path("/"), "-vit", "run")


def test_what_a_flag_adds_goes_to_the_name(world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/x/../run/", "--overfit", "4"]
    call(pretrain, *words, "pretrain.batch_size=4", "pretrain.epochs=3")  # too few to learn anything
    call(finetune, *words, "finetune.batch_size=4", "finetune.epochs=3")
    assert {path.name for path in tmp_path.iterdir()} == {"run-overfit4", "run-vit-overfit4"}


# ---------------------------------------------------------------- rows


def folders(root: Path, *names: str, **changed: object) -> list[str]:
    rows = [{"name": name} for name in names]
    config = tiny_config(root, run=f"{root}/grid/", compare__rows=rows, **changed)
    found = [Path(cell.run) for cell in expand_grid(config)]
    assert {path.parent for path in found} == {root / "grid"}
    return [path.name for path in found]


def test_a_name_in_ascii_is_a_folder_as_one_reads_it():
    for name, folder in {
        "MAE, linear": "mae-linear",
        "ResNet-18": "resnet-18",
        "MAE – 75 %": "mae-75",
        "../x/y": "x-y",
        "Ｍ１": "m1",  # full width
    }.items():
        assert folder_name(name) == folder


@pytest.mark.parametrize(
    "names",
    [
        ("ViT α", "ViT β"),
        ("модель", "模型"),
        ("🫁", "🩻", "…"),
        ("Größe", "Grße"),
        ("हिन्दी", "हिन्दि"),
        ("A" * 300 + "1", "A" * 300 + "2"),
    ],
)
def test_names_of_any_language_have_folders_of_their_own(place, names):
    found = folders(place, *names)
    assert len({name.casefold() for name in found}) == len(names)
    assert all(name.isascii() and len(name) < 150 and name[0].isalnum() for name in found)
    assert found == folders(place, *names)


@pytest.mark.parametrize(("one", "two"), [("A", "a"), ("A b", "A, b"), ("é", "e\u0301"), ("Straße", "STRASSE")])
def test_names_that_would_share_a_folder_are_one_line(place, one, two):
    with pytest.raises(UserError) as caught:
        folders(place, one, two)
    assert str(caught.value).startswith(f"compare.rows: found two rows for {place}/grid/")
    assert f"({one!r} and {two!r}), expected names that differ in more than case and punctuation" in str(caught.value)


@pytest.mark.parametrize("name", ["mae75", "MAE_75", "v1.5"])
def test_a_pretraining_keeps_its_name_where_it_can(name):
    assert pretraining_folder_name(name) == name


def test_pretrainings_stay_inside_and_apart(place):
    names = ["a/b", "c/b", "../../up", ".hidden", "", "α", "β"]
    rows = [{"name": "MAE", "pretraining": names}]
    config = tiny_config(place, run=f"{place}/grid", compare__rows=rows, compare__pretrainings={n: {} for n in names})
    cells = list(expand_grid(config))
    for folder in ({Path(cell.pretrain_config.run) for cell in cells}, {Path(cell.run) for cell in cells}):
        assert len(folder) == len(names)
        assert {path.parent for path in folder} == {place / "grid"}


def test_pretrainings_that_differ_in_case_alone_are_one_line(place, world, tmp_path):
    rows = "compare={pretrainings: {A: {}, a: {}}, rows: [{name: M, pretraining: [A]}, {name: N, pretraining: [a]}]}"
    line = mistake(compare, "--config", world.config, f"run={tmp_path}/grid", rows, keep=world.root)
    assert line.startswith(
        f"error: compare.rows: found two pretrainings for {tmp_path}/grid/pretrain-a-seed0 ('A' and 'a')"
    )


def test_a_row_does_not_write_where_a_pretraining_does(world, tmp_path):
    rows = "compare={pretrainings: {x: {}}, rows: [{name: M, pretraining: [x]}, {name: Pretrain x}]}"
    line = mistake(compare, "--config", world.config, f"run={tmp_path}/grid", rows, keep=world.root)
    assert line.startswith(f"error: compare.rows: found a pretraining and a row for {tmp_path}/grid/pretrain-x-seed0")
