"""Laws of the masked autoencoder: who sees which patches, and what the loss reads."""

import pytest
import torch
from tiny_mae import (
    GRID,
    PATCH,
    change,
    count,
    encoder_size,
    fix_prediction,
    losses_of_60_steps,
    noise_for,
    pixels,
    tiny,
)
from torch import Tensor

from data.errors import UserError
from mae import build_mae
from mae.masking import random_masking, take
from mae.model import PRESETS, normalize_patches
from mae.patches import patchify
from mae.transformer import drop_path

# ---------------------------------------------------------------- who sees what


def test_shapes_of_a_reconstruction():
    out = tiny(3)(pixels(2, 3), 0.75, noise_for(2))
    assert out.loss.shape == ()
    assert out.pred.shape == (2, 12, PATCH * PATCH * 3)
    assert out.masked.shape == (2, 12)
    assert out.mask.shape == (2, 15)
    assert out.mask.sum(1).tolist() == [12, 12]
    assert tiny(3).encoder(pixels(2, 3)).shape == (2, 1 + 15, 12)


def test_lower_noise_is_kept():
    noise = torch.arange(15.0).repeat(2, 1).flip(1)
    out = tiny()(pixels(2), 0.75, noise)
    assert out.mask.tolist() == [[1.0] * 12 + [0.0] * 3] * 2


def test_masked_pixels_never_reach_the_encoders_tokens():
    model, images = tiny(), pixels()
    keep, masked = random_masking(noise_for(), 0.75)
    tokens = model.encoder(images, keep)
    for value in (0.0, 1e30, torch.nan):
        assert model.encoder(change(images, masked, value), keep).equal(tokens)


def test_encoder_embeds_only_the_kept_patches():
    encoder, shapes = tiny().encoder, []
    encoder.embed.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    encoder(pixels(), random_masking(noise_for(), 0.75)[0])
    assert shapes == [(7, 3, 12)]


def test_predictions_do_not_depend_on_hidden_pixels():
    model, images = tiny(), pixels()
    out = model(images, 0.75, noise_for())
    assert model(change(images, out.masked, 5.0), 0.75, noise_for()).pred.equal(out.pred)


def test_predictions_depend_on_visible_pixels():
    model, images = tiny(), pixels()
    keep, _ = random_masking(noise_for(), 0.75)
    out = model(images, 0.75, noise_for())
    changed = model(change(images, keep[:, :1], 2.0), 0.75, noise_for())
    assert (changed.pred != out.pred).flatten(1).any(1).all()


def test_keeping_every_patch_equals_not_masking():
    encoder, images = tiny().encoder, pixels()
    torch.testing.assert_close(encoder(images, torch.arange(15).repeat(7, 1)), encoder(images), rtol=0, atol=1e-6)


