"""What a grid's config means: names, label budgets, draws, settings to tune, and what differs between rows."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from saved_classifiers import save_classifier
from tiny_world import tiny_config

from classify import tuning
from classify.cases import label_budget, labelled_splits
from classify.grid import (
    check_pretrainings,
    check_settings,
    expand_grid,
    labelled_images,
    left_out,
    row_names,
    trials_of,
)
from classify.plan import _Datasets, _runs, plan
from classify.row_differences import differences_between_rows
from classify.start import config_of, with_paths_given
from classify.tuning import choose, kept_choice
from data.config import change_config, load_config, make_config
from data.errors import UserError
from data.loader import Data
from data.manifest import sample_patients
from mae import load_checkpoint

TWO = [{"name": "A", "pretraining": ["p", "q"]}, {"name": "B", "pretraining": ["p"]}, {"name": "C"}]
MORE = [{"source": "images", "root": "archive"}]
PRETRAININGS = {"p": {}, "q": {"pretrain.mask_ratio": 0.5}}


def grid(place, rows=({"name": "A"},), **compare):
    sections = {f"compare__{name}": value for name, value in compare.items()}
    return tiny_config(place, run=f"{place}/grid", compare__rows=list(rows), **sections)


def refusal(place, images=None, **compare) -> str:
    with pytest.raises(UserError) as caught:
        list(expand_grid(grid(place, **compare), images))
    return str(caught.value)


# ---------------------------------------------------------------- names


def test_every_row_has_one_name_and_is_understood_by_another(place):
    config = grid(place, TWO, pretrainings=PRETRAININGS)
    assert row_names(config.compare) == {"A/p": "A/p", "A/q": "A/q", "B": "B", "B/p": "B", "C": "C"}
    assert [cell.name for cell in expand_grid(config)] == ["A/p", "A/q", "B", "C"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"name": "A"}, {"name": "A", "set": {"finetune.model": "resnet18"}}],
        [{"name": "A", "pretraining": ["p", "q"]}, {"name": "A/q"}],
        [{"name": "A", "pretraining": ["p", "p"]}],
        [{"name": "A", "pretraining": ["p"]}, {"name": "A/p"}],
    ],
)
def test_two_rows_of_one_name_are_one_line(place, rows):
    message = refusal(place, rows=rows, pretrainings=PRETRAININGS)
    assert message.startswith("compare.rows: found two rows named 'A")
    assert "\n" not in message


def test_a_baseline_that_is_no_row_is_told_what_may_be_meant(place):
    message = refusal(place, rows=TWO, pretrainings=PRETRAININGS, baseline="A/r")
    assert message == (
        "compare.baseline: found 'A/r', expected a row's name: A/p, A/q, B, C; did you mean A/q?"
    ) or message.endswith("did you mean A/p?")
    list(expand_grid(grid(place, TWO, pretrainings=PRETRAININGS, baseline="B/p")))


def test_rows_of_the_shipped_grids_have_names_of_their_own():
    for name in ("compare_mimic", "demo", "kermany", "kermany_decoders", "phantom", "pneumoniamnist"):
        config = load_config(name, ["data.root=/nowhere"])
        names = [cell.name for cell in expand_grid(config, 100_000)]
        assert len(set(row_names(config.compare).values())) == len(set(names))


# ---------------------------------------------------------------- label budgets


def test_shares_are_of_the_labelled_training_images(place):
    config = grid(place, labelled=["5 %", "12.5%", 7, "100 %", "all", None])
    assert [cell.labelled for cell in expand_grid(config, 40)] == [2, 5, 7, None]


def test_what_comes_to_as_many_images_stands_there_once(place):
    assert [cell.labelled for cell in expand_grid(grid(place, labelled=["10 %", 4]), 40)] == [4]


@pytest.mark.parametrize(("images", "least"), [(40, "3.8 %"), (7, "21.5 %")])
def test_a_share_of_less_than_two_images_is_one_line_with_one_that_works(place, images, least):
    message = refusal(place, images, labelled=["2 %"])
    assert message == (
        f"compare.labelled: found 2 % of {images} labelled training images, expected 2 images or more; give {least} at "
        "least"
    )
    [cell] = expand_grid(grid(place, labelled=[least]), images)
    assert cell.labelled == 2


def test_a_share_of_images_that_nobody_has_counted_is_one_line(place):
    assert refusal(place, None, labelled=["5 %"]).startswith("compare.labelled: found 5 %, expected images to take")


@pytest.mark.parametrize("budget", [0.05, "5", "5 percent", "101 %", "0 %", "-1 %", True, "nan %"])
def test_what_is_no_budget_is_refused(place, budget):
    with pytest.raises(UserError, match="expected a count such as 500, a share such as '5 %'"):
        grid(place, labelled=[budget])


@pytest.mark.parametrize("budget", [1, 0, -3])
def test_a_budget_of_less_than_two_images_is_named_where_it_stands(place, budget):
    assert refusal(place, labelled=[budget]).startswith(f"compare.labelled: found {budget}, expected 2 images")


def test_a_seed_that_stands_twice_is_no_training_more(place):
    assert refusal(place, seeds=[3, 0, 3]).startswith("compare.seeds: found 3 twice, expected each once")


def test_seeds_may_share_their_pretrainings_in_turn(place):
    two = grid(place, TWO, pretrainings=PRETRAININGS, seeds=[3, 5, 7], pretraining_seeds=[11, 2], labelled=[11])
    found = [cell for cell in expand_grid(two) if cell.name == "B"]
    assert [cell.config.seed for cell in found] == [3, 5, 7]
    assert [cell.config.finetune.draw for cell in found] == [0, 1, 2]
    assert [cell.pretrain_config.seed for cell in found] == [11, 2, 11]
    assert found[0].pretrain_config == found[2].pretrain_config
    assert [cell.pretrain_config for cell in expand_grid(two) if cell.name == "C"] == [None] * 3

    own = grid(place, TWO, pretrainings=PRETRAININGS, seeds=[3, 5, 7])
    assert [cell.pretrain_config.seed for cell in expand_grid(own) if cell.name == "B"] == [3, 5, 7]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 1], "compare.pretraining_seeds: found 1 twice, expected each once"),
        ([1, 2, 3], "compare.pretraining_seeds: found 3, expected at most as many as compare.seeds has (2)"),
    ],
)
def test_pretraining_seeds_that_serve_nothing_are_refused(place, seeds, message):
    assert refusal(place, seeds=[3, 5], pretraining_seeds=seeds).startswith(message)


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_a_row_without_a_name_is_refused(place, name):
    with pytest.raises(UserError, match=r"compare\.rows\.0\.name: found no letters"):
        grid(place, [{"name": name}])


def test_what_a_row_has_of_its_own_is_not_tuned_by_its_section(place):
    row = {"name": "A", "set": {"finetune.optimizer.base_lr": 0.003}}
    tune = {"finetune.optimizer": [{"base_lr": 0.001}, {"base_lr": 0.01}]}
    assert refusal(place, rows=[row], tune=tune).startswith("compare.rows: A: found finetune.optimizer of its own")


def test_a_budget_has_settings_for_all_rows_which_their_own_overrule(place):
    settings = {"5 %": {"finetune.epochs": 7}, "all": {"finetune": {"drop_path": 0.3}}, 11: {"finetune.epochs": 5}}
    rows = [{"name": "A"}, {"name": "B", "set": {"finetune.epochs": 3}}, {"name": "C", "set": {"finetune.sample": 11}}]
    config = grid(place, rows, labelled=["5 %", 11, None], labelled_settings=settings)
    again = make_config(json.loads(config.model_dump_json()), "again")
    assert again.compare.labelled_settings == config.compare.labelled_settings
    for each in (config, again):
        found = {}
        for cell in expand_grid(each, 40):
            found[cell.name, cell.labelled] = (cell.config.finetune.epochs, cell.config.finetune.drop_path)
        assert found == {
            **{("A", 2): (7, 0.1), ("A", 11): (5, 0.1), ("A", None): (4, 0.3)},
            **{("B", 2): (3, 0.1), ("B", 11): (3, 0.1), ("B", None): (3, 0.3), ("C", 11): (5, 0.1)},
        }


@pytest.mark.parametrize(
    ("labelled", "settings", "message"),
    [
        (
            [2],
            {2: {"finetune.epochs": 7}, "5 %": {"finetune.epochs": 3}},
            "5 %: found settings of this number of images",
        ),
        ([2], {2: {"finetune.sample": 7}}, "2: found finetune.sample, expected"),
        ([2], {"all": {"seed": 7}}, "all: found seed, expected it outside"),
        ([2], {2: {"pretrain.epochs": 7}}, "2: found pretrain.epochs, expected settings of finetune"),
        ([2], {2: {"seed": 7}}, "2: found seed, expected it outside"),
        ([2], {2: {"finetune.epochs": "many"}}, '2: finetune.epochs: found "many", expected'),
    ],
)
def test_what_a_budget_cannot_have_is_one_line(place, labelled, settings, message):
    assert refusal(place, 40, labelled=labelled, labelled_settings=settings).startswith(
        f"compare.labelled_settings: {message}"
    )


def test_what_is_given_nested_and_dotted_is_one_line(place):
    message = refusal(place, 40, rows=[{"name": "A", "set": {"finetune.epochs": 7, "finetune": {"epochs": 3}}}])
    assert message == "finetune.epochs: found it twice, nested and dotted, expected it once"


def test_what_a_budget_sets_is_not_tuned(place):
    settings = {2: {"finetune.optimizer.base_lr": 0.1}}
    message = refusal(place, labelled=[2], labelled_settings=settings, tune=RATES)
    assert message.startswith("compare.labelled_settings: 2: found finetune.optimizer.base_lr of its own")


def test_what_a_budget_and_a_row_set_need_be_right_together_alone(place):
    rows = [{"name": "A", "set": {"finetune.epochs": 50}}]
    settings = {2: {"finetune.optimizer.warmup_epochs": 20}}
    [cell] = expand_grid(grid(place, rows, labelled=[2], labelled_settings=settings))
    assert (cell.config.finetune.epochs, cell.config.finetune.optimizer.warmup_epochs) == (50, 20)


def test_a_row_may_stand_in_some_of_the_tables(place):
    rows = [{"name": "A"}, {"name": "B", "labelled": ["50 %", "all"]}, {"name": "C", "labelled": [20]}]
    config = grid(place, rows, labelled=[2, 20, None])
    assert [(cell.name, cell.labelled) for cell in expand_grid(config, 40)] == [
        *(("A", 2), ("A", 20), ("B", 20), ("C", 20), ("A", None), ("B", None))
    ]
    assert left_out(config, 40) == []


def test_a_grid_may_be_run_at_some_of_its_budgets(place):
    rows = [{"name": "A"}, {"name": "B", "labelled": [20, None]}, {"name": "C", "labelled": [3, "all"]}]
    settings = {"50 %": {"finetune.epochs": 7}, "5 %": {"finetune.epochs": 3}}
    config = grid(place, rows, labelled=[2, 20], labelled_settings=settings)
    found = [(cell.name, cell.labelled, cell.config.finetune.epochs) for cell in expand_grid(config, 40)]
    assert found == [("A", 2, 3), ("A", 20, 7), ("B", 20, 7)]
    assert left_out(config, 40) == ["compare.rows: C: left out, as compare.labelled is 2, 20, not 3, all"]

    config = grid(place, rows, labelled=[3], labelled_settings=settings)
    assert left_out(config, 40) == [
        "compare.labelled_settings: 50 %: not used, as compare.labelled is 3",
        "compare.labelled_settings: 5 %: not used, as compare.labelled is 3",
        "compare.rows: B: left out, as compare.labelled is 3, not 20, all",
    ]
    # unused settings need not be possible
    config = grid(place, rows, labelled=["all"], labelled_settings={"1 %": {"finetune.epochs": 7}})
    for images in (None, 40):
        assert [cell.name for cell in expand_grid(config, images)] == ["A", "B", "C"]
    message = refusal(place, 40, rows=rows[1:], labelled=[2])
    assert message == "compare.rows: found none for 2, expected one at least; see their labelled"


@pytest.mark.parametrize("every", [40, "99 %", "100 %", None])
def test_a_budget_of_all_images_is_no_table_of_its_own(every, place):
    config = grid(place, [{"name": "A"}], labelled=[2, "all", every])
    assert [cell.labelled for cell in expand_grid(config, 40)] == [2, None]


def test_more_images_than_there_are_is_one_line(place):
    message = refusal(place, 40, labelled=[2, 41])
    assert message == "compare.labelled: found 41, expected at most the 40 labelled training images"


def test_all_labels_are_not_a_sample_of_them(place):
    sampled = change_config(grid(place, labelled=[7, None]), {"finetune.sample": 11})
    with pytest.raises(UserError, match=r"^finetune.sample: found 11 beside all in compare.labelled, expected one of"):
        list(expand_grid(sampled, 40))
    for labelled, expected in ((7,), 7), ((None,), 11):
        [cell] = expand_grid(change_config(sampled, {"compare.labelled": labelled}), 40)
        assert cell.labelled == expected


def test_each_seed_has_a_subset_of_its_own_and_all_rows_the_same(place, opened):
    config = grid(place, [{"name": "A"}, {"name": "B"}], labelled=[11, None], seeds=[3, 5, 7])
    drawn: dict = {}
    for cell in expand_grid(config):
        finetune = cell.config.finetune
        splits = labelled_splits(opened, finetune.sample, cell.config.data.split_seed, finetune.draw)
        drawn.setdefault((cell.labelled, cell.config.seed), []).append(frozenset(splits.train["image_id"]))
    assert all(len(set(of_rows)) == 1 and len(of_rows) == 2 for of_rows in drawn.values())
    assert len({drawn[11, seed][0] for seed in (3, 5, 7)}) == 3
    assert len({drawn[None, seed][0] for seed in (3, 5, 7)}) == 1
    assert {cell.config.finetune.draw for cell in expand_grid(config) if cell.labelled is None} == {0}


def test_the_first_draw_is_that_of_a_single_fine_tuning(place, opened):
    first = labelled_splits(opened, 11, 0, draw=0).train
    train = opened.split("train")
    assert first["image_id"].tolist() == sample_patients(train, 11, 0)["image_id"].tolist()


def test_a_row_draws_no_subset_of_its_own(place):
    rows = [{"name": "A", "set": {"finetune.draw": 2}}]
    assert refusal(place, rows=rows).startswith("compare.rows: A: found finetune.draw, expected it outside")


def patients(count: int = 23, of_class: int = 3) -> pd.DataFrame:
    """One to three images a patient; every seventh patient abnormal."""
    rows = []
    for number in range(count):
        for image in range(1 + number % of_class):
            label = float(number % 7 == 6)
            rows.append({"image_id": f"{number}-{image}", "patient_id": f"p{number}", "label": label})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seed", range(7))
def test_a_budget_has_both_classes_and_smaller_ones_are_part_of_larger_ones(seed):
    table = patients()
    before: set = set()
    for count in range(2, len(table) + 1):
        drawn = label_budget(table, count, seed)
        ids = set(drawn["image_id"])
        assert before <= ids
        assert drawn["label"].nunique() == 2
        assert count <= len(drawn) < count + 6
        whole = table[table["patient_id"].isin(drawn["patient_id"])]
        assert len(whole) == len(drawn)
        before = ids

    # the same draw as sample_patients, wherever that has both classes
    plain = sample_patients(table, 30, seed)
    assert plain["label"].nunique() < 2 or plain.equals(label_budget(table, 30, seed))


def test_labelled_training_images_are_counted():
    table = pd.DataFrame({"split": ["train", "train", "test", "train"], "label": [1.0, float("nan"), 1.0, 0.0]})
    assert labelled_images(table) == 2


# ---------------------------------------------------------------- tuning

RATES = {"finetune.optimizer.base_lr": [0.1, 0.2, 0.5]}


def test_settings_to_tune_are_the_product_of_the_lists(place):
    tune = {"finetune.optimizer.base_lr": [0.1, 0.2], "finetune.drop_path": [0.0, 0.1, 0.3]}
    cells = list(expand_grid(grid(place, tune=tune, seeds=[0, 1])))
    assert {len(cell.choices) for cell in cells} == {6}
    trials = trials_of(cells[0])
    pairs = [(t.config.finetune.optimizer.base_lr, t.config.finetune.drop_path) for t in trials]
    assert pairs == [(0.1, 0.0), (0.1, 0.1), (0.1, 0.3), (0.2, 0.0), (0.2, 0.1), (0.2, 0.3)]
    assert len({trial.run for trial in trials}) == 6
    assert all(trial.run.startswith(f"{place}/grid/tune/a-seed0-") for trial in trials)


def test_a_longer_list_keeps_the_folders_of_what_was_tried(place):
    short, long = (
        [trial.run for cell in expand_grid(grid(place, tune=tune)) for trial in trials_of(cell)]
        for tune in ({"finetune.drop_path": [0.1, 0.3]}, {"finetune.drop_path": [0.0, 0.1, 0.3]})
    )
    assert long[1:] == short


def test_a_single_setting_is_not_searched_for(place):
    [cell] = expand_grid(grid(place, tune={"finetune.drop_path": [0.3]}))
    assert (cell.choices, cell.config.finetune.drop_path) == ((), 0.3)
    assert trials_of(cell) == []


def test_a_row_may_have_values_of_its_own_as_many_as_the_others(place):
    own = {"finetune.optimizer.base_lr": [1.0, 2.0, 5.0]}
    a, b = expand_grid(grid(place, [{"name": "A"}, {"name": "B", "tune": own}], tune=RATES))
    assert [choice["finetune.optimizer.base_lr"] for choice in b.choices] == [1.0, 2.0, 5.0]
    assert len(a.choices) == 3


@pytest.mark.parametrize(
    ("row", "tune", "message"),
    [
        ({"tune": {"finetune.drop_path": [0.1]}}, RATES, "A: found 1 settings to tune, expected 3 as in compare.tune"),
        ({"tune": {}}, RATES, "A: found 1 settings to tune, expected 3"),
        ({"tune": RATES}, {}, "A: found 3 settings to tune, expected 1"),
        ({"set": {"finetune.optimizer.base_lr": 1.0}}, RATES, "A: found finetune.optimizer.base_lr of its own, which"),
        ({"set": {"finetune": {"optimizer": {"base_lr": 1.0}}}}, RATES, "A: found finetune.optimizer.base_lr of its"),
        (
            {"set": {"finetune.drop_path": 0.1}, "tune": {"finetune.drop_path": [0.1, 0.2, 0.3]}},
            RATES,
            "A: found finet",
        ),
    ],
)
def test_unequal_tuning_is_refused(place, row, tune, message):
    assert refusal(place, rows=[{"name": "A", **row}], tune=tune).startswith(f"compare.rows: {message}")


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"pretrain.mask_ratio": [0.5, 0.7]}, "compare.tune: found pretrain.mask_ratio, expected settings of finetune"),
        ({"finetune.selct": ["auc"]}, "compare.tune: found finetune.selct, expected settings of finetune"),
        ({"finetune.select": ["auc", "loss"]}, "compare.tune: found finetune.select, expected it as a row's own"),
        ({"finetune.draw": [0, 1]}, "compare.tune: found finetune.draw, expected it as"),
        ({"finetune.drop_path": []}, "compare.tune: finetune.drop_path: found no values"),
        ({"finetune.drop_path": [0.1, 0.1]}, "compare.tune: finetune.drop_path: found a value twice"),
        (
            {"finetune.optimizer": [{"base_lr": 1}], "finetune.optimizer.base_lr": [1]},
            "compare.tune: found finetune.optimizer and finetune.optimizer.base_lr, expected one of the two",
        ),
    ],
)
def test_what_cannot_be_tuned_is_one_line(place, tune, message):
    assert refusal(place, tune=tune).startswith(message)


def test_a_value_that_cannot_be_is_named_before_anything_is_trained(place):
    [cell] = expand_grid(grid(place, tune={"finetune.drop_path": [0.1, 2.0]}))
    with pytest.raises(UserError, match=r"compare\.tune: A: finetune\.drop_path: found 2\.0, expected"):
        trials_of(cell)


@pytest.mark.parametrize(
    ("pretrainings", "seeds", "said"),
    [({}, [5], "a pretraining"), ({"data.unlabelled": MORE}, None, "a pretraining"), ({}, None, "images or labels")],
)
def test_a_choice_stands_for_the_images_labels_and_pretraining_it_was_made_with(
    place, opened, tmp_path, monkeypatch, pretrainings, seeds, said
):
    def first(given: dict, pretraining_seeds=None):
        own = {"pretrainings": {"p": given}, "pretraining_seeds": pretraining_seeds, "labelled": [31]}
        rates = {"finetune.optimizer.base_lr": [0.01, 0.03, 0.02]}
        config = grid(place, [{"name": "A", "pretraining": ["p"]}], tune=rates, **own)
        [cell] = expand_grid(change_config(config, {"run": str(tmp_path)}), images=40)
        return cell

    (tmp_path / "tune").mkdir()
    monkeypatch.setattr(tuning, "_score", lambda trial: trial.config.finetune.optimizer.base_lr)
    made = choose(first({}), (), [(None, None)] * 3, opened)
    assert made.chosen == 1
    assert kept_choice(first({}), opened) == kept_choice(first({}), None) == made

    # the first image of each class takes the other's label
    table = opened.manifest.table.copy()
    train = table[table["split"] == "train"]
    for label in (0, 1):
        table.loc[train.index[train["label"] == label][0], "label"] = 1 - label
    changed = Data(replace(opened.manifest, table=table), opened.store) if said == "images or labels" else opened
    changed_cell = first(pretrainings, seeds)
    changed_cell = replace(changed_cell, config=first({}).config)  # what the trials' own settings tell is told already
    place_of_choice = tmp_path / "tune" / f"{changed_cell.folder}.json"
    with pytest.raises(UserError) as caught:
        kept_choice(changed_cell, changed)
    expected = f"{place_of_choice}: found a setting that was chosen with {said} other than today's, expected the same;"
    assert str(caught.value).startswith(expected)

    # an earlier version's choice does not say what it was made with
    written = json.loads(place_of_choice.read_text())
    place_of_choice.write_text(json.dumps({**written, "images": None, "pretraining": None}))
    assert kept_choice(changed_cell, changed).chosen == 1


@pytest.mark.parametrize(
    ("named", "lies", "at_home"),
    [
        ("grid/tune/a-seed0-0123abcd", "grid/a-seed0", True),
        ("grid/tune/a-seed0-0123abcd", "grid/tune/a-seed0-0123abcd", True),
        ("grid/tune/a-seed0-0123abcd", "grid/b-seed0", False),
        ("grid/tune/a-seed0-0123abcd", "other/a-seed0", False),
        ("grid/tune/a-seed0", "grid/a", False),
        ("grid/else/a-seed0-0123abcd", "grid/a-seed0", False),
    ],
)
def test_a_trial_that_became_a_run_of_the_grid_is_still_at_home(tmp_path, named, lies, at_home):
    path, _, _ = save_classifier(tmp_path, "a", finetune__run=f"{tmp_path}/{named}")
    moved = tmp_path / lies / "best.pt"
    moved.parent.mkdir(parents=True)
    path.rename(moved)
    (moved.parent / "config.yaml").touch()
    checkpoint = load_checkpoint(moved)
    config = config_of(checkpoint)
    if at_home:
        assert with_paths_given(config, checkpoint, {}, "mae-evaluate RUN", run=False) == config
    else:
        with pytest.raises(UserError, match="found a checkpoint outside the run folder"):
            with_paths_given(config, checkpoint, {}, "mae-evaluate RUN", run=False)


# ---------------------------------------------------------------- rows of the data


@pytest.mark.parametrize("where", [{"pixels": 128}, {}, {"a.b": 7}, {"view": "AP", "No": [1, 2]}])
@pytest.mark.parametrize("nested", [False, True])
def test_rows_chosen_by_columns_are_chosen_anew_in_both_stages(place, where, nested):
    given = {"data": {"where": where}} if nested else {"data.where": where}
    rows = [{"name": "A", "pretraining": ["p"]}, {"name": "B", "set": given}, {"name": "C"}]
    config = tiny_config(
        place, data__where={"view": "PA"}, compare__rows=rows, compare__pretrainings={"p": given}, compare__seeds=[3]
    )
    a, b, c = expand_grid(config)
    expected = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in where.items()}
    for each in (a.pretrain_config, a.config, b.config):
        assert each.data.where == expected
    assert c.config.data.where == {"view": ("PA",)}


def test_a_single_column_is_changed_beside_the_others(place):
    given = {"data.where.sex": "F"}
    rows = [{"name": "A", "pretraining": ["p"]}, {"name": "B", "set": given}]
    config = tiny_config(place, data__where={"view": "PA"}, compare__rows=rows, compare__pretrainings={"p": given})
    for cell in expand_grid(config):
        assert cell.config.data.where == {"view": ("PA",), "sex": ("F",)}


def test_images_for_pretraining_alone_are_the_pretrainings(place):
    more = {"data.unlabelled": MORE}
    config = grid(place, [{"name": "A", "pretraining": ["p"], "set": more}], pretrainings={"p": {}})
    [cell] = expand_grid(config)
    with pytest.raises(UserError, match=r"^compare.rows: A: found data.unlabelled changed, expected it as its pretra"):
        check_settings(config, cell)
    config = grid(place, [{"name": "A", "pretraining": ["p"]}], pretrainings={"p": more})
    [cell] = expand_grid(config)
    assert cell.pretrain_config.data.unlabelled == cell.config.data.unlabelled != ()


# ---------------------------------------------------------------- pretrainings that go on from others

CONSTANT = {"pretrain.optimizer.schedule": "constant", "pretrain.optimizer.warmup_epochs": 0, "pretrain.epochs": 7}


def branching(place, run="branches", **short):
    """A grid whose pretraining `short` goes on from `long`."""
    kept = "{run}/pretrain-long-seed{seed}/epoch003.pt"
    own = {key.replace("__", "."): value for key, value in short.items()}
    long = {name.removeprefix("long."): own.pop(name) for name in list(own) if name.startswith("long.")}
    pretrainings = {
        "short": {"pretrain.continue_from": kept, "pretrain.epochs": 5} | own,
        "long": {"pretrain.keep_epochs": [2, 3]} | long,
    }
    rows = [{"name": "S", "pretraining": ["short"]}, {"name": "L", "pretraining": ["long"]}]
    changed = {f"compare.{name}": value for name, value in {"rows": rows, "pretrainings": pretrainings}.items()}
    return tiny_config(place, run=f"{place}/{run}", **CONSTANT | changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pretrain__mask_ratio": 0.5}, "found a run made with pretrain.mask_ratio = 0.75, expected 0.5"),
        ({"long__data.uncertain": "positive"}, "found a run made with data.uncertain = positive, expected unknown"),
        ({"long__pretrain.keep_epochs": [2]}, "a run that keeps epoch002.pt, expected 3 in its pretrain.keep_epochs"),
        (
            {"long__pretrain.keep_epochs": []},
            "found a run that keeps no epochs, expected 3 in its pretrain.keep_epochs",
        ),
        ({"pretrain__epochs": 3}, "after epoch 3, expected some from before this one cools down"),
        ({"pretrain__optimizer.cooldown_epochs": 2.5}, "expected some from before this one cools down, at epoch 2.5"),
        ({"long__pretrain.optimizer.cooldown_epochs": 5}, "expected some from before its run cools down, at epoch 2"),
        ({"pretrain__keep_epochs": [3]}, "pretrain.keep_epochs: found 3, expected epochs after 3"),
    ],
)
def test_a_beginning_that_cannot_be_is_told_before_the_other_is_trained(place, changed, said):
    with pytest.raises(UserError) as caught:
        check_pretrainings(expand_grid(branching(place, **changed)), lambda settings: None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"pretrain__optimizer.cooldown_epochs": 2, "pretrain__validate_every": 5},
        {"pretrain__batch_size": "auto"},
        {"long__pretrain.batch_size": "auto"},
        {"pretrain__keep_epochs": [5]},
    ],
)
def test_a_beginning_that_can_be_is_not_refused(place, changed):
    check_pretrainings(expand_grid(branching(place, **changed)), lambda settings: None)


def test_a_run_that_has_begun_needs_its_beginning_no_more(place):
    config = branching(place, "begun", **{"long__pretrain.keep_epochs": []})
    [short, _] = expand_grid(config)
    folder = Path(short.pretrain_config.run)
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"")
    check_pretrainings([*expand_grid(config)], lambda settings: None)


def test_a_dry_run_counts_the_epochs_that_a_pretraining_trains_itself(place, opened):
    told = plan(branching(place, "planned"))
    assert "trainings    4: 2 pretrainings, 2 cells; 0 done, 0 begun" in told
    runs = {run.name: run for run in _runs(list(expand_grid(branching(place, "planned"))), _Datasets())}
    short, long = (runs[f"pretrain-{name}-seed0"] for name in ("short", "long"))
    assert short.steps == 2 * long.steps / 7
    assert (short.validations, long.validations) == (2, 7)


# ---------------------------------------------------------------- what differs


def test_all_that_differs_between_rows_is_told_with_what_null_comes_to(place):
    rows = [
        {"name": "M", "pretraining": ["p"]},
        {"name": "V"},
        {"name": "R", "set": {"finetune.model": "resnet18", "finetune.epochs": 7}},
    ]
    table = differences_between_rows(expand_grid(grid(place, rows, pretrainings={"p": {}}, seeds=[0, 1])))
    found = {row["Setting"]: (row["M"], row["V"], row["R"]) for row in table}
    assert found["weights"] == ("p", "random", "random")
    assert found["finetune.optimizer.layer_decay"] == ("0.75", "1", "–")
    assert found["finetune.drop_path"] == ("0.1", "0.1", "–")
    assert found["finetune.stem"] == ("–", "–", "small")
    assert found["finetune.epochs"] == ("4", "4", "7")
    assert found["model.width"] == ("12", "12", "–")
    assert "finetune.batch_size" not in found
    assert not {"finetune.run", "finetune.draw", "finetune.sample"} & found.keys()


def test_rows_that_are_alike_differ_in_nothing(place):
    assert differences_between_rows(expand_grid(grid(place, [{"name": "A"}, {"name": "B"}], seeds=[0, 1]))) == []


def test_a_settings_own_check_is_told_with_the_setting_apart_from_it(place):
    with pytest.raises(UserError, match=r"report\.specificities\.0: found 0\.955, expected a whole per cent"):
        tiny_config(place, report__specificities=[0.955])


def test_a_dry_run_refuses_a_contrast_of_no_row(place):
    config = grid(place, [{"name": "A"}, {"name": "BB", "set": {"finetune.epochs": 2}}], contrasts=[["A", "BC"]])
    with pytest.raises(UserError, match=r"compare\.contrasts\.0\.b: found 'BC', expected a row's name: A; BB"):
        plan(config)
