"""What a comparison says in sentences: each is made from contrasts that were declared, and from nothing else.

A row is called higher or lower only where its contrast's p-value, adjusted for all tests, is below 1 - level. With one
training seed a sentence is about trained models; it is about methods only if each was trained several times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from classify.comparison import Comparison, Contrast, Line, train_images_of
from classify.grid import row_names
from classify.report.numbers import show, show_number, show_p
from data.labels import words

Outcome = Literal["higher", "lower", "not told apart", "not computed"]
OF_SOME = "About trained models, not about the methods that made them, because a side has only one training"
MODELS = "A side has only one training: this is about these trained models, not about the methods that made them."


@dataclass(frozen=True)
class Answer:
    """The first screen: the question of a comparison, its answer, and how large the effect is."""

    question: str
    sentences: tuple[str, ...]
    effect: str | None = None  # a difference of AUCs with its interval


def outcome(comparison: Comparison, contrast: Contrast) -> Outcome:
    """How row a compares with row b, by the contrast's test."""
    if contrast.why_not:
        return "not computed"
    if contrast.p_holm >= alpha(comparison):
        return "not told apart"
    return "higher" if contrast.auc.estimate > 0 else "lower"


def alpha(comparison: Comparison) -> float:
    """A contrast is decided if its adjusted p-value is below this."""
    return round(1 - comparison.config.evaluate.level, 10)


# ---------------------------------------------------------------- a label budget


def verdict(comparison: Comparison, labelled: int | None) -> str:
    """What the contrasts of a label budget say, in a few sentences; "" where there are none."""
    contrasts = comparison.contrasts_of(labelled)
    if not contrasts:
        return ""

    # what each row was compared with, and the outcome
    said = []
    for against in dict.fromkeys(contrast.b for contrast in contrasts):
        of_this = [contrast for contrast in contrasts if contrast.b == against]
        said.append(_against(comparison, against, of_this))
    for contrast in contrasts:
        if contrast.declared.margin is not None:
            said.append(_with_margin(comparison, contrast))
    for contrast in contrasts:
        if not contrast.why_not and contrast.auc.note:
            said.append(f'"{contrast.a}" against "{contrast.b}": {contrast.auc.note}.')
        if contrast.why_not:
            said.append(f'Not computed: "{contrast.a}" against "{contrast.b}" ({contrast.why_not}).')
    return " ".join([*filter(None, said), *_scope(contrasts)])


def _against(comparison: Comparison, against: str, contrasts: Sequence[Contrast]) -> str:
    """`AUC against "ResNet-18": higher "MAE"; not told apart "ViT".`"""
    names: dict[Outcome, list[str]] = {"higher": [], "lower": [], "not told apart": []}
    for contrast in contrasts:
        found = outcome(comparison, contrast)
        if found in names:
            names[found].append(f'"{contrast.a}"')

    parts = [f"{found}: {', '.join(rows)}" for found, rows in names.items() if rows]
    return f'AUC against "{against}": {"; ".join(parts)}.' if parts else ""


def _with_margin(comparison: Comparison, contrast: Contrast) -> str:
    """One-sided, so at half of alpha (ICH E9, 5.5): it agrees with the lower end of the two-sided interval."""
    margin = show_number(contrast.declared.margin)
    if contrast.why_not or contrast.p_margin_holm >= alpha(comparison) / 2:
        return f'Not shown: the AUC of "{contrast.a}" is less than {margin} below that of "{contrast.b}".'
    p = show_p(contrast.p_margin_holm, named=True)
    return f'The AUC of "{contrast.a}" is less than {margin} below that of "{contrast.b}" (non-inferior, Holm {p}).'


def _scope(contrasts: Sequence[Contrast]) -> list[str]:
    """Whether the sentences are about trained models or about methods."""
    computed = [contrast for contrast in contrasts if not contrast.why_not]
    single = [contrast for contrast in computed if contrast.of_single_models]
    if not single:
        return []
    if len(single) == len(computed):
        return [MODELS]

    # the other contrasts have seeds on both sides and are about methods
    pairs = "; ".join(f'"{contrast.a}" against "{contrast.b}"' for contrast in single)
    return [f"{OF_SOME}: {pairs}."]


# ---------------------------------------------------------------- the first screen


def answer(comparison: Comparison) -> Answer:
    """The question that the comparison was made for, and what its contrasts answer at the largest label budget."""
    labelled = largest_budget(comparison)
    contrasts = comparison.contrasts_of(labelled)
    of_pretraining = [contrast for contrast in contrasts if contrast.declared.pretrained is not None]
    if of_pretraining:
        return _of_pretraining(comparison, of_pretraining, contrasts)
    if contrasts:
        return _of_two_rows(comparison, contrasts[0])

    shown = [f"{line.name}: AUC {show(line.intervals['auc'])}" for line in comparison.lines_of(labelled)[:1]]
    return Answer(_question(comparison), (f"No row is tested against another here. {'; '.join(shown)}.",))


def largest_budget(comparison: Comparison) -> int | None:
    """The label budget whose rows were trained on most images."""
    return max(comparison.budgets, key=lambda labelled: max(train_images_of(comparison.lines_of(labelled))))