def test_order_of_kept_patches_does_not_change_their_features():
    encoder, images = tiny().double().encoder, pixels().double()
    keep, _ = random_masking(noise_for(), 0.5)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    tokens, shuffled = encoder(images, keep), encoder(images, keep[:, order])
    torch.testing.assert_close(shuffled[:, 1:], tokens[:, 1:][:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(shuffled[:, 0], tokens[:, 0], rtol=0, atol=1e-12)


def test_order_of_masked_patches_does_not_change_their_prediction():
    model, images = tiny().double(), pixels().double()
    keep, masked = random_masking(noise_for(), 0.75)
    tokens, order = model.encoder(images, keep), torch.randperm(12, generator=torch.Generator().manual_seed(4))
    pred, shuffled = model.decoder(tokens, keep, masked), model.decoder(tokens, keep, masked[:, order])
    torch.testing.assert_close(shuffled, pred[:, order], rtol=0, atol=1e-12)


def test_order_of_visible_tokens_does_not_change_the_prediction():
    model, images = tiny().double(), pixels().double()
    keep, masked = random_masking(noise_for(), 0.75)
    tokens, order = model.encoder(images, keep), torch.tensor([2, 0, 1])
    shuffled = model.decoder(torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1), keep[:, order], masked)
    torch.testing.assert_close(shuffled, model.decoder(tokens, keep, masked), rtol=0, atol=1e-12)


def test_shuffling_a_batch_shuffles_its_output():
    model, images, noise = tiny().double(), pixels().double(), noise_for()
    order = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    out, shuffled = model(images, 0.75, noise), model(images[order], 0.75, noise[order])
    torch.testing.assert_close(shuffled.pred, out.pred[order], rtol=0, atol=1e-12)
    assert shuffled.masked.equal(out.masked[order])
    assert shuffled.mask.equal(out.mask[order])
    torch.testing.assert_close(shuffled.loss, out.loss)


def test_an_image_does_not_depend_on_its_batch():
    model, images = tiny().double(), pixels().double()
    together = model(images, 0.75, noise_for()).pred
    alone = model(images[3:4], 0.75, noise_for()[3:4]).pred
    torch.testing.assert_close(alone, together[3:4], rtol=0, atol=1e-12)


def test_places_of_patches_matter():
    """Without positions, exchanging two patches would only exchange their tokens."""
    encoder, images = tiny().encoder, pixels(1)
    exchanged = images.clone()
    exchanged[..., :2, :2], exchanged[..., 4:, 8:] = images[..., 4:, 8:], images[..., :2, :2]
    assert not torch.allclose(encoder(images)[:, 0], encoder(exchanged)[:, 0], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 10, 6), (1, 1, 6, 12), (1, 3, 6, 10)])
def test_images_of_another_shape_are_refused(shape):
    model, images = tiny(), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"images: found \(c h w\) .*, expected \(1, 6, 10\)"):
        model(images)


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("norm_pixel_loss", [True, False])
def test_loss_ignores_visible_patches(norm_pixel_loss):
    """The prediction is fixed, so that visible pixels cannot act through the encoder."""
    model, images = tiny(norm_pixel_loss=norm_pixel_loss), pixels()
    fix_prediction(model, torch.zeros(7, 12, PATCH * PATCH))
    keep, masked = random_masking(noise_for(), 0.75)
    loss = model(images, 0.75, noise_for()).loss
    other = patchify(pixels(seed=9), PATCH)[0, 0]
    assert model(change(images, keep, other), 0.75, noise_for()).loss.equal(loss)
    assert not model(change(images, masked[:, :1], other), 0.75, noise_for()).loss.equal(loss)


@pytest.mark.parametrize("norm_pixel_loss", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_the_papers(channels, norm_pixel_loss):
    """`forward_loss` of the paper's code: error per patch, then the mean over masked patches."""
    model, images = tiny(channels, norm_pixel_loss), pixels(channels=channels)
    out = model(images, 0.75, noise_for())
    target = patchify(images, PATCH)
    if norm_pixel_loss:
        mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1.0e-6) ** 0.5
    pred = torch.zeros_like(target)  # at visible patches: of no weight
    for image in range(7):
        pred[image, out.masked[image]] = out.pred[image].detach()
    error = ((pred - target) ** 2).mean(dim=-1)
    torch.testing.assert_close(out.loss.detach(), (error * out.mask).sum() / out.mask.sum())


