"""Settings of the classifier room: stage two, evaluation and comparison; and the config of all rooms together."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from data.config import PathText, Settings, either
from data.settings import AugmentSettings, ReportSettings
from mae.settings import BatchSize, Beta, MAEConfig, Mean, OptimizerSettings, Spread, check_warmup, number_of

Pool = Literal["mean", "cls"]
Select = Literal["auc", "loss"]
ThresholdRule = Literal["youden", "accuracy", "f1", "half"]
Unit = Literal["image", "study"]
PLURALS: dict[Unit, str] = {"image": "images", "study": "studies"}
SampleCovers = Literal["train", "train_and_validate"]


class FinetuneOptimizerSettings(OptimizerSettings):
    """A null setting has a default that suits the mode, so that every row of a comparison has an equal chance."""

    base_lr: float | None = Field(
        None, gt=0, description="learning rate at batch 256, scaled by batch_size / 256; null: 5e-4 full, 1e-2 linear"
    )
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine, at batch 256")
    weight_decay: float | None = Field(None, ge=0, description="decoupled decay; null: 0.05 full, 0 linear")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's momentum coefficients")
    clip_grad: float | None = Field(1.0, gt=0, description="largest gradient norm; null does not clip")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="learning-rate factor per layer below the head; null: 0.75 if pretrained, else 1"
    )


class FinetuneSettings(Settings):
    """Stage two: a classifier of normal against abnormal (mae-finetune)."""

    run: PathText | None = Field(
        None, description="folder this run writes to; null: <folder of the checkpoint>-<mode>, or <run>-<model>"
    )
    model: Literal["vit", "resnet18", "resnet50"] = Field(
        "vit", description="vit (from --checkpoint, else randomly initialised), resnet18 or resnet50"
    )
    mode: Literal["full", "linear"] = Field(
        "full", description="full: train all weights; linear: train a probe on a frozen encoder"
    )
    pool: Pool = Field("mean", description="ViT features: mean of the patch tokens, or the class token")
    stem: Literal["auto", "imagenet", "small"] = Field(
        "auto",
        description="ResNet stem: 7x7/2 and max-pool, or 3x3/1 for small images; auto: small if a side is up to 32 px",
    )
    init: PathText | None = Field(
        None,
        description="weights that a resnet18 or resnet50 begins from: torchvision's published files, or those of "
        "another program for the same network; ${NAME} is read from the environment; null: random",
    )
    init_mean: Mean | None = Field(
        None,
        description="mean grey level that the weights of init were trained with, 0 to 1: one number, or one per "
        "channel; null: what their file says, else ImageNet's for three channels",
    )
    init_std: Spread | None = Field(None, description="the standard deviation that belongs to init_mean")
    sample: int | None = Field(
        None, ge=2, description="labelled training images to use (whole patients, nested subsets); null: all"
    )
    sample_covers: SampleCovers = Field(
        "train", description="labels that sample counts: train; or train_and_validate, both reduced by the same share"
    )
    draw: int = Field(0, ge=0, description="which random subset of finetune.sample images is used; 0: the first")
    epochs: int = Field(50, ge=1, description="passes over the labelled training images")
    batch_size: BatchSize = Field(
        64,
        description="images per step, of all ranks together; auto: chosen to fit the memory and the number of images, "
        "and written to config.yaml",
    )
    optimizer: FinetuneOptimizerSettings = Field(default_factory=FinetuneOptimizerSettings)
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last ViT block, 0 at the first")
    drop_patches: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the patches that each training step of a ViT leaves out in mode full (PatchDropout), to "
        "save time; predictions use all patches",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="targets become s/2 and 1 - s/2")
    validate_every: int = Field(
        1, ge=1, description="epochs between validations, each a candidate for best.pt; the last epoch always has one"
    )
    select: Select = Field("auc", description="validation metric that picks the best epoch")
    threshold: ThresholdRule = Field(
        "youden", description="rule that picks the decision threshold on validation; half is 0.5"
    )
    augment: AugmentSettings = Field(default_factory=AugmentSettings)

    @property
    def batch(self) -> int:
        """`batch_size`, once it is a number: `mae/batch_size.py` makes one of auto."""
        return number_of(self.batch_size)

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "FinetuneSettings":
        check_warmup(self.optimizer, self.epochs)
        return self

    @model_validator(mode="after")
    def _init_is_a_resnets(self) -> "FinetuneSettings":
        if self.init is not None and self.model == "vit":
            raise ValueError(
                "init: found it with finetune.model vit, expected resnet18 or resnet50; a ViT's weights are model.init"
            )
        if (self.init_mean is None) != (self.init_std is None):
            raise ValueError("init_mean: found one of init_mean and init_std, expected both or none")
        if self.init_mean is not None and self.init is None:
            raise ValueError("init_mean: found it without finetune.init, expected the weights that it is said of")
        return self


class EvaluateSettings(Settings):
    """mae-evaluate: a checkpoint on a split."""

    split: Literal["validate", "test"] = Field(
        "validate", description="split to predict; open test only at the very end: each opening is recorded"
    )
    unit: Unit = Field("image", description="what counts as a case: an image, or a study with its mean score")
    batch_size: int = Field(256, ge=1, description="images per forward pass")
    replicates: int = Field(2000, ge=100, description="no longer used: no interval is a bootstrap interval")
    level: float = Field(0.95, gt=0.5, lt=1, description="coverage of the intervals")

    def heeded(self) -> dict[str, Any]:
        """The settings that predictions depend on: predictions made with the same ones are not made again."""
        return self.model_dump(mode="json", exclude={"replicates"})


def _expect_a_share(budget: int | str | None) -> int | str | None:
    """ValueError for a text that is neither a share nor `all`."""
    if isinstance(budget, str) and budget != "all":
        share_of(budget)
    return budget


def share_of(text: str) -> float:
    """`5 %` → 0.05; ValueError where it is no share above 0 and up to 100 %."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError(f"found {text!r}, expected a share such as 5 %")
    return float(match[1]) / 100


