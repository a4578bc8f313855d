"""The config alone settles which rows are tested against which; these tests alone settle what is said afterwards."""

import itertools
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny_world import tiny_config

from classify.comparison import Comparison, Contrast, Declared, FailedRow, Line, ensemble_name
from classify.contrasts import candidates, declared, untested
from classify.extra_rows import extra_names
from classify.grid import expand_grid
from classify.provenance import Facts
from classify.report.tables import contrast_rows, images_of
from classify.report.verdict import MODELS, OF_SOME, answer, largest_budget, outcome, verdict
from data.config import change_config
from data.errors import UserError

MAE = {"name": "MAE, fine-tuned", "pretraining": ["mae"]}
PROBE = {"name": "MAE, probe", "pretraining": ["mae"], "set": {"finetune.mode": "linear"}}
RANDOM_PROBE = {"name": "Random probe", "set": {"finetune.mode": "linear"}}
VIT = {"name": "Random ViT"}
RESNET = {"name": "ResNet-18", "set": {"finetune.model": "resnet18"}}
PLAIN = {"finetune.augment.enabled": False}


def pairs(place, rows, **compare) -> list[tuple[str, str]]:
    settings = {"rows": rows, "pretrainings": {"mae": {}, "long": {"pretrain.epochs": 7}}} | compare
    config = tiny_config(place, compare=settings)
    return [(each.a, each.b) for each in declared(config, candidates(expand_grid(config)))]


# ---------------------------------------------------------------- chosen from the settings


def test_pretrained_meets_the_same_from_random_weights_and_every_row_the_baseline(place):
    found = pairs(place, [PROBE, RANDOM_PROBE, MAE, VIT, RESNET])
    assert found == [
        ("MAE, fine-tuned", "Random ViT"),
        ("MAE, probe", "Random probe"),
        ("MAE, probe", "ResNet-18"),
        ("Random probe", "ResNet-18"),
        ("MAE, fine-tuned", "ResNet-18"),
        ("Random ViT", "ResNet-18"),
    ]


def test_augmented_meets_augmented(place):
    rows = [
        MAE,
        {"name": "MAE, plain", "pretraining": ["mae"], "set": PLAIN},
        {"name": "ViT, plain", "set": PLAIN},
        VIT,
        {"name": "ResNet, plain", "set": PLAIN | {"finetune.model": "resnet18"}},
        RESNET,
    ]
    assert set(pairs(place, rows)) == {
        ("MAE, fine-tuned", "Random ViT"),
        ("MAE, plain", "ViT, plain"),
        ("MAE, fine-tuned", "ResNet-18"),
        ("MAE, plain", "ResNet, plain"),
        ("ViT, plain", "ResNet, plain"),
        ("Random ViT", "ResNet-18"),
        ("ResNet, plain", "ResNet-18"),
    }


def test_no_pair_stands_twice_and_no_row_against_itself(place):
    rows = [MAE, VIT, PROBE, RANDOM_PROBE, RESNET]
    for order in itertools.islice(itertools.permutations(rows), 0, None, 17):
        for baseline in (None, *(row["name"] for row in rows)):
            found = pairs(place, list(order), baseline=baseline)
            assert len({frozenset(pair) for pair in found}) == len(found)
            assert all(a != b for a, b in found)
            reached = {name for pair in found for name in pair}
            assert reached == {row["name"] for row in rows}


def test_a_network_of_another_size_is_no_twin(place):
    small = {"name": "Small ViT", "set": {"model.depth": 1}}
    assert pairs(place, [MAE, small, RESNET]) == [("MAE, fine-tuned", "ResNet-18"), ("Small ViT", "ResNet-18")]


def test_another_decoder_makes_no_other_network(place):
    rows = [{"name": "Cross", "pretraining": ["cross"]}, VIT]
    assert pairs(place, rows, pretrainings={"cross": {"model.decoder": "cross"}}) == [("Cross", "Random ViT")]


def test_one_row_is_compared_with_nothing(place):
    assert pairs(place, [VIT]) == []