def test_normalized_patches_do_not_depend_on_brightness_and_contrast():
    patches = torch.rand(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(normalize_patches(5 * patches + 3), normalize_patches(patches), rtol=0, atol=1e-3)
    assert normalize_patches(torch.full((1, 1, 7), 3.0)).equal(torch.zeros(1, 1, 7))  # black borders stay finite


def test_loss_keeps_the_models_precision():
    model, images = tiny().double(), pixels().double()
    out = model(images, 0.75, noise_for())
    target = normalize_patches(take(patchify(images, PATCH), out.masked))
    assert out.loss.dtype == torch.float64
    assert abs(out.loss.item() - (out.pred - target).square().mean().item()) < 1e-15


def test_loss_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        out = tiny()(pixels(), 0.75, noise_for())
    assert out.pred.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32


def test_every_parameter_learns():
    model = tiny()
    model(pixels(), 0.75, noise_for()).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_a_few_steps_lower_the_loss():
    losses = losses_of_60_steps(tiny(norm_pixel_loss=False), pixels(), noise_for())
    assert losses[-1] < 0.6 * losses[0]


def test_given_noise_leaves_the_global_generator_alone():
    model, before = tiny(), torch.get_rng_state()
    model(pixels(), 0.75, noise_for())
    assert torch.get_rng_state().equal(before)


# ---------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("preset", "published", "positions"),  # timm's headless ViT, whose positions are parameters
    [
        ("vit_tiny_patch16", 5_524_416, 197 * 192),
        ("vit_small_patch16", 21_665_664, 197 * 384),
        ("vit_base_patch16", 85_798_656, 197 * 768),
        ("vit_large_patch16", 303_301_632, 197 * 1024),
        ("vit_huge_patch14", 630_764_800, 257 * 1280),
    ],
)
def test_presets_have_the_published_sizes(preset, published, positions):
    size = PRESETS[preset]
    with torch.device("meta"):
        grey, colour = build_mae(preset), build_mae(preset, in_channels=3)
    assert count(colour.encoder) == published - positions
    assert count(grey.encoder) == encoder_size(size["width"], size["depth"], size["patch_size"] ** 2)
    assert grey.encoder.positions.shape == (positions // size["width"] - 1, size["width"])


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_the_micro_presets_are_what_was_measured(patch):
    """128 x 6 in heads of 32, decoder 64 x 2, as in benchmarks/recipes: docs/speed.md speaks of these sizes."""
    with torch.device("meta"):
        model = build_mae(f"vit_micro_patch{patch}", 64)
    assert count(model.encoder) == encoder_size(128, 6, patch**2)
    assert [block.attention.heads for block in model.encoder.blocks] == [4] * 6
    assert [block.attention.heads for block in model.decoder.blocks] == [2] * 2
    assert model.decoder.positions.shape[1] == 64


def test_the_base_decoder_is_the_papers():
    with torch.device("meta"):
        model = build_mae("vit_base_patch16", in_channels=3)
    blocks = 8 * (12 * 512**2 + 13 * 512)
    assert count(model.decoder) == (768 + 1) * 512 + 512 + blocks + 2 * 512 + (512 + 1) * 768


def test_sizes_override_the_preset():
    model = tiny(width=16, depth=1, heads=2)
    assert model.encoder.width == 16
    assert len(model.encoder.blocks) == 1
    assert model.encoder.grid == GRID
    assert build_mae("vit_tiny_patch16", 32, width=None, depth=1, decoder_depth=1).encoder.width == 192


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "vit_giant"}, "model.preset: found 'vit_giant', expected one of vit_micro_patch4"),
        ({"decoder": "none"}, "model.decoder: found 'none'"),
        ({"widht": 8}, "model: found size 'widht', expected one of patch_size"),
        ({"patch_size": 5}, "model.patch_size: found 5, expected a divisor of the image size"),
        ({"patch_size": 0}, "model.patch_size: found 0, expected at least 1"),
        ({"depth": 0}, "model.depth: found 0, expected at least 1"),
        ({"image_size": 16}, "model.patch_size: found 16, expected at least two patches"),
        ({"heads": 5}, "model.heads: found 5, expected a divisor of width 192"),
        ({"decoder_heads": 5}, "model.decoder_heads: found 5, expected a divisor of decoder_width 128"),
        ({"width": 6}, "model.width: found 6, expected a multiple of 4"),
        ({"decoder_width": 10, "decoder_heads": 1}, "model.decoder_width: found 10, expected a multiple of 4"),
        ({"patch_size": 1}, "model.patch_size: found 1, expected at least 2 with norm_pixel_loss"),
    ],
)
def test_impossible_models_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError) as caught:
        build_mae(**{"preset": "vit_tiny_patch16", "image_size": 32} | arguments)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_biases_start_at_zero_and_weights_are_xavier():
    model = tiny()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    weight = model.encoder.blocks[0].mlp.up.weight
    bound = (6 / sum(weight.shape)) ** 0.5
    assert 0.9 * bound < weight.abs().max() <= bound


