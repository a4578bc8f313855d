"""Settings of the data room: where radiographs come from, how they are read, split and augmented."""

from typing import Literal

from pydantic import Field, model_validator

from data.config import Settings


class PhantomSettings(Settings):
    """The embedded synthetic data set (source: phantom)."""

    images: int = Field(3000, ge=20, description="frontal radiographs to draw")
    seed: int = Field(0, ge=0, description="seed of the drawing")


class DataSettings(Settings):
    """Files → manifest → store."""

    source: Literal["mimic-cxr-jpg", "folder", "table", "medmnist", "phantom"] = Field(
        description="layout of the files: mimic-cxr-jpg, folder, table, medmnist or phantom"
    )
    root: str = Field(
        "phantom",
        description="the data set's folder (medmnist: its .npz; phantom: drawn there); ${NAME} and ${NAME:-default} "
        "are read from the environment",
    )
    table: str = Field("manifest.csv", description="source table: the CSV, below root")
    labeler: Literal["chexpert", "negbio", "agreement"] = Field(
        "chexpert", description="MIMIC report labeler; agreement keeps labels on which both agree"
    )
    uncertain: Literal["unknown", "positive", "negative"] = Field(
        "unknown", description="what a finding marked -1 counts as"
    )
    views: tuple[str, ...] = Field(
        ("AP", "PA"), description="ViewPosition to keep; [] keeps all, also images without one"
    )
    sample: int | None = Field(
        None, ge=1, description="keep whole patients until this many labelled training images; null keeps all"
    )
    validate_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the training patients for validation, where no split is given"
    )
    test_fraction: float = Field(0.15, gt=0, lt=1, description="share of the patients for test, where none is given")
    split_seed: int = Field(0, ge=0, description="seed of splits and samples, the same for every training seed")
    image_size: int = Field(224, ge=8, le=2048, description="side of the stored square image, pixels")
    resize: Literal["pad", "squash", "crop"] = Field(
        "pad", description="to a square: pad (keeps the aspect), squash, or crop the centre"
    )
    tone: Literal["window", "mimic_jpg"] = Field(
        "window", description="DICOM grey levels: VOI window, or min-max and histogram equalisation as MIMIC-CXR-JPG"
    )
    credentialed: bool | None = Field(
        None, description="whether images and ids must stay private; null: MIMIC-CXR must, other sources need not"
    )
    store: str = Field("stores", description="folder of the decoded, memory-mapped stores")
    workers: int = Field(0, ge=0, description="processes that decode images; 0: one per core")
    phantom: PhantomSettings = Field(default_factory=PhantomSettings)


class AugmentSettings(Settings):
    """Light augmentation, drawn per (seed, epoch, image); one resampling per image."""

    enabled: bool = Field(True, description="false trains on the images as they are")
    crop_scale: tuple[float, float] = Field(
        (0.7, 1.0), description="area of the random resized crop, share of the image; [1, 1] does not crop"
    )
    crop_ratio: float = Field(1.15, ge=1, le=2, description="most a crop's aspect ratio changes, either way")
    rotation: float = Field(7.0, ge=0, le=45, description="largest rotation either way, degrees")
    translation: float = Field(0.05, ge=0, lt=0.5, description="largest shift either way, share of the side")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a left-right flip; 0 keeps laterality")
    brightness: float = Field(0.1, ge=0, lt=1, description="largest brightness shift, share of the grey range")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest relative contrast change")
    gamma: float = Field(0.2, ge=0, lt=1, description="largest relative gamma change")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is erased")

    @model_validator(mode="after")
    def _crop_is_a_share(self) -> "AugmentSettings":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale: found {[low, high]}, expected 0 < low <= high <= 1")
        return self