Budget = Annotated[
    int | str | None,
    AfterValidator(_expect_a_share),
    either("Input should be a count such as 500, a share such as '5 %' of up to 100 %, or null for all"),
]


def _as_a_key(budget: Any) -> Any:
    """A budget as the key of a mapping; JSON turns such keys into text."""
    if budget is None or budget == "null":
        return "all"
    return int(budget) if isinstance(budget, str) and budget.isdecimal() else budget


Seed = Annotated[int, Field(ge=0, lt=2**63)]
BudgetKey = Annotated[int | str, AfterValidator(_expect_a_share), BeforeValidator(_as_a_key)]
Tune = dict[str, tuple[Any, ...]]


def _expect_a_name(name: str) -> str:
    """ValueError for a name that no table could show."""
    if not name.strip():
        raise ValueError("found no letters, expected what the table is to call it")
    return name


RowName = Annotated[str, AfterValidator(_expect_a_name)]


class RowSettings(Settings):
    """A row of the comparison, before it is multiplied by pretrainings, label budgets and seeds."""

    name: RowName = Field(description="the model's name in the table")
    pretraining: tuple[str, ...] = Field(
        (), description="names from compare.pretrainings, one row each; []: random weights"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="settings that differ, e.g. {finetune.mode: linear}")
    labelled: tuple[Budget, ...] | None = Field(
        None, min_length=1, description="the budgets of compare.labelled that this row is trained at; null: all"
    )
    tune: Tune | None = Field(
        None,
        description="values of its own to choose from, as many combinations as in compare.tune; null: compare.tune",
    )
    ensemble: bool | None = Field(
        None, description="add a row with its seeds' mean calibrated probability; null: compare.ensembles"
    )
    predictions: PathText | tuple[PathText, ...] | None = Field(
        None,
        description="instead of a training, a CSV with another program's scores or a human reader's ratings by id; or "
        "several CSVs, one for each seed or reader",
    )
    threshold: float | None = Field(
        None,
        description="score or rating in predictions from which a case is abnormal; null: chosen on the file's "
        "validation cases, else a probability of 0.5",
    )

    @model_validator(mode="after")
    def _trained_or_read(self) -> "RowSettings":
        if self.predictions is None:
            if self.threshold is not None:
                raise ValueError(
                    "threshold: found it without predictions, expected finetune.threshold for trained rows"
                )
            return self
        if not self.predictions:
            raise ValueError("predictions: found no file, expected a CSV")
        if self.pretraining or self.set or self.ensemble or self.tune is not None or self.labelled is not None:
            raise ValueError(
                "predictions: found it beside pretraining, set or ensemble, expected a name and files alone"
            )
        return self


class ContrastSettings(Settings):
    """Two rows to compare: the difference a - b of their AUC. `[a, b]` is short for `{a: a, b: b}`."""

    a: str = Field(description="a row's name; if the row has several pretrainings: row/pretraining")
    b: str = Field(description="the row that a is compared with")
    margin: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="also test that a's AUC is not lower than b's by this or more; null: no such test",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_a_pair(cls, given: Any) -> Any:
        if isinstance(given, str):  # `[a, b]` where `[[a, b]]` was meant
            raise PydanticCustomError("pair", "Input should be two rows: contrasts are pairs, as in [[a, b]]")
        if not isinstance(given, list | tuple):
            return given
        if len(given) != 2:
            raise PydanticCustomError("pair", "Input should be two rows: [a, b]")
        return {"a": given[0], "b": given[1]}