def test_no_result_is_needed(place):
    """The contrasts are known before there is a run."""
    assert not (place / "mae").exists()
    assert pairs(place, [MAE, VIT])
    assert not (place / "mae").exists()


def test_rows_of_files_meet_the_baseline_and_ensembles_are_tested_where_declared(place):
    rows = [VIT, RESNET, {"name": "Reader", "predictions": "reader.csv"}]
    config = tiny_config(place, compare={"rows": rows, "ensembles": True, "seeds": [0, 1]})
    cells = list(expand_grid(config))
    known = candidates(cells, extra_names(config, cells))
    assert [(each.a, each.b) for each in declared(config, known)] == [
        ("Random ViT", "ResNet-18"),
        ("Reader", "ResNet-18"),
    ]

    ensemble = ensemble_name("ResNet-18", len(config.compare.seeds))
    config = change_config(config, {"compare.contrasts": [[ensemble, "Reader"]]})
    assert [(each.a, each.b) for each in declared(config, known)] == [(ensemble, "Reader")]


# ---------------------------------------------------------------- declared


def test_declared_contrasts_stand_as_they_are(place):
    rows = [MAE, VIT, RESNET]
    given = [["ResNet-18", "MAE, fine-tuned"], {"a": "Random ViT", "b": "ResNet-18", "margin": 0.02}]
    assert pairs(place, rows, contrasts=given) == [("ResNet-18", "MAE, fine-tuned"), ("Random ViT", "ResNet-18")]
    assert pairs(place, rows, contrasts=[]) == []


FEW = {"name": "Few", "labelled": ["all"], "pretraining": ["mae"]}


@pytest.mark.parametrize("name", ["Few", "Few/mae", "Few, ensemble of 3"])
def test_contrasts_with_rows_that_are_left_out_this_time_are_left_out_too(place, name):
    rows = [MAE, FEW, VIT, RESNET]
    given = {
        "rows": rows,
        "contrasts": [[name, "Random ViT"], ["MAE, fine-tuned", "ResNet-18"]],
        "ensembles": True,
        "seeds": [0, 1, 2],
        "pretrainings": {"mae": {}},
    }
    config = tiny_config(place, compare=given)
    fewer = change_config(config, {"compare.labelled": [7]})
    line = f"compare.contrasts: {name} against Random ViT: left out, as {name} is"
    for each, left in ((config, []), (fewer, [line])):
        cells = list(expand_grid(each))
        known = candidates(cells, extra_names(each, cells))
        assert untested(each, known) == left
        assert len(declared(each, known)) == 2 - len(left)
    wrong = change_config(fewer, {"compare.contrasts": [["Fewer", "Random ViT"]]})
    with pytest.raises(UserError, match="found 'Fewer', expected a row's name"):
        declared(wrong, candidates(expand_grid(wrong)))


def test_a_baseline_that_is_left_out_this_time_is_not_tested_against(place):
    settings = {"rows": [MAE, VIT, RESNET, FEW], "pretrainings": {"mae": {}}, "baseline": "Few"}
    config = tiny_config(place, compare=settings | {"labelled": [7]})
    known = candidates(expand_grid(config))
    assert [(each.a, each.b) for each in declared(config, known)] == [("MAE, fine-tuned", "Random ViT")]
    assert untested(config, known) == ["compare.baseline: Few: left out, so nothing is tested against it"]


def test_a_row_of_one_pretraining_may_be_called_by_both_names(place):
    assert pairs(place, [MAE, VIT], contrasts=[["MAE, fine-tuned/mae", "Random ViT"]]) == [
        ("MAE, fine-tuned", "Random ViT")
    ]


