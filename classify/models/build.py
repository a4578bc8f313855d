"""A config → the network it describes."""

from typing import Literal

from classify.models.classifier import Classifier, build_classifier
from classify.models.resnet import ResNet, build_resnet
from classify.settings import ClassifyConfig, FinetuneSettings
from data.settings import Size, height_and_width
from mae.engine.checkpoint import Checkpoint, load_weights
from mae.model import mae_from
from mae.product import configure_products

Model = Classifier | ResNet


def build_model(config: ClassifyConfig, pretrained: Checkpoint | None = None) -> Model:
    """The classifier a config describes, with a pretraining's encoder or the trunk of `finetune.init`, if given."""
    settings = config.finetune
    model = config.model
    if settings.model != "vit":
        resnet = build_resnet(
            settings.model,
            in_channels=model.in_channels,
            stem=stem_of(settings, config.data.image_size),
            pixel_mean=model.pixel_mean,
            pixel_std=model.pixel_std,
            probe=settings.mode == "linear",
            folded=settings.init is not None,
        )
        if pretrained:  # all but the head, which starts fresh
            resnet.load_state_dict({**resnet.state_dict(), **pretrained.weights})
        return resnet

    # the checkpoint holds the whole autoencoder, so all of it is built; the decoder is then dropped
    mae = mae_from(model, config.data.image_size)
    if pretrained:
        load_weights(mae, pretrained)
    configure_products(mae, config.product)  # a run is scored with the matrix product it was trained with
    return build_classifier(
        mae.encoder,
        pool=settings.pool,
        probe=settings.mode == "linear",
        drop_path=settings.drop_path,
        drop_patches=settings.drop_patches,
    )


def stem_of(settings: FinetuneSettings, size: Size) -> Literal["imagenet", "small"]:
    """A ResNet's first layers: the ImageNet stem would leave one pixel of an image up to 32."""
    if settings.stem != "auto":
        return settings.stem
    if min(height_and_width(size)) <= 32:
        return "small"
    return "imagenet"
