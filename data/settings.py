"""Settings of the data room: where radiographs come from, how they are read, split and augmented."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from data.config import PathText, Settings, either

Side = Annotated[int, Field(ge=8, le=2048)]
ImageSize = Annotated[Side | tuple[Side, Side], either("Input should be 8 to 2048, or [height, width] of these")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
MaxRejected = Annotated[Count | Share | None, either("Input should be a count of files, a share below 1, or null")]
File = Annotated[PathText, Field(min_length=1)]
Store = Annotated[Literal[False] | File, either("Input should be a folder, or false")]
Patients = Annotated[File | tuple[File, ...] | None, either("Input should be a CSV file, a list of such, or null")]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[
    tuple[Name, ...] | None,
    either("Input should be a name, or a list of such, or null; a name such as 'no' needs its quotes"),
    BeforeValidator(lambda given: _as_names(given)),
]
Value = str | int | float  # of a column, as a config writes it
Values = Annotated[
    tuple[Value, ...],
    Field(min_length=1),
    either("Input should be a text or a number, or a list of such; a text such as 'True' needs its quotes"),
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given]),
]
Where = Annotated[dict[Name, Values], AfterValidator(lambda given: Chosen(given))]
Layout = Literal[
    "mimic-cxr-jpg", "mimic-cxr-dicom", "chexpert", "nih-cxr14", "folder", "images", "table", "medmnist", "phantom"
]
Resize = Literal["pad", "squash", "crop"]
Tone = Literal["window", "mimic_jpg"]  # as a viewer shows it, or as MIMIC-CXR-JPG was made
# settings that may differ for the same images: a run knows its images by their store, their splits and their labels
FOUND_BY = ("data.root", "data.labels_root", "data.normal", "data.dicom_ids")
Size = int | tuple[int, int]  # of an image: the side of a square, or height and width


class Chosen(dict[str, tuple[Value, ...]]):
    """Values by column, which nobody changes: hashable, as all settings are."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _as_names(given: object) -> object:
    """A list of names; one name may stand alone, and YAML makes numbers of those that are digits."""
    several = given if isinstance(given, list | tuple) else [given]
    if given is None or any(type(name) not in (str, int) for name in several):
        return given
    return [str(name) for name in several]


def height_and_width(size: Size) -> tuple[int, int]:
    """A square's side counts for both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


class PhantomSettings(Settings):
    """The embedded synthetic data set (source: phantom)."""

    images: int = Field(3000, ge=20, description="frontal radiographs to draw")
    seed: int = Field(0, ge=0, description="seed of the drawing")


class ColumnSettings(Settings):
    """Names of the columns in your own table (source: table); null: the setting's own name."""

    path: Name | None = Field(None, description="column with the files' paths, below root")
    label: Name | None = Field(None, description="column that says normal or abnormal")
    image_id: Name | None = Field(None, description="column that names images; null: image_id, else the path")
    patient_id: Name | None = Field(None, description="column that names patients")
    study_id: Name | None = Field(None, description="column that names studies")
    split: Name | None = Field(None, description="column that says train, validate or test")
    view: Name | None = Field(None, description="column with the ViewPosition")


class SourceSettings(Settings):
    """One data set of `data.sources`; null takes what the data section says."""

    source: Layout = Field(description="layout of this data set's files")
    root: PathText = Field(description="this data set's folder (medmnist: its .npz)")
    name: str | None = Field(None, min_length=1, description="prefix of its image and patient ids; null: source")
    table: PathText | None = Field(None, description="source table: the CSV, below root")
    columns: ColumnSettings | None = Field(None, description="source table: what its columns are called")
    labels_root: PathText | None = Field(None, description="folder of MIMIC-CXR-JPG's CSVs if it is not root")
    patients: Patients = Field(None, description="a CSV of this data set's patients, or several; joined by their ids")
    labeler: Literal["chexpert", "negbio", "agreement"] | None = Field(None, description="MIMIC report labeler")
    uncertain: Literal["unknown", "positive", "negative"] | None = Field(None, description="what -1 counts as")
    normal: Names = Field(None, description="class folders or labels that mean normal; null: by their names")
    views: tuple[str, ...] | None = Field(None, description="ViewPosition to keep; [] keeps all")
    where: Where | None = Field(None, description="rows of this data set to keep, by their columns; {} keeps all")


