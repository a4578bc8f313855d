"""Laws of the cross decoder: mask tokens read the visible tokens of all depths, and never each other."""

import pytest
import tiny_mae
import torch
from tiny_mae import PATCH, losses_of_60_steps, noise_for
from tiny_world import tiny_config
from torch import Tensor

import mae.pretrain
from data.draws import uniform
from data.errors import UserError
from data.loader import Loader, open_data
from mae.masking import random_masking
from mae.model import MaskedAutoencoder
from mae.pretrain import check_model, pretrain_stage
from mae.reconstruct import reconstruct
from mae.settings import MAEConfig

BATCH = 7  # of images of 15 patches, of which 3 are kept at 75 %
CPU = torch.device("cpu")


def tiny(decoder: str = "cross", **sizes) -> MaskedAutoencoder:
    return tiny_mae.tiny(decoder=decoder, **sizes).double()


def pixels(b: int = BATCH) -> Tensor:
    return tiny_mae.pixels(b).double()


def depths_of(model: MaskedAutoencoder, images: Tensor, keep: Tensor) -> Tensor:
    return torch.stack(list(model.encoder.depths(images, keep)))  # l b 1+k d


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- who sees what


@pytest.mark.parametrize("predict_ratio", [0.01, 0.25, 0.5])
def test_a_patch_is_predicted_alike_alone_and_with_the_others(predict_ratio):
    model, images = tiny(), pixels()
    whole, part = model(images, 0.75, noise_for()), model(images, 0.75, noise_for(), predict_ratio)
    count = part.masked.shape[1]
    assert count == max(int(15 * predict_ratio), 1) < 12
    assert part.masked.equal(whole.masked[:, :count])
    assert_near(part.pred, whole.pred[:, :count])


def test_mask_tokens_do_not_see_each_other():
    model, images = tiny(), pixels()
    keep, masked = random_masking(noise_for(), 0.75)
    depths = depths_of(model, images, keep)
    others = torch.cat([masked[:, :1], masked[:, 5:6]], dim=1)
    assert_near(model.decoder(depths, keep, others)[:, :1], model.decoder(depths, keep, masked)[:, :1])


def test_order_of_visible_and_of_masked_patches_does_not_matter():
    model, images = tiny(), pixels()
    keep, masked = random_masking(noise_for(), 0.5)
    depths, plain = depths_of(model, images, keep), model.decoder(depths_of(model, images, keep), keep, masked)
    order = torch.tensor([0, 4, 2, 7, 1, 6, 3, 5])  # of the class token and 7 patches
    assert_near(model.decoder(depths[:, :, order], keep, masked), plain)
    order = torch.randperm(masked.shape[1], generator=torch.Generator().manual_seed(3))
    assert_near(model.decoder(depths, keep, masked[:, order]), plain[:, order])


def test_kept_patches_shuffled_with_their_indices_change_nothing():
    model, images = tiny(), pixels()
    keep, masked = random_masking(noise_for(), 0.5)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    shuffled = keep[:, order]
    plain = model.decoder(depths_of(model, images, keep), keep, masked)
    assert_near(model.decoder(depths_of(model, images, shuffled), shuffled, masked), plain)


def test_shuffling_a_batch_shuffles_its_output():
    model, images, noise = tiny(), pixels(), noise_for()
    order = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    out, shuffled = model(images, 0.75, noise, 0.25), model(images[order], 0.75, noise[order], 0.25)
    assert_near(shuffled.pred, out.pred[order])
    assert shuffled.masked.equal(out.masked[order])
    assert shuffled.mask.equal(out.mask[order])
    assert_near(shuffled.loss, out.loss)


def test_predictions_depend_on_every_visible_patch():
    model, images = tiny(), pixels().requires_grad_()
    out = model(images, 0.75, noise_for())
    [gradient] = torch.autograd.grad(out.pred.sum(), images)
    seen = torch.nn.functional.max_pool2d(gradient.abs(), PATCH).flatten(1) > 0  # b n
    assert seen.equal(out.mask == 0)


def test_each_block_reads_its_own_sum_of_the_depths():
    """With all the weight on one depth, the others are not read."""
    model, images = tiny(), pixels()
    keep, masked = random_masking(noise_for(), 0.75)
    depths = depths_of(model, images, keep)
    assert depths.shape == (1 + 3, BATCH, 1 + 3, 12)  # as embedded, and after each block
    with torch.no_grad():
        model.decoder.depth_weights.copy_(torch.tensor([[0, 0, 0, 1.0], [0, 1.0, 0, 0]]))
    plain, unread = model.decoder(depths, keep, masked), depths.clone()
    unread[0], unread[2] = 9.0, -9.0
    assert_near(model.decoder(unread, keep, masked), plain)
    for read in (1, 3):
        changed = depths.clone()
        changed[read] = depths[read].flip(-1)
        assert not torch.allclose(model.decoder(changed, keep, masked), plain)


