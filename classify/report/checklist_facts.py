"""What a comparison knows of the items of reporting guidelines: a text for each name in checklist.yaml, or None.

A text says what was done here, or says that it was not. If only the author can know, it is None, and the item stays
open. Texts are parts of a sentence, without the full stop.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from classify.comparison import Comparison
from classify.evaluate import Evaluation
from classify.models.build import build_model, stem_of
from classify.models.classifier import Classifier
from classify.report.numbers import show, show_number, show_share, show_threshold
from classify.report.tables import (
    case_count,
    given_thresholds,
    images_of,
    independent,
    independent_ones,
    summary_of_all,
    task,
)
from classify.report.verdict import answer, largest_budget
from classify.settings import ClassifyConfig
from classify.subgroups import LEAST, columns_of, computed_groups
from data.characteristics import UNKNOWN
from data.labels import words
from data.privacy import may_show
from data.settings import height_and_width
from mae.cost import without_values
from mae.engine.run import flat

KNOWN_SOURCES = {  # published data sets; whose images a folder or a table holds is not known here
    "mimic-cxr-jpg": "MIMIC-CXR-JPG (Beth Israel Deaconess Medical Center, PhysioNet)",
    "mimic-cxr-dicom": "MIMIC-CXR (Beth Israel Deaconess Medical Center, PhysioNet)",
    "chexpert": "CheXpert (Stanford Hospital)",
    "nih-cxr14": "ChestX-ray14 (NIH Clinical Center)",
    "phantom": "the phantom of this software: synthetic radiographs without patients",
}
OF_DICOM = ("mimic-cxr-dicom", "table", "folder", "images")  # layouts that may contain DICOM files
FITTED = {"pad": "scaled without distortion and padded", "squash": "squashed", "crop": "cropped at the centre"}
SELECTED = {"auc": "the highest AUC", "loss": "the lowest loss"}
RULES = {
    "youden": "chosen on validation by Youden's index",
    "accuracy": "chosen on validation by accuracy",
    "f1": "chosen on validation by F1",
    "half": "fixed at 0.5",
}


def checklist_facts(comparison: Comparison) -> dict[str, str | None]:
    """A text for every name in checklist.yaml; None where it is not known here."""
    return {name: make(comparison) for name, make in FACTS.items()}


def listed(parts: Iterable[str]) -> str:
    """`a, b and c`, each once."""
    once = list(dict.fromkeys(parts))
    if len(once) < 2:
        return "".join(once)
    return f"{', '.join(once[:-1])} and {once[-1]}"


def epochs(count: int) -> str:
    """`1 epoch`, `50 epochs`."""
    return f"{count:,} epoch" if count == 1 else f"{count:,} epochs"


def trained_rows(comparison: Comparison) -> Iterator[tuple[str, Evaluation]]:
    """Name and first run of each row that was trained here, at the largest label budget."""
    for line in comparison.lines_of(largest_budget(comparison)):
        evaluation = line.evaluations[0]
        if evaluation.is_trained:
            yield line.name, evaluation


def _same_or_by_row(comparison: Comparison, say: Callable[[Evaluation], str]) -> str:
    """One text if it holds for all trained rows, else each text with its rows."""
    rows = {name: say(evaluation) for name, evaluation in trained_rows(comparison)}
    texts = list(dict.fromkeys(rows.values()))
    if len(texts) == 1:
        return texts[0]
    return "; ".join(f"{text} ({listed(n for n, t in rows.items() if t == text)})" for text in texts)


# ---------------------------------------------------------------- the question


def _models(comparison: Comparison) -> str:
    return listed(line.name for line in comparison.lines)


def _question(comparison: Comparison) -> str:
    return answer(comparison).question


def _contrasts(comparison: Comparison) -> str:
    pairs = [f"{declared.a} against {declared.b}" for declared in comparison.declared]
    return "; ".join(pairs) or "none"


def _task(comparison: Comparison) -> str:
    return task(comparison.config.data.target)


def _margins(comparison: Comparison) -> str:
    with_margin = [declared for declared in comparison.declared if declared.margin is not None]
    if not with_margin:
        return "superiority is tested; no margin of non-inferiority was declared"
    pairs = [f"{each.a} against {each.b} by {show_number(each.margin)}" for each in with_margin]
    return f"non-inferiority, margins of AUC: {'; '.join(pairs)}"


# ---------------------------------------------------------------- data


def _source(comparison: Comparison) -> str | None:
    kinds = {name: settings.source for name, settings in comparison.config.data.each_source().items()}
    if not kinds.keys() or any(kind not in KNOWN_SOURCES for kind in kinds.values()):
        return None
    named = [KNOWN_SOURCES[kind] for kind in kinds.values()]
    return "; ".join(dict.fromkeys(named))


def _left_out(comparison: Comparison) -> str:
    parts = [f"{each['reason']} ({each['images']:,})" for each in comparison.facts.left_out]
    if comparison.facts.unreadable:
        parts.append(f"cannot be read ({comparison.facts.unreadable:,})")
    unknown = sum(split["unknown"] for split in comparison.facts.splits)
    if unknown:
        parts.append(f"label unknown ({unknown:,}, left out of classifiers and evaluation only)")
    return "; ".join(parts) or "none"


def _preprocessing(comparison: Comparison) -> str:
    data = comparison.config.data
    height, width = height_and_width(data.image_size)
    text = f"Decoded to 8-bit grey, {FITTED[data.resize]} to {height} × {width} pixels"
    if any(part.source in OF_DICOM for part in data.each_source().values()):
        tones = {"window": "the VOI window", "mimic_jpg": "min-max and histogram equalisation, as MIMIC-CXR-JPG"}
        text += f"; grey levels of any DICOM files by {tones[data.tone]}"

    def standardised(evaluation: Evaluation) -> str:
        model = evaluation.config.model
        return (
            f"standardised by mean {_level(model.pixel_mean)} and standard deviation {_level(model.pixel_std)} of the "
            "grey range"
        )

    return f"{text}; {_same_or_by_row(comparison, standardised)}"


def _level(value: float | tuple[float, ...]) -> str:
    return f"{value:g}" if isinstance(value, float) else listed(f"{each:g}" for each in value)


def _input(comparison: Comparison) -> str:
    height, width = height_and_width(comparison.config.data.image_size)
    channels = {evaluation.config.model.in_channels for _, evaluation in trained_rows(comparison)}
    grey = "one channel" if channels == {1} else "three equal channels" if channels == {3} else "one or three channels"
    return f"one grey radiograph of {height} × {width} pixels in {grey}"


def _subsets(comparison: Comparison) -> str:
    config = comparison.config
    texts = []
    if config.data.sample is not None:
        texts.append(f"whole patients drawn until {config.data.sample:,} labelled training images were reached")

    # what each row is trained on
    budgets = [labelled for labelled in comparison.budgets if labelled is not None]
    if budgets:
        counts = listed(f"{labelled:,}" for labelled in budgets)
        seeds = "each training seed has its own draw" if len(config.compare.seeds) > 1 else "one draw each"
        texts.append(f"label budgets of {counts} images: whole patients at random, smaller within larger; {seeds}")
    if None in comparison.budgets:
        texts.append(f"all labelled training images ({images_of(comparison, None)})")

    views = config.data.views
    if views and any(each["column"] == "view" for each in comparison.facts.people):
        texts.append(f"views {', '.join(views)}")
    return "; ".join(texts)


def _privacy(comparison: Comparison) -> str:
    credentialed = comparison.credentialed
    if not credentialed and not may_show(False, comparison.config.report.images):
        return "No radiograph is shown here, because report.images is false"
    if not credentialed:
        return "The settings treat the data as open, so nothing is withheld here"
    if may_show(True, comparison.config.report.images):
        return f"{listed(credentialed)}: credentialed; report.images allows this report to show radiographs"
    return f"{listed(credentialed)}: credentialed; this report shows no radiograph and no id"


def _missing(comparison: Comparison) -> str:
    facts = comparison.facts

    # labels
    unknown = sum(split["unknown"] for split in facts.splits)
    texts = ["No label is unknown"]
    if unknown:
        total = sum(split["images"] for split in facts.splits)
        texts = [f"{unknown:,} of {total:,} images have an unknown label, which is not imputed"]
        texts.append("classifiers are neither trained nor tested on them")
        if comparison.pretrainings:
            texts.append("pretraining reads no labels, so it uses those in its splits")

    # files, and what is known of patients
    if facts.unreadable:
        texts.append(f"{facts.unreadable:,} files cannot be read and are left out")
    blank = [each for each in facts.people if each["value"] == UNKNOWN]
    if blank:
        texts.append(f"{listed(each['column'] for each in blank)}: unknown values form a group of their own")
    return "; ".join(texts)


def _reference(comparison: Comparison) -> str | None:
    policy = comparison.facts.label_policy
    if not policy:
        return None
    rules = [f"{row['rule']}, {row['became']} ({row['images']:,})" for row in policy]
    parts = comparison.config.data.each_source().values()
    labelers = [part.labeler for part in parts if part.source.startswith("mimic")]
    by = f"Read from reports by an automatic labeler ({listed(labelers)}). " if labelers else ""
    return f"{by}By rule: {'; '.join(rules)}"


def _partitions(comparison: Comparison) -> str:
    counts = [f"{row['split']} {_of_patients(comparison, row)}" for row in comparison.facts.splits]
    drawn = [note for note in comparison.facts.notes if "split is given: drawn" in note]
    how = "; ".join(drawn) or "all splits as the source gives them"
    return f"{', '.join(counts)}; {how}"


def _of_patients(comparison: Comparison, row: Mapping[str, Any]) -> str:
    if comparison.facts.patients_known:
        return f"{row['images']:,} images of {row['patients']:,} patients"
    return f"{row['images']:,} images"


def _disjoint(comparison: Comparison) -> str:
    if comparison.facts.patients_known:
        return "By patient: data with a patient in two splits are refused"
    return "By patient where one is named, else by study or image, so one patient may be in two splits"


def _sizes(comparison: Comparison) -> str:
    labels = comparison.lines[0].labels
    positive = words(comparison.config.data.target)[1]
    trained = listed(images_of(comparison, labelled) for labelled in comparison.budgets)
    return (
        f"trained on {trained} labelled images; evaluated: {case_count(summary_of_all(comparison))}, "
        f"{int(labels.sum()):,} of them {positive}"
    )


def _flow(comparison: Comparison) -> str:
    negative, positive = words(comparison.config.data.target)
    rows = []
    for row in comparison.facts.splits:
        classes = f"{negative} {row['normal']:,}, {positive} {row['abnormal']:,}, unknown {row['unknown']:,}"
        rows.append(f"{row['split']}: {_of_patients(comparison, row)} ({classes})")
    return f"Left out: {_left_out(comparison)}. Included: {'; '.join(rows)}"


def _demographics(comparison: Comparison) -> str | None:
    columns = {str(row["column"]) for row in comparison.facts.people}
    if not columns & {"sex", "age"}:
        return None
    lacking = [name for name in ("sex", "age") if name not in columns]
    text = f"By split: {listed(sorted(columns))}"
    return f"{text}; {lacking[0]} is not known" if lacking else text


# ---------------------------------------------------------------- models


def _architecture(comparison: Comparison) -> str:
    return _same_or_by_row(comparison, lambda evaluation: network(evaluation.config))


def network(config: ClassifyConfig) -> str:
    """`Vision Transformer of 12 blocks, width 192, 3 heads, patches of 16 pixels, …; 5,500,000 parameters`."""
    text, parameters = _counted(config.model_copy(update={"run": "", "seed": 0}).model_dump_json())
    kind = config.finetune
    head = "one linear layer" if kind.mode == "full" else "batch norm and one linear layer on frozen features"
    return f"{text}, then {head}; {parameters:,} parameters"


@cache
def _counted(settings: str) -> tuple[str, int]:
    """A network's description and number of parameters; no memory is allocated for them."""
    config = ClassifyConfig.model_validate_json(settings)
    with without_values():
        model = build_model(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    if not isinstance(model, Classifier):
        name = config.finetune.model.replace("resnet", "ResNet-")
        stem = {"small": "3 × 3", "imagenet": "7 × 7"}[stem_of(config.finetune, config.data.image_size)]
        return f"{name} with a stem of {stem}", parameters

    encoder = model.encoder
    pool = {"mean": "mean of the patch tokens", "cls": "class token"}[config.finetune.pool]
    sizes = f"{len(encoder.blocks)} blocks, width {encoder.width}, patches of {encoder.patch_size} pixels"
    return f"Vision Transformer of {sizes}, {pool}", parameters


def _software(comparison: Comparison) -> str | None:
    versions = [f"{name} {version}" for name, version in comparison.facts.software.items()]
    return ", ".join(versions) or None


def _initial(comparison: Comparison) -> str:
    return _same_or_by_row(comparison, lambda evaluation: _begins_from(comparison, evaluation))


def _begins_from(comparison: Comparison, evaluation: Evaluation) -> str:
    begun_from = evaluation.summary["meta"].get("pretrained_from")
    if not begun_from:
        return "random weights, drawn with the training seed"
    name = Path(begun_from).parent.name
    if name in comparison.pretrainings:
        return f"encoder of {name}"
    return "weights of another training"


def _training(comparison: Comparison) -> str:
    def schedule(evaluation: Evaluation) -> str:
        settings = evaluation.config.finetune
        how = "training all weights" if settings.mode == "full" else "a linear probe on a frozen encoder"
        augment = "with augmentation" if settings.augment.enabled else "without augmentation"
        return f"{epochs(settings.epochs)} of {how}, batches of {settings.batch_size}, {augment}"

    count = sum(each.is_trained for each in comparison.evaluations)
    seeds = len(comparison.config.compare.seeds)
    trained = f"{count} classifiers, {seeds} {'seed' if seeds == 1 else 'seeds'} per row"
    stage_one = [
        f"{name}: {epochs(config.pretrain.epochs)}, {100 * config.pretrain.mask_ratio:g} % masked"
        for name, config in comparison.pretrain_configs.items()
    ]
    pretrained = f"; pretrainings: {'; '.join(stage_one)}" if stage_one else ""
    tuned = sorted({key for choice in comparison.tuning for setting in choice["settings"] for key in flat(setting)})
    tuning = f"; {listed(tuned)} chosen on validation for each row" if tuned else ""
    return (
        f"AdamW, cosine schedule after a linear warm-up; {_same_or_by_row(comparison, schedule)}; "
        f"{trained}{pretrained}{tuning}"
    )


def _selection(comparison: Comparison) -> str:
    def rule(evaluation: Evaluation) -> str:
        return f"The epoch with {SELECTED[evaluation.config.finetune.select]} on validation images"

    best = ""
    if comparison.pretrain_configs:
        by = {"reconstruction": "the loss on validation images", "probe": "a probe on labelled validation images"}
        selected = {by[config.pretrain.select] for config in comparison.pretrain_configs.values()}
        best = f"; of a pretraining, the best by {listed(sorted(selected))}"
    return f"{_same_or_by_row(comparison, rule)}{best}; no test label is used"


def _ensembles(comparison: Comparison) -> str:
    names = [line.name for line in comparison.lines if line.is_ensemble]
    if names:
        return f"{listed(names)}: the mean of the seeds' calibrated probabilities"
    return "No models were combined"


def _thresholds(comparison: Comparison) -> str:
    lines = comparison.lines_of(largest_budget(comparison))
    rows = []
    for line in lines:
        rows.append(f"{line.name} {', '.join(show_threshold(threshold) for threshold in line.thresholds)}")

    # where no trained row's is chosen, a fixed one is no exception
    kinds = {evaluation.config.finetune.threshold for _, evaluation in trained_rows(comparison)}
    rules = {RULES[kind] for kind in kinds - {"half"} or kinds}
    given = given_thresholds([line for line in lines if kinds != {"half"} or "file" in line.evaluations[0].summary])
    but = f", except for {'; '.join(given)}" if given else ""
    return f"threshold {listed(sorted(rules))}{but} ({'; '.join(rows)})"


def _calibration(comparison: Comparison) -> str | None:
    rows = []
    for line in comparison.lines_of(largest_budget(comparison)):
        found = line.evaluations[0].summary.get("calibration")
        if found:
            rows.append(f"{line.name} {found['temperature']:.2f} and {found['intercept']:+.2f}")
    if not rows:
        return None
    return f"Temperature and intercept fitted on validation images, decisions unchanged (first seed: {'; '.join(rows)})"


def _imbalance(comparison: Comparison) -> str:
    positive = words(comparison.config.data.target)[1]
    shares = []
    for row in comparison.facts.splits:
        known = row["normal"] + row["abnormal"]
        if known:
            shares.append(f"{row['split']} {show_share(row['abnormal'] / known)}")
    return f"Neither resampled nor weighted; {positive}: {', '.join(shares)}"


# ---------------------------------------------------------------- evaluation


def _metrics(comparison: Comparison) -> str:
    return "AUC; accuracy, precision, F1 and recall at the decision threshold; calibration"


def _statistics(comparison: Comparison) -> str:
    config = comparison.config
    text = (
        f"{100 * config.evaluate.level:g} % intervals clustered by {independent(comparison)}: AUC by DeLong's method "
        "on the logit scale, other metrics by score intervals"
    )
    if comparison.contrasts:
        seeds = " and over seeds" if any(not each.of_single_models for each in comparison.contrasts) else ""
        text += (
            f"; differences in AUC by Student's t with the variance over {independent_ones(comparison)}{seeds}, "
            f"p-values of {comparison.tests} tests adjusted by Holm's method"
        )
    return text


def _robustness(comparison: Comparison) -> str | None:
    texts = []
    if len(comparison.config.compare.seeds) > 1:
        texts.append(f"{len(comparison.config.compare.seeds)} training seeds, whose spread the intervals include")
    if comparison.config.compare.shared_pretrainings:
        texts.append("fewer pretrainings than seeds, so the intervals do not include how pretraining varies")
    if len(comparison.budgets) > 1:
        texts.append(f"{len(comparison.budgets)} label budgets")
    return "; ".join(texts) or None


def _explanations(comparison: Comparison) -> str | None:
    """Reconstructions explain no decision: they show what stage one learned."""
    if comparison.heatmaps is None:
        return None
    return (
        "Heatmaps of a few cases, the first by id. Their methods were tested by deletion and insertion "
        "(docs/prediction.md)"
    )


def _evaluated(comparison: Comparison) -> str:
    cases = case_count(summary_of_all(comparison))
    if comparison.config.compare.split == "validate":
        return f"Validation images only, on which epochs and thresholds were chosen too: {cases}"
    return f"Split test of the same data: {cases}"


def _results(comparison: Comparison) -> str:
    split = comparison.config.compare.split
    return f"Split {split}, {_by_row(comparison, 'AUC', 'auc')}; other splits are not reported"


def _operating(comparison: Comparison) -> str:
    return f"{_by_row(comparison, 'Sensitivity', 'recall')}; {_by_row(comparison, 'accuracy', 'accuracy')}"


def _by_row(comparison: Comparison, name: str, metric: str) -> str:
    rows = [f"{line.name} {show(line.intervals[metric])}" for line in comparison.lines_of(largest_budget(comparison))]
    return f"{name}: {', '.join(rows)}"


def _failures(comparison: Comparison) -> str:
    negative, positive = words(comparison.config.data.target)
    rows = []
    for line in comparison.lines_of(largest_budget(comparison)):
        called = line.scores[0] >= line.thresholds[0]
        truth = line.labels == 1
        missed = f"{int((truth & ~called).sum()):,} of {int(truth.sum()):,} {positive} missed"
        rows.append(
            f"{line.name}: {missed}, {int((~truth & called).sum()):,} of {int((~truth).sum()):,} {negative} "
            "called wrongly"
        )
    return f"Wrong answers of the first seed: {'; '.join(rows)}"


def _groups(comparison: Comparison) -> dict[str, list[str]]:
    """The columns of subgroups, each with its groups that have results."""
    line = comparison.lines_of(largest_budget(comparison))[0]
    return {column: computed_groups(line, column) for column in columns_of(line, comparison.config.report.subgroups)}


def _fairness(comparison: Comparison) -> str | None:
    groups = _groups(comparison)
    if not groups:
        return None
    told = [column for column in groups if groups[column]]
    compared = [column for column in told if len(groups[column]) > 1]
    texts = []
    if told:
        which = "each" if compared == told else listed(compared)
        gaps = f", with the largest gap of {which} (exploratory)" if compared else ""
        texts.append(f"Results by {listed(told)}{gaps}")
    if few := [column for column in groups if column not in told]:
        texts.append(f"no results by {listed(few)}, as no value has {LEAST} cases of each class")
    text = f"{'; '.join(texts)}; nothing was done to reduce gaps"
    return text[0].upper() + text[1:]


def _clusters(comparison: Comparison) -> str | None:
    return "Results by source" if len(_groups(comparison).get("source", ())) > 1 else None


def _unreadable(comparison: Comparison) -> str:
    text = "A file that cannot be read, or has only one grey level, gets no score"
    if comparison.facts.unreadable is None:
        return text
    return f"{text}; these data have {comparison.facts.unreadable:,}"


def _commit(comparison: Comparison) -> str | None:
    return comparison.facts.commit


def _availability(comparison: Comparison) -> str | None:
    version = comparison.facts.software.get("mae-cxr")
    if version is None and comparison.facts.commit is None:
        return None
    which = [f"version {version}"] if version else []
    which += [f"commit {comparison.facts.commit}"] if comparison.facts.commit else []
    return f"Code: mae-cxr, {', '.join(which)} (Apache-2.0). The author states where data and weights are available"


def _positive(comparison: Comparison) -> str:
    return words(comparison.config.data.target)[1]


FACTS: dict[str, Callable[[Comparison], str | None]] = {
    "models": _models,
    "question": _question,
    "contrasts": _contrasts,
    "task": _task,
    "margins": _margins,
    "source": _source,
    "left_out": _left_out,
    "preprocessing": _preprocessing,
    "input": _input,
    "subsets": _subsets,
    "privacy": _privacy,
    "missing": _missing,
    "reference": _reference,
    "partitions": _partitions,
    "disjoint": _disjoint,
    "sizes": _sizes,
    "flow": _flow,
    "demographics": _demographics,
    "architecture": _architecture,
    "positive": _positive,
    "software": _software,
    "initial": _initial,
    "training": _training,
    "selection": _selection,
    "ensembles": _ensembles,
    "thresholds": _thresholds,
    "calibration": _calibration,
    "imbalance": _imbalance,
    "metrics": _metrics,
    "statistics": _statistics,
    "robustness": _robustness,
    "explanations": _explanations,
    "evaluated": _evaluated,
    "results": _results,
    "operating": _operating,
    "failures": _failures,
    "fairness": _fairness,
    "clusters": _clusters,
    "unreadable": _unreadable,
    "commit": _commit,
    "availability": _availability,
}