def test_who_is_pretrained_is_known_in_either_order(place):
    rows = {"rows": [MAE, VIT, RESNET], "pretrainings": {"mae": {}}}
    for given in (["MAE, fine-tuned", "Random ViT"], ["Random ViT", "MAE, fine-tuned"]):
        config = tiny_config(place, compare=rows | {"contrasts": [given]})
        [found] = declared(config, candidates(expand_grid(config)))
        assert found.pretrained == "MAE, fine-tuned"
    config = tiny_config(place, compare=rows | {"contrasts": [["MAE, fine-tuned", "ResNet-18"]]})
    assert declared(config, candidates(expand_grid(config)))[0].pretrained is None

    # another network is no answer to it
    rows["pretrainings"] = {"mae": {"model.embed": "conv"}}
    config = tiny_config(place, compare=rows | {"contrasts": [["MAE, fine-tuned", "Random ViT"]]})
    assert declared(config, candidates(expand_grid(config)))[0].pretrained is None


@pytest.mark.parametrize(
    ("contrasts", "message"),
    [
        ([["MAE fine-tuned", "Random ViT"]], "compare.contrasts.0.a: found 'MAE fine-tuned', expected a row's name: "),
        ([["MAE, fine-tuned", "Random Vit"]], "did you mean Random ViT?"),
        ([["Random ViT", "Random ViT"]], "compare.contrasts.0: found 'Random ViT' against itself, expected two rows"),
        (
            [["Random ViT", "ResNet-18"], ["ResNet-18", "Random ViT"]],
            "compare.contrasts.1: found 'ResNet-18' and 'Random ViT' once more, expected each pair once",
        ),
        ([["Random ViT"]], 'compare.contrasts.0: found ["Random ViT"], expected two rows: [a, b]'),
        (
            [["Random ViT", "ResNet-18", "MAE"]],
            'compare.contrasts.0: found ["Random ViT", "ResNet-18", "MAE"], expected two rows',
        ),
        ([{"a": "Random ViT", "b": "ResNet-18", "margin": 0}], "compare.contrasts.0.margin"),
        ([{"a": "Random ViT", "b": "ResNet-18", "margins": 0.1}], "compare.contrasts.0.margins is unknown"),
        ([{"a": "Random ViT"}], "compare.contrasts.0.b"),
        ("Random ViT", "compare.contrasts"),
        (
            ["Random ViT", "ResNet-18"],
            'compare.contrasts.0: found "Random ViT", expected two rows: contrasts are pairs',
        ),
    ],
)
def test_a_mistake_is_one_line(place, contrasts, message):
    with pytest.raises(UserError) as caught:
        pairs(place, [MAE, VIT, RESNET], contrasts=contrasts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_different_budgets_are_not_compared(place):
    rows = [MAE, {"name": "B", "set": {"finetune.sample": 11}}, RESNET]
    assert ("MAE, fine-tuned", "B") not in pairs(place, rows, labelled=[7])
    with pytest.raises(UserError, match="share no label budget"):
        pairs(place, rows, labelled=[7], contrasts=[["MAE, fine-tuned", "B"]])


# ---------------------------------------------------------------- what is said


def line(name: str, auc_shift: float, seeds: int, labelled=None, failed=(), n=120, same_seeds=False) -> Line:
    """A row of random logits; its classes lie `auc_shift` apart."""
    labels = np.arange(n) % 2
    evaluations = []
    for seed in range(seeds):
        rng = np.random.default_rng([len(name), 0 if same_seeds else seed])
        logits = rng.normal(0, 1, n) + auc_shift * labels
        table = {"label": labels, "logit": logits, "score": 1 / (1 + np.exp(-logits)), "patient_id": np.arange(n) // 2}
        config = SimpleNamespace(evaluate=SimpleNamespace(level=0.95))
        summary = {"meta": {"train_images": labelled or 100}, "origin": {}}
        evaluations.append(
            SimpleNamespace(predictions=pd.DataFrame(table), threshold=0.5, config=config, summary=summary)
        )
    return Line({"Model": name}, labelled, tuple(evaluations), failed)


def compared(place, lines, contrasts, failed_rows=()) -> Comparison:
    config = tiny_config(place, compare__contrasts=[])
    return Comparison(config, place, Facts("m", "s"), tuple(lines), tuple(failed_rows), tuple(contrasts))


def test_one_seed_speaks_of_models_and_several_of_methods(place):
    contrast = Declared("A", "BB", pretrained="A")
    one = compared(place, [line("A", 2, 1), line("BB", 0, 1)], [contrast])
    several = compared(place, [line("A", 2, 3), line("BB", 0, 3)], [contrast])
    mixed = compared(place, [line("A", 2, 3), line("BB", 0, 1)], [contrast])
    for of_models in (one, mixed):
        assert MODELS in verdict(of_models, None)
        assert (
            "for these two trained models (a single training says nothing about the methods)"
            in answer(of_models).sentences[0]
        )
    assert MODELS not in verdict(several, None)
    assert "for the methods as trained here (3 seeds)" in answer(several).sentences[0]

    shared = {
        "rows": [{"name": "A", "pretraining": ["p"]}, {"name": "BB"}],
        "seeds": [0, 1, 2],
        "pretraining_seeds": [5],
    }
    settings = {f"compare__{name}": value for name, value in shared.items()}
    config = tiny_config(place, compare__pretrainings={"p": {}}, **settings)
    assert "(3 seeds, 1 of pretraining)" in answer(replace(several, config=config)).sentences[0]

    others = [line("A/small", 2, 3), line("BB", 0, 3)]  # A/small is a row of random weights with such a name
    shared["rows"] = [{"name": "A", "pretraining": ["p"]}, {"name": "A/small"}, {"name": "BB"}]
    settings = {f"compare__{name}": value for name, value in shared.items()}
    config = tiny_config(place, compare__pretrainings={"p": {}}, **settings)
    random = replace(compared(place, others, [Declared("A/small", "BB")]), config=config)
    assert "(3 seeds)" in answer(random).sentences[0]


def test_contrasts_of_several_seeds_are_not_told_to_speak_of_models(place):
    """An ensemble, one model of its kind, stands beside rows of three seeds."""
    lines = [line("A", 2, 3), line("BB", 0, 3), line("A, ensemble of 3", 2, 1)]
    said = verdict(compared(place, lines, [Declared("A", "BB"), Declared("A, ensemble of 3", "BB")]), None)
    assert MODELS not in said
    assert f'{OF_SOME}: "A, ensemble of 3" against "BB".' in said


def test_the_answer_is_yes_only_where_the_test_says_so(place):
    contrast = Declared("A", "BB", pretrained="A")
    better = answer(compared(place, [line("A", 2, 3), line("BB", 0, 3)], [contrast]))
    worse = answer(compared(place, [line("A", 0, 3), line("BB", 2, 3)], [contrast]))
    alike = answer(compared(place, [line("A", 1, 3), line("BB", 1, 3)], [contrast]))
    assert better.question == worse.question == alike.question == "Does pretraining help?"
    assert better.sentences[0].startswith("Yes, ")
    assert worse.sentences[0].startswith("No, it harms, ")
    assert alike.sentences[0].startswith("Not shown, ")
    assert re.fullmatch(r"\+\.\d{3} \[\+\.\d{3}, \+\.\d{3}\]", better.effect)
    assert better.effect in better.sentences[0]


def test_a_contrast_the_other_way_round_gives_the_same_answer(place):
    lines = [line("A", 2, 3), line("BB", 0, 3)]
    there = answer(compared(place, lines, [Declared("A", "BB", pretrained="A")]))
    back = answer(compared(place, lines, [Declared("BB", "A", pretrained="A")]))
    assert there.sentences == back.sentences
    assert there.effect == back.effect


def test_better_still_only_where_its_contrast_says_so(place):
    lines = [line(*row, n=400) for row in (("A", 1.5, 3), ("BB", 0, 3), ("CCC", 4, 3), ("DDDD", 1.5, 3))]
    pretraining = Declared("A", "BB", pretrained="A")
    said = answer(compared(place, lines, [pretraining, Declared("A", "CCC"), Declared("A", "DDDD")])).sentences[1]
    assert re.search(r"CCC is better still: \.9\d\d", said)
    assert "A and DDDD" in said and "are not told apart" in said
    untested = answer(compared(place, lines, [pretraining]))
    assert len(untested.sentences) == 1
    assert "CCC" not in untested.sentences[0]


def test_no_row_is_named_that_no_contrast_names(place):
    lines = [line("A", 2, 2), line("BB", 0, 2), line("CCC", 4, 2)]
    comparison = compared(place, lines, [Declared("A", "BB")])
    said = verdict(comparison, None) + " ".join(answer(comparison).sentences)
    assert "CCC" not in said
    assert "ighest" not in said and "best" not in said


def test_one_row_and_no_contrast_say_that_nothing_is_tested(place):
    for lines in ([line("A", 2, 2)], [line("A", 2, 2), line("BB", 0, 2)]):
        comparison = compared(place, lines, [])
        assert verdict(comparison, None) == ""
        assert comparison.contrasts == ()
        assert answer(comparison).sentences[0].startswith("No row is tested against another here. A: AUC ")
        assert answer(comparison).effect is None


def test_equal_scores_are_not_told_apart(place):
    [a] = [line("AA", 1, 2)]
    b = Line({"Model": "BB"}, None, a.evaluations)
    comparison = compared(place, [a, b], [Declared("AA", "BB")])
    [contrast] = comparison.contrasts
    assert contrast.auc.estimate == 0
    assert contrast.p_holm == 1
    assert 'not told apart: "AA"' in verdict(comparison, None)


def test_a_split_of_one_class_is_not_computed(place):
    lines = [line("A", 1, 2), line("BB", 0, 2)]
    for each in lines:
        for evaluation in each.evaluations:
            evaluation.predictions["label"] = 1
    comparison = compared(place, lines, [Declared("A", "BB", margin=0.1, pretrained="A")])
    assert "Not computed: " in verdict(comparison, None)
    assert answer(comparison).sentences[0].startswith("Not computed: ")
    assert [row["p"] for row in contrast_rows(comparison, None)] == ["–"]


def test_models_that_make_no_mistake_have_an_interval_and_a_note(place):
    comparison = compared(place, [line("A", 90, 1), line("BB", 90, 1)], [Declared("A", "BB")])
    [contrast] = comparison.contrasts
    low, high = contrast.auc.interval
    assert low < 0 < high
    assert f'"A" against "BB": {contrast.auc.note}.' in verdict(comparison, None)


def test_a_failed_row_is_named_and_still_counts_among_the_tests(place):
    lines = [line("A", 2, 2), line("BB", 0, 2), line("CCC", 0, 1, failed=("ccc-seed1: out of memory",))]
    gone = FailedRow({"Model": "DDDD"}, None, ("dddd-seed0: diverged",))
    contrasts = [Declared("A", "BB"), Declared("A", "CCC"), Declared("A", "DDDD")]
    comparison = compared(place, lines, contrasts, [gone])
    [computed, lacking, failed] = comparison.contrasts
    assert comparison.tests == 3
    assert computed.p_holm == pytest.approx(min(1, 3 * computed.auc.p_value))
    assert not lacking.differences and not failed.differences
    said = verdict(comparison, None)
    assert 'Not computed: "A" against "CCC" (not every training of "CCC" finished).' in said
    assert 'Not computed: "A" against "DDDD" (not every training of "DDDD" finished).' in said
    assert [row["AUC difference"] for row in contrast_rows(comparison, None)][1:] == ["not computed"] * 2


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_ensemble_that_lacks_a_seed_still_counts_among_the_tests(place, lost):
    gone = tuple(f"a-seed{seed}: diverged" for seed in range(lost))
    lines, failed = [line("BB", 0, 3)], [FailedRow({"Model": "A"}, None, gone)]
    if lost < 3:
        lines, failed = [line("A", 2, 3 - lost, failed=gone), *lines], []
    contrasts = [Declared("BB", "A, ensemble of 3", margin=0.05), Declared("A, ensemble of 3", "A")]
    comparison = compared(place, lines, contrasts, failed)
    assert comparison.tests == 3
    [against, own] = comparison.contrasts
    assert against.why_not == 'not every training of "A, ensemble of 3" finished'
    assert own.why_not == 'not every training of "A, ensemble of 3" and "A" finished'
    assert compared(place, [line("A", 2, 3), line("BB", 0, 3)], contrasts).contrasts == ()  # at no budget of its own


def test_a_file_counts_at_a_budget_of_which_no_training_finished(place):
    files = [{"name": "Reader", "predictions": "a.csv"}, {"name": "Other", "predictions": "b.csv"}]
    contrasts = [Declared("A", "Reader"), Declared("Reader", "Other")]
    gone = FailedRow({"Model": "A"}, 7, ("a-seed0: diverged",))
    comparison = compared(place, [line(name, 1, 1) for name in ("A", "Reader", "Other")], contrasts, [gone])
    comparison = replace(comparison, config=tiny_config(place, compare__rows=[{"name": "A"}, *files]))
    found = [(each.a, each.b, each.labelled, each.why_not) for each in comparison.contrasts]
    assert found == [
        ("A", "Reader", None, ""),
        ("Reader", "Other", None, ""),
        ("A", "Reader", 7, 'not every training of "A" finished'),
    ]


def test_an_ensembles_draws_are_no_label_budget(place):
    few = [line("A", 1, 3, labelled=20), line("A, ensemble of 3", 1, 1, labelled=20)]
    few[1].evaluations[0].summary.update({"meta": {"train_images": 57}, "ensemble": ["a-seed0", "a-seed1", "a-seed2"]})
    comparison = compared(place, [*few, line("A", 1, 3, labelled=31)], [])
    assert largest_budget(comparison) == 31
    assert [images_of(comparison, labelled) for labelled in (20, 31)] == ["20", "31"]


def test_holm_is_over_all_budgets_and_margins(place):
    lines = [line(name, shift, 2, labelled) for labelled in (30, None) for name, shift in (("A", 1.0), ("BB", 0.6))]
    comparison = compared(place, lines, [Declared("A", "BB", margin=0.05)])
    assert comparison.tests == 4
    found = []
    for contrast in comparison.contrasts:
        found += [(contrast.auc.p_value, contrast.p_holm), (contrast.p_margin, contrast.p_margin_holm)]
    smallest = min(found)
    assert smallest[1] == pytest.approx(min(1, 4 * smallest[0]))
    assert all(holm >= p for p, holm in found)


def test_non_inferiority_is_said_only_where_it_is_shown(place):
    lines = [line("A", 1.5, 2, n=600), line("BB", 1.5, 2, n=600), line("CCC", 4, 2, n=600)]
    comparison = compared(place, lines, [Declared("A", "BB", margin=0.4), Declared("A", "CCC", margin=0.01)])
    said = verdict(comparison, None)
    assert 'The AUC of "A" is less than .400 below that of "BB" (non-inferior, Holm p' in said
    assert 'Not shown: the AUC of "A" is less than .010 below that of "CCC".' in said


def test_non_inferiority_goes_with_the_interval(place):
    lines = [line("A", 1.5, 2, n=600), line("BB", 1.5, 2, n=600)]
    [low] = {contrast.auc.interval[0] for contrast in compared(place, lines, [Declared("A", "BB")]).contrasts}
    for share, shown in ((0.98, False), (1.02, True)):
        comparison = compared(place, lines, [Declared("A", "BB", margin=-low * share)])
        [contrast] = comparison.contrasts
        alone = replace(contrast, p_margin_holm=contrast.p_margin)  # as if it were the only test
        comparison.__dict__["contrasts"] = (alone,)
        assert ("(non-inferior" in str(verdict(comparison, None))) is shown


def test_no_interval_is_no_outcome(place):
    contrast = Contrast(Declared("A", "BB"), None, why_not="its difference has no interval")
    comparison = compared(place, [line("A", 1, 1), line("BB", 1, 1)], [])
    assert outcome(comparison, contrast) == "not computed"
    assert math.isnan(contrast.p_holm)