class DataSettings(Settings):
    """Files → manifest → store."""

    labelled: ClassVar[bool] = True  # false where images serve pretraining alone, whatever their tables say of labels

    source: Literal[Layout, "mix"] = Field(
        "mix",
        description="layout of the files: mimic-cxr-jpg, mimic-cxr-dicom, chexpert, nih-cxr14, folder, images, table, "
        "medmnist or phantom; mix (which may be left out) where `sources` lists several",
    )
    root: PathText = Field(
        "phantom",
        description="the data set's folder (medmnist: its .npz; phantom: drawn there); ${NAME} and ${NAME:-default} "
        "are read from the environment; shipped:NAME comes with the package",
    )
    sources: tuple[SourceSettings, ...] = Field(
        (),
        description="several data sets as one: a list of {source, root, …}; what an entry leaves out, the data section "
        "sets",
    )
    unlabelled: tuple[SourceSettings, ...] = Field(
        (),
        description="further data sets for pretraining alone, listed as in `sources`; what an entry leaves out has its "
        "default; stage two never reads them",
    )
    table: PathText = Field("manifest.csv", description="source table: the CSV, below root")
    columns: ColumnSettings = Field(default_factory=ColumnSettings)
    labels_root: PathText | None = Field(
        None, description="folder of MIMIC-CXR-JPG's CSVs if it is not root, as for mimic-cxr-dicom"
    )
    patients: Patients = Field(
        None,
        description="a CSV of patients (.gz too), or a list of these, such as MIMIC-IV's patients.csv.gz; its sex, age "
        "and other columns are joined by patient_id or subject_id, for subgroups; null: none",
    )
    dicom_ids: bool = Field(
        True,
        description="if no column names patients, take patients and studies from PatientID and StudyInstanceUID "
        "of DICOM files, as salted hashes",
    )
    labeler: Literal["chexpert", "negbio", "agreement"] = Field(
        "chexpert", description="MIMIC report labeler; agreement keeps labels on which both agree"
    )
    uncertain: Literal["unknown", "positive", "negative"] = Field(
        "unknown", description="what a finding marked -1 counts as"
    )
    target: str | None = Field(
        None, description="column of the finding to predict, such as Pneumonia; null: normal or abnormal"
    )
    normal: Names = Field(
        None,
        description="class folders or table labels that mean normal, such as [Controls]; all others are abnormal; "
        "null: those with a name such as normal, healthy, control",
    )
    views: tuple[str, ...] = Field(
        ("AP", "PA"), description="ViewPosition to keep; [] keeps all, also images without one"
    )
    where: Where = Field(
        default_factory=Chosen,
        description="rows to keep, by any column of the manifest: {pixels: 128}, or {view: [PA, AP], sex: F}, where "
        "every column must match one of its values; {} keeps all; applied before splits are drawn",
    )
    sample: int | None = Field(
        None, ge=1, description="keep whole patients until there are this many labelled training images; null: all"
    )
    validate_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the training patients for validation, where none is given"
    )
    test_fraction: float = Field(
        0.15, gt=0, lt=1, description="share of the training patients for test, where none is given"
    )
    split_seed: int = Field(0, ge=0, description="seed of splits and samples, the same for every training seed")
    image_size: ImageSize = Field(224, description="side of the stored square image, or its [height, width], pixels")
    resize: Resize = Field(
        "pad", description="how to reach image_size: pad (keeps the aspect ratio), squash, or crop the centre"
    )
    tone: Tone = Field(
        "window",
        description="DICOM grey levels; window: VOI window; mimic_jpg: min-max and histogram equalisation, as in "
        "MIMIC-CXR-JPG",
    )
    credentialed: bool | None = Field(
        None,
        description="whether images and ids must stay private; null: for MIMIC-CXR, CheXpert, BRAX and VinDr-CXR",
    )
    share: Literal["private", "group"] = Field(
        "private",
        description="who may read files made from credentialed data: private (you alone), or group (your group too)",
    )
    max_rejected: MaxRejected = Field(
        None,
        description="most unreadable files that may be left out, a count or a share (DICOM objects other than images "
        "do not count); with more, the command stops; null: 10, or 1 % if more",
    )
    store: Store = Field(
        "stores", description="folder of the decoded, memory-mapped stores; false reads the files anew in every epoch"
    )
    workers: int = Field(
        0, ge=0, description="processes that decode images; 0: one per core, shared by torchrun's ranks"
    )
    phantom: PhantomSettings = Field(default_factory=PhantomSettings)

    @model_validator(mode="after")
    def _sources_belong_to_a_mix(self) -> "DataSettings":
        if self.source == "mix" and not self.sources:
            raise ValueError(f"source is missing ({type(self).model_fields['source'].description})")
        if self.source != "mix" and self.sources:
            raise ValueError(f"sources: found a list beside source {self.source}, expected [] or source mix")
        if self.sources and self.patients is not None:  # in another source, its ids may be other patients'
            raise ValueError("patients: found it beside several sources, expected it in the entry it belongs to")
        for key in ("sources", "unlabelled"):
            names = [part.name or part.source for part in getattr(self, key)]
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: found names {', '.join(names)}, expected different ones; give each its name")
        return self

    def each_source(self) -> dict[str, "DataSettings"]:
        """The settings of every single data set, by name."""
        if self.source != "mix":
            return {self.source: self}
        settings = {}
        for part in self.sources:
            given = {name: value for name, value in part if name != "name" and value is not None}
            settings[part.name or part.source] = self.model_copy(update={"sources": (), **given})
        return settings

    def of_unlabelled(self) -> "DataSettings | None":
        """The settings of `unlabelled` as a data set of its own; None where there is none.

        It takes from these settings what must be the same for all images that one model sees, and where stores are.
        """
        if not self.unlabelled:
            return None
        shared = {name: getattr(self, name) for name in SHARED}
        return UnlabelledSettings.model_construct(**shared, source="mix", sources=self.unlabelled)

    @field_validator("image_size")
    @classmethod
    def _square_is_one_number(cls, size: Size) -> Size:
        height, width = height_and_width(size)
        return height if height == width else size  # [64, 64] is the store of 64