class CompareSettings(Settings):
    """mae-compare: pretrainings × fine-tunings × baselines × label budgets × seeds."""

    split: Literal["validate", "test"] = Field("validate", description="split the table shows")
    seeds: tuple[Seed, ...] = Field(
        (0, 1, 2), min_length=1, description="training seeds of both stages; each has its own subset of a label budget"
    )
    pretraining_seeds: tuple[Seed, ...] | None = Field(
        None,
        min_length=1,
        description="seeds of stage one, if it should have fewer than stage two: the training seeds take these in "
        "turn; null: each training seed has a pretraining of its own",
    )
    labelled: tuple[Budget, ...] = Field(
        (None,),
        min_length=1,
        description="labelled training images, one table each: counts, or shares such as '5 %'; null: all",
    )
    labelled_settings: dict[BudgetKey, dict[str, Any]] = Field(
        default_factory=dict,
        description="settings of stage two for all rows at a label budget, e.g. {5 %: {finetune.epochs: 100}}, as few "
        "images need more passes; a row's own settings take precedence",
    )
    tune: Tune = Field(
        default_factory=dict,
        description="values that every row chooses from on validation, e.g. {finetune.optimizer.base_lr: [1e-4, 1e-3]}",
    )
    pretrainings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name: settings that differ, e.g. {mae75: {pretrain.mask_ratio: 0.75}}"
    )
    rows: tuple[RowSettings, ...] = Field((), description="rows of the table; {name, pretraining, set}")
    ensembles: bool = Field(False, description="add a row for each trained one: the mean of its seeds")
    baseline: str | None = Field(
        None, description="row that the others are tested against if no contrasts are declared; null: the last trained"
    )
    contrasts: tuple[ContrastSettings, ...] | None = Field(
        None,
        description="pairs of rows that are tested, at every label budget: [[a, b], …] or {a:, b:, margin: 0.01}; "
        "null: each model against the baseline, and each pretrained model against the same one from random "
        "weights; []: none",
    )

    def pretraining_seed(self, place: int) -> int:
        """The seed of stage one for the training seed at this place."""
        seeds = self.pretraining_seeds or self.seeds
        return seeds[place % len(seeds)]

    @property
    def shared_pretrainings(self) -> int:
        """How many pretrainings serve each row, where they are fewer than its trainings; else 0.

        The spread of trainings that begin from the same weights is that of stage two alone.
        """
        count = len(self.pretraining_seeds or self.seeds)
        return count if count < len(self.seeds) else 0


def _expect_hundredths(rate: float) -> float:
    """ValueError for a rate that is no whole per cent: thresholds are kept for these."""
    if abs(100 * rate - round(100 * rate)) > 1e-6:
        raise ValueError(f"found {rate:g}, expected a whole per cent such as 0.95")
    return round(rate, 2)


Rate = Annotated[float, Field(ge=0.01, le=0.99), AfterValidator(_expect_hundredths)]
Prevalence = Annotated[float, Field(gt=0, lt=1)]


class ClassifyReportSettings(ReportSettings):
    """What reports may show, and at which operating points they judge classifiers."""

    specificities: tuple[Rate, ...] = Field(
        (0.9, 0.95), description="sensitivity is reported at thresholds that have these specificities on validation"
    )
    sensitivities: tuple[Rate, ...] = Field(
        (0.9, 0.95), description="specificity is reported at thresholds that have these sensitivities on validation"
    )
    heatmaps: int = Field(
        3, ge=0, le=12, description="images for which the report has heatmaps of what each row looks at; 0: none"
    )
    prevalences: tuple[Prevalence, ...] = Field(
        (0.05, 0.2, 0.5), description="predictive values are reported as if this share of patients were abnormal"
    )
    checklist: dict[str, str] = Field(
        default_factory=dict,
        description="the author's answers to items of reporting guidelines, e.g. {CLAIM 5: retrospective}",
    )


class ClassifyConfig(MAEConfig):
    """The whole config, with the sections of all rooms: what every command reads and checks."""

    RENAMED: ClassVar = {
        **MAEConfig.RENAMED,
        **{f"finetune.{name}": f"finetune.optimizer.{name}" for name in FinetuneOptimizerSettings.model_fields},
    }

    finetune: FinetuneSettings = Field(default_factory=FinetuneSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    compare: CompareSettings = Field(default_factory=CompareSettings)
    report: ClassifyReportSettings = Field(default_factory=ClassifyReportSettings)