def _question(comparison: Comparison) -> str:
    negative, positive = words(comparison.config.data.target)
    return f"How well are {negative} and {positive} told apart?"


def _of_pretraining(comparison: Comparison, contrasts: Sequence[Contrast], others: Sequence[Contrast]) -> Answer:
    """The answer of the first declared contrast of pretraining, whatever it found."""
    first = contrasts[0]
    question = "Does pretraining help?"
    if first.why_not:
        return Answer(question, (f'Not computed: "{first.a}" against "{first.b}" ({first.why_not}).',))

    # pretrained minus not pretrained, in whichever order they were declared
    ours = first.a == first.declared.pretrained
    better, than = (first.a, first.b) if ours else (first.b, first.a)
    found = outcome(comparison, first)
    if not ours:
        found = {"higher": "lower", "lower": "higher"}.get(found, found)  # type: ignore[assignment]
    effect = _effect(first, flipped=not ours)
    what = _of_what(comparison, first)
    say = {"higher": "Yes", "lower": "No, it harms", "not told apart": "Not shown"}[found]
    lines = {line.name: line for line in comparison.lines_of(first.labelled)}
    sentence = (
        f"{say}, {what}: {better} reaches AUC {_auc(lines[better])} against {_auc(lines[than])} of {than}, "
        f"{effect}, Holm {show_p(first.p_holm, named=True)}."
    )

    # further contrasts of the same kind, and how the pretrained row does against the rest
    further = _further(comparison, contrasts[1:])
    rest = [contrast for contrast in others if contrast is not first and better in (contrast.a, contrast.b)]
    rest = [contrast for contrast in rest if contrast.declared.pretrained is None]
    return Answer(question, tuple(filter(None, (sentence, _rest(comparison, better, rest, found), further))), effect)


def _rest(comparison: Comparison, row: str, contrasts: Sequence[Contrast], found: Outcome) -> str:
    """`ResNet-18 is better still: .941.`, and which rows it is above or not told apart from."""
    said = []
    for contrast in contrasts:
        other = contrast.b if contrast.a == row else contrast.a
        result = outcome(comparison, contrast)
        if result == "not computed":
            continue
        [line] = [line for line in comparison.lines_of(contrast.labelled) if line.name == other]
        if result == "not told apart":
            said.append(f"{row} and {other} ({_auc(line)}) are not told apart")
        elif (result == "lower") == (contrast.a == row):  # the other is higher
            said.append(f"{other} is better{' still' if found == 'higher' else ''}: {_auc(line)}")
        else:
            said.append(f"{row} is better than {other} ({_auc(line)})")
    return f"{'; '.join(said)}." if said else ""


def _further(comparison: Comparison, contrasts: Sequence[Contrast]) -> str:
    """How many other contrasts of pretraining the budget has, and what they found."""
    if not contrasts:
        return ""
    higher = 0
    for contrast in contrasts:
        ours = contrast.a == contrast.declared.pretrained
        higher += outcome(comparison, contrast) == ("higher" if ours else "lower")
    if len(contrasts) == 1:
        return f"One further contrast of pretraining {'finds' if higher else 'does not find'} it better."
    return f"Of {len(contrasts)} further contrasts of pretraining, {higher} find it better."


def _of_two_rows(comparison: Comparison, contrast: Contrast) -> Answer:
    question = f"Is {contrast.a} better than {contrast.b}?"
    if contrast.why_not:
        return Answer(question, (f"Not computed ({contrast.why_not}).",))

    say = {"higher": "Yes", "lower": "No, worse", "not told apart": "Not shown"}[outcome(comparison, contrast)]
    lines = {line.name: line for line in comparison.lines_of(contrast.labelled)}
    effect = _effect(contrast)
    sentence = (
        f"{say}, {_of_what(comparison, contrast)}: AUC {_auc(lines[contrast.a])} against {_auc(lines[contrast.b])}, "
        f"{effect}, Holm {show_p(contrast.p_holm, named=True)}."
    )
    return Answer(question, (sentence,), effect)


def _of_what(comparison: Comparison, contrast: Contrast) -> str:
    """What a sentence is about: trained models or methods."""
    if contrast.of_single_models:
        return "for these two trained models (a single training says nothing about the methods)"
    a, b = contrast.seeds
    seeds = f"{a} seeds" if a == b else f"{a} and {b} seeds"

    # with fewer pretrainings than seeds, how much pretrainings differ is not known
    grid = comparison.config.compare
    names = row_names(grid)
    pretrained = {names[f"{row.name}/{pretraining}"] for row in grid.rows for pretraining in row.pretraining}
    if grid.shared_pretrainings and pretrained & {contrast.a, contrast.b}:
        seeds += f", {grid.shared_pretrainings} of pretraining"
    return f"for the methods as trained here ({seeds})"


def _effect(contrast: Contrast, flipped: bool = False) -> str:
    """`+.184 [+.120, +.240]`"""
    low, high = contrast.auc.interval
    estimate = contrast.auc.estimate
    if flipped:
        estimate, low, high = -estimate, -high, -low
    return f"{show_number(estimate, signed=True)} [{show_number(low, signed=True)}, {show_number(high, signed=True)}]"


def _auc(line: Line) -> str:
    return show_number(line.intervals["auc"].estimate)