class UnlabelledSettings(DataSettings):
    """What `DataSettings.of_unlabelled` gives."""

    labelled: ClassVar[bool] = False


LARGEST_CROP = 4  # share of the image's area: then it is half as high and wide
# settings that unlabelled images share with the labelled ones
SHARED = ("views", "image_size", "resize", "tone", "credentialed", "share", "max_rejected", "store", "workers")


class AugmentSettings(Settings):
    """Light augmentation, drawn per (seed, epoch, image); one resampling per image."""

    enabled: bool = Field(True, description="false trains on the images as they are")
    crop_scale: tuple[float, float] = Field(
        (0.7, 1.0),
        description="area of the random resized crop, share of the image; [1, 1] does not crop, "
        "and above 1 the image is made smaller, with black around it",
    )
    crop_ratio: float = Field(1.15, ge=1, le=2, description="largest change of a crop's aspect ratio, either way")
    rotation: float = Field(7.0, ge=0, le=45, description="largest rotation either way, degrees")
    translation: float = Field(0.05, ge=0, lt=0.5, description="largest shift either way, share of the side")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a left-right flip; 0 keeps laterality")
    brightness: float = Field(0.1, ge=0, lt=1, description="largest brightness shift, share of the grey range")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest relative contrast change")
    gamma: float = Field(0.2, ge=0, lt=1, description="largest relative gamma change")
    blur: float = Field(0.0, ge=0, le=8, description="largest deviation of a Gaussian blur, pixels of the image")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is erased")

    @model_validator(mode="after")
    def _crop_is_a_share(self) -> "AugmentSettings":
        low, high = self.crop_scale
        if not 0 < low <= high <= LARGEST_CROP:
            raise ValueError(f"crop_scale: found {[low, high]}, expected 0 < low <= high <= {LARGEST_CROP}")
        return self


class ReportSettings(Settings):
    """What reports and TensorBoard may show; the rule is `may_show` in data/privacy.py."""

    images: bool | None = Field(None, description="show radiographs and plain ids; null: not for credentialed sources")
    subgroups: tuple[str, ...] | None = Field(
        None, description="columns of the data by which results are broken down; null: view, sex and age where known"
    )


class DataConfig(Settings):
    """What this room reads of a config."""

    data: DataSettings = Field(default_factory=DataSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