# ---------------------------------------------------------------- standardising, stochastic depth


def test_standardize_reads_grey_levels_as_shares():
    encoder = build_mae("vit_tiny_patch16", 32, 3, depth=1, pixel_mean=0.4, pixel_std=0.2).encoder
    grey = torch.tensor([0, 102, 153, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(2, 3, 5, 4)
    expected = torch.tensor([-2.0, 0.0, 1.0, 3.0]).expand(2, 3, 5, 4)
    torch.testing.assert_close(encoder.standardize(grey), expected)


def test_preprocessing_travels_with_the_weights():
    state = build_mae("vit_tiny_patch16", 32, depth=1, pixel_mean=0.4, pixel_std=0.2).state_dict()
    other = build_mae("vit_tiny_patch16", 32, depth=1)
    other.load_state_dict(state)
    assert other.encoder.mean.item() == pytest.approx(0.4)
    assert other.encoder.std.item() == pytest.approx(0.2)
    assert {"encoder.positions", "decoder.positions"} <= state.keys()  # loaded weights may bring their own


def test_drop_path_keeps_the_expectation():
    noise = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(5))
    scales = drop_path(noise, torch.tensor([0.0, 0.2, 0.5]))
    assert scales[:, 0].equal(torch.ones(20_000))
    assert scales.unique().tolist() == pytest.approx([0, 1, 1.25, 2])
    torch.testing.assert_close(scales.mean(0), torch.ones(3), rtol=0, atol=0.04)


def test_drop_path_acts_in_training_only_and_hangs_on_its_noise():
    encoder, images = tiny().encoder, pixels()
    noise = torch.rand(7, 6, generator=torch.Generator().manual_seed(6))
    plain = encoder.eval()(images)
    encoder.drop_path = 0.5
    assert encoder(images, noise=noise).equal(plain)
    encoder.train()
    dropped = encoder(images, noise=noise)
    assert not dropped.equal(plain)
    assert encoder(images, noise=noise).equal(dropped)
    order = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    torch.testing.assert_close(encoder(images[order], noise=noise[order]), dropped[order], rtol=0, atol=1e-6)
    encoder.drop_path = 0.0
    assert encoder(images, noise=noise).equal(plain)


def test_drop_path_grows_linearly_from_zero():
    encoder = tiny().encoder.train()
    encoder.drop_path = 0.4
    drops = encoder._drops(2, torch.full((2, 6), 0.999))
    assert [drop.shape for drop in drops] == [(2, 2)] * 3
    torch.testing.assert_close(1 - 1 / torch.cat(drops, dim=1)[0], torch.tensor([0, 0, 0.2, 0.2, 0.4, 0.4]))


def test_a_dropped_branch_leaves_the_tokens_as_they_were():
    encoder, images = tiny().encoder.train(), pixels()
    encoder.drop_path = 0.5
    noise = torch.ones(7, 6)
    noise[:, 2:] = 0.0  # rates 0, .25, .5: the last two blocks vanish
    first_only = encoder.norm(encoder.blocks[0](_before_blocks(encoder, images)))
    torch.testing.assert_close(encoder(images, noise=noise), first_only)


def _before_blocks(encoder, images: Tensor) -> Tensor:
    tokens = encoder.embed(patchify(images, PATCH)) + encoder.positions
    return torch.cat([encoder.class_token.expand(len(images), 1, -1), tokens], dim=1)
