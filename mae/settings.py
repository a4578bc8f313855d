"""Settings of the MAE room: the model's sizes and stage one."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from data.config import PathText, Settings, either
from data.settings import AugmentSettings, DataConfig

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Share = Annotated[float, Field(ge=0, lt=1)]
Images = Annotated[int, Field(ge=1)]
BatchSize = Annotated[Images | Literal["auto"], either("Input should be a number of images, 1 or more, or auto")]
Deviation = Annotated[float, Field(gt=0, le=1)]
Mean = Annotated[Share | tuple[Share, Share, Share], either("Input should be 0 to below 1, or three of these")]
Spread = Annotated[
    Deviation | tuple[Deviation, Deviation, Deviation], either("Input should be above 0, to 1, or three of these")
]


class ModelSettings(Settings):
    """Sizes of the masked autoencoder; the preset fills in what is null."""

    preset: Literal[
        "vit_micro_patch4",
        "vit_micro_patch8",
        "vit_micro_patch16",
        "vit_tiny_patch4",
        "vit_small_patch4",
        "vit_tiny_patch8",
        "vit_small_patch8",
        "vit_tiny_patch16",
        "vit_small_patch16",
        "vit_base_patch16",
        "vit_large_patch16",
        "vit_huge_patch14",
    ] = Field("vit_base_patch16", description="encoder and decoder sizes, by the paper's names; micro is for CPUs")
    init: PathText | None = Field(
        None,
        description="weights to begin from, which also set the sizes: a checkpoint of ours, a Hugging Face folder, a "
        "facebookresearch/mae .pth or a timm state dict; ${NAME} is read from the environment; null: random",
    )

    # sizes
    in_channels: Literal[1, 3] = Field(1, description="1; or 3 equal ones, as published weights expect")
    embed: Literal["linear", "conv"] = Field(
        "linear",
        description="how a patch becomes a token; linear: one linear layer, as in the paper; conv: 2 or 3 small "
        "convolutions come first, each inside one patch; only linear can be exported to transformers",
    )
    patch_size: int | None = Field(None, ge=1, le=2048, description="side of a patch, pixels; null: the preset's")
    width: int | None = Field(None, ge=8, le=65536, description="encoder width; null: the preset's")
    depth: int | None = Field(None, ge=1, le=1000, description="encoder blocks; null: the preset's")
    heads: int | None = Field(None, ge=1, le=65536, description="encoder attention heads; null: the preset's")
    decoder: Literal["self", "cross"] = Field(
        "self",
        description="self: all tokens attend to each other, as in the paper; cross: mask tokens attend to visible ones "
        "(CrossMAE)",
    )
    decoder_width: int | None = Field(None, ge=8, le=65536, description="decoder width; null: the preset's")
    decoder_depth: int | None = Field(None, ge=1, le=1000, description="decoder blocks; null: the preset's")
    decoder_heads: int | None = Field(None, ge=1, le=65536, description="decoder attention heads; null: the preset's")

    # pixels and norms
    norm_pixel_loss: bool | None = Field(
        None,
        description="predict each patch normalised by its own mean and standard deviation; null: as the decoder of "
        "model.init was trained, true for a new one",
    )
    pixel_mean: Mean = Field(
        0.5,
        description="mean grey level for standardising images, 0 to 1: one number, or one per channel; with "
        "model.init: the mean that it was trained with, needed only if its file does not say",
    )
    pixel_std: Spread = Field(
        0.25, description="standard deviation for standardising images, up to 1; otherwise as pixel_mean"
    )
    norm_eps: float = Field(1e-6, gt=0, le=1e-3, description="eps of the LayerNorms; published weights bring their own")

    @model_validator(mode="after")
    def _channels_agree(self) -> "ModelSettings":
        for name in ("pixel_mean", "pixel_std"):
            if self.in_channels == 1 and isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name}: found 3 numbers, expected 1 with in_channels 1")
        return self


Epoch = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """AdamW with linear warm-up and, unless asked otherwise, cosine decay (Loshchilov & Hutter 2019), in both stages.

    Each stage has its own defaults; what they leave null, the stage fills in.
    """

    base_lr: float | None = Field(
        None, gt=0, description="learning rate at batch 256; used: base_lr * batch_size / 256; null: stage's default"
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine, at batch 256")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="after the warm-up; cosine: falls to min_lr over all epochs; constant: falls to min_lr only in the "
        "last cooldown_epochs, so that one long run can be ended at several epochs (pretrain.continue_from)",
    )
    cooldown_epochs: float = Field(0.0, ge=0, description="constant schedule: final epochs of linear decay to min_lr")
    warmup_epochs: float | None = Field(None, ge=0, description="epochs of linear warm-up; null: a tenth of all epochs")
    weight_decay: float | None = Field(None, ge=0, description="decoupled decay; none on biases, norms and tokens")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's momentum coefficients")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; null does not clip")
    accumulate: int = Field(1, ge=1, description="parts that each batch is split into, to save memory")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights; this average is then what is kept",
    )


class PretrainOptimizerSettings(OptimizerSettings):
    """The defaults of the MAE paper, appendix A."""

    base_lr: float = Field(1.5e-4, gt=0, description="learning rate at batch 256; used: base_lr * batch_size / 256")
    weight_decay: float = Field(0.05, ge=0, description="decoupled decay; none on biases, norms and tokens")


class PretrainAugmentSettings(AugmentSettings):
    """The paper pretrains on random crops alone (appendix A.1); flips stay off for laterality."""

    crop_scale: tuple[float, float] = Field((0.5, 1.0), description="area of the random crop, share of the image")
    rotation: float = Field(0.0, ge=0, le=45, description="largest rotation either way, degrees")
    translation: float = Field(0.0, ge=0, lt=0.5, description="largest shift either way, share of the side")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest brightness shift, share of the grey range")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative contrast change")
    gamma: float = Field(0.0, ge=0, lt=1, description="largest relative gamma change")


class EngineSettings(Settings):
    """The machinery of both stages: nothing here changes what is learned."""

    save_minutes: float = Field(10, gt=0, description="minutes between checkpoints inside an epoch")
    save_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints inside an epoch; null: minutes only"
    )
    log_every: int = Field(20, ge=1, description="steps between two lines of metrics.jsonl; each waits for the device")
    pictures_every: int = Field(
        1, ge=1, description="epochs between two sets of TensorBoard pictures; the last epoch always has one"
    )
    skip_limit: int = Field(
        10, ge=1, description="updates in a row, skipped as loss or gradient is not finite, after which the run stops"
    )
    deterministic: bool = Field(False, description="only deterministic algorithms, also on CUDA; slower there")
    verbose: bool = Field(False, description="print a line every log_every steps, not one per epoch")


class PretrainSettings(Settings):
    """Stage one: masked-autoencoder pretraining (mae-pretrain)."""

    epochs: int = Field(400, ge=1, description="passes over the training images; raising it continues a run")
    batch_size: BatchSize = Field(
        64,
        description="images per step, of all ranks together; auto: chosen to fit the memory and the number of images, "
        "and written to config.yaml",
    )
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches hidden from the encoder")
    predict_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of all patches that is predicted in training, taken from the masked ones (decoder cross); "
        "null: all masked",
    )
    masking: Literal["random", "red", "green", "blue", "content"] = Field(
        "random",
        description="which patches are hidden in training; random; red, green, blue: by filtered noise (ColorMAE) in "
        "large, medium or fine spots; content: those whose pixels vary, more often than plain ones",
    )
    visible_loss: float = Field(
        0.0, ge=0, description="weight of an additional loss on the visible patches (decoder self)"
    )

    # how it learns
    optimizer: PretrainOptimizerSettings = Field(default_factory=PretrainOptimizerSettings)
    augment: PretrainAugmentSettings = Field(default_factory=PretrainAugmentSettings)

    # where it begins, and what is kept of it
    continue_from: PathText | None = Field(
        None,
        description="a kept checkpoint of another run (RUN/epoch100.pt); this run continues it as that one would, but "
        "ends by its own epochs and cooldown_epochs (schedule constant); in a comparison {run} stands for its folder "
        "and {seed} for the pretraining's seed; null: none",
    )
    keep_epochs: tuple[Epoch, ...] = Field(
        (), description="epochs whose weights and optimizer state are kept, as epoch010.pt; each is validated"
    )

    # how it is watched
    validate_every: int = Field(1, ge=1, description="epochs between held-out reconstruction losses")
    probe_every: int | None = Field(
        None,
        ge=1,
        description="epochs between probes of the features on labelled images (kNN, logistic), each with a validation; "
        "null: none",
    )
    select: Literal["reconstruction", "probe"] = Field(
        "reconstruction", description="what chooses best.pt: held-out reconstruction, or the logistic probe"
    )
    panel_images: int = Field(6, ge=0, description="validation images in TensorBoard's reconstruction panel")

    @property
    def batch(self) -> int:
        """`batch_size` once it is a number: `mae/batch_size.py` replaces auto."""
        return number_of(self.batch_size)

    @model_validator(mode="after")
    def _settings_agree(self) -> "PretrainSettings":
        check_warmup(self.optimizer, self.epochs)
        beyond = [epoch for epoch in self.keep_epochs if epoch > self.epochs]
        if beyond:
            raise ValueError(f"keep_epochs: found {beyond[0]}, expected at most the {self.epochs} epochs")
        if self.continue_from is not None and self.optimizer.schedule != "constant":
            raise ValueError("continue_from: found it with optimizer.schedule = cosine, expected constant")
        if self.select == "probe" and self.probe_every is None:
            raise ValueError("select: found probe without probe_every, expected a number of epochs there")
        return self


def number_of(batch_size: BatchSize) -> int:
    assert isinstance(batch_size, int), "auto is made a number before a batch is drawn"
    return batch_size


def check_warmup(optimizer: OptimizerSettings, epochs: int) -> None:
    """ValueError for a warm-up that would never reach the peak learning rate, or a schedule that makes no sense."""
    warmup = optimizer.warmup_epochs
    if optimizer.schedule == "cosine" and optimizer.cooldown_epochs:
        found = f"found {optimizer.cooldown_epochs:g} with schedule cosine"
        raise ValueError(f"optimizer.cooldown_epochs: {found}, expected schedule constant")
    if optimizer.schedule == "constant" and warmup is None:
        raise ValueError(
            "optimizer.warmup_epochs: found null with schedule constant, expected a number: it must not depend on how "
            "long the run is"
        )
    if optimizer.cooldown_epochs and warmup is not None and warmup + optimizer.cooldown_epochs > epochs:
        found = f"{optimizer.cooldown_epochs:g} after {warmup:g} of warm-up"
        raise ValueError(f"optimizer.cooldown_epochs: found {found}, expected at most the {epochs} epochs")
    if warmup is not None and warmup >= epochs:
        raise ValueError(f"optimizer.warmup_epochs: found {warmup:g}, expected fewer than the {epochs} epochs")


class MAEConfig(DataConfig):
    """What this room reads of a config, and how both stages compute."""

    RENAMED: ClassVar = {
        "pretrain.accumulate": "pretrain.optimizer.accumulate",
        "pretrain.ema": "pretrain.optimizer.ema",
    }

    run: PathText = Field("runs/default", description="folder this run writes to")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order, masks, augmentation (not of splits)")
    device: str = Field("auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N")

    # how it computes
    precision: Precision = Field(
        "fp32",
        description="fp32; tf32: matrix products on CUDA; bf16: autocast; fp16: autocast with loss scaling, for older "
        "GPUs (weights, loss and norms stay fp32)",
    )
    compile: bool = Field(
        False, description="train with torch.compile: a ViT's blocks, or a whole ResNet; needs a C++ compiler on a CPU"
    )
    activation_checkpointing: bool = Field(
        False,
        description="recompute a ViT's activations in the backward pass: less memory, about a third more time; "
        "no effect on a ResNet",
    )
    product: Literal["auto", "onednn", "blas"] = Field(
        "auto",
        description="library for linear layers in fp32 on a CPU: oneDNN, or torch's BLAS (MKL on most machines); "
        "auto: the faster one on this machine, measured when a run begins and then kept",
    )
    threads: int = Field(0, ge=0, description="CPU threads that torch uses; 0: torch decides")

    # what is trained, and how
    model: ModelSettings = Field(default_factory=ModelSettings)
    pretrain: PretrainSettings = Field(default_factory=PretrainSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