def test_the_last_depth_is_what_the_encoder_returns():
    model, images = tiny(), pixels()
    keep, _ = random_masking(noise_for(), 0.75)
    assert depths_of(model, images, keep)[-1].equal(model.encoder(images, keep))


# ---------------------------------------------------------------- loss, masks


def test_mask_tells_what_was_hidden_and_masked_what_was_predicted():
    noise = torch.arange(15.0).repeat(2, 1)
    out = tiny()(pixels(2), 0.6, noise, 0.2)
    assert out.mask.tolist() == [[0.0] * 6 + [1.0] * 9] * 2
    assert out.masked.tolist() == [[6, 7, 8]] * 2  # of the hidden ones, those of lowest noise
    assert out.pred.shape == (2, 3, PATCH * PATCH)


@pytest.mark.parametrize("predict_ratio", [0.9, 1.0, None])
def test_no_more_is_predicted_than_is_hidden(predict_ratio):
    model, images = tiny(), pixels()
    out = model(images, 0.5, noise_for(), predict_ratio)
    assert out.masked.shape == (BATCH, 8)
    assert_near(out.loss, model(images, 0.5, noise_for()).loss)


def test_every_parameter_learns():
    model = tiny()
    model(pixels(), 0.75, noise_for(), 0.25).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    for name in ("decoder.depth_weights", "encoder.norm.weight", "encoder.class_token"):
        assert name in dict(model.named_parameters())
    assert model.decoder.depth_weights.grad.all()  # each depth of each block


def test_a_few_steps_lower_the_loss():
    losses = losses_of_60_steps(tiny(), pixels(), noise_for())
    assert losses[-1] < 0.6 * losses[0]


def test_reconstruction_shows_every_hidden_patch():
    images = torch.randint(0, 256, (2, 1, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    pictures = reconstruct(tiny().float(), images, 0.75, noise_for(2))
    assert pictures.reconstruction.shape == (2, 1, 6, 10)
    assert 0 <= pictures.reconstruction.min() <= pictures.reconstruction.max() <= 1


# ---------------------------------------------------------------- settings


def check_config(config: MAEConfig) -> None:
    check_model(config.model, config.pretrain, config.data.image_size)


def test_predicting_a_part_takes_the_cross_decoder(tmp_path):
    with pytest.raises(UserError, match="predict_ratio: found it with the decoder 'self', expected 'cross'"):
        tiny("self")(pixels(), 0.75, noise_for(), 0.25)
    with pytest.raises(UserError, match=r"pretrain.predict_ratio: found it with model.decoder = self") as caught:
        check_config(tiny_config(tmp_path, pretrain__predict_ratio=0.25))
    assert "\n" not in str(caught.value)
    check_config(tiny_config(tmp_path, pretrain__predict_ratio=0.25, model__decoder="cross"))


def test_validation_predicts_every_hidden_patch_whatever_training_does(tmp_path, monkeypatch):
    part = tiny_config(tmp_path, model__decoder="cross", pretrain__predict_ratio=0.25)
    data, ratios = open_data(part.data), []
    stage = pretrain_stage(part, data, CPU)
    forward = MaskedAutoencoder.forward

    def watched(model, images, mask_ratio, noise, predict_ratio=None, visible_loss=0.0):
        ratios.append(predict_ratio)
        return forward(model, images, mask_ratio, noise, predict_ratio, visible_loss)

    monkeypatch.setattr(MaskedAutoencoder, "forward", watched)
    with torch.no_grad():
        found = stage.validate(stage.model.eval(), 1).metrics["validate/loss"]
    assert set(ratios) == {None}
    mae.pretrain.pretrain_step(stage.model, next(iter(stage.batches.epoch(0))), 0, part.pretrain, part.seed)
    assert ratios[-1] == 0.25
    monkeypatch.undo()
    batch = next(Loader(data, data.split("validate"), 64).epoch())
    noise = uniform(0, "validate", 0, batch.numbers, stage.model.patches)
    with torch.no_grad():
        expected = stage.model(stage.model.encoder.standardize(batch.images), 0.75, noise).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)
