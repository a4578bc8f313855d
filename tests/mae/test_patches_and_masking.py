"""Laws of patches, positions and masks."""

import math

import pytest
import torch
from einops import rearrange

from mae.masking import mask_of, put, random_masking, take
from mae.patches import patchify, sincos_positions, unpatchify

RATIOS = (0.25, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95)


def noise_of(b: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, n, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grid", [(2, 3), (5, 1), (1, 7)])
@pytest.mark.parametrize("patch_size", [1, 2, 5])
def test_unpatchify_inverts_patchify(channels, grid, patch_size):
    images = torch.randn(2, channels, grid[0] * patch_size, grid[1] * patch_size)
    patches = patchify(images, patch_size)
    assert patches.shape == (2, grid[0] * grid[1], patch_size**2 * channels)
    assert unpatchify(patches, grid, patch_size).equal(images)
    assert patchify(unpatchify(patches, grid, patch_size), patch_size).equal(patches)


def test_patches_run_by_rows_and_hold_pixels_with_the_channel_last():
    images = torch.randn(1, 3, 2 * 5, 3 * 5)
    patches = patchify(images, 5)
    for row in range(2):
        for column in range(3):
            window = images[0, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]  # c p p
            assert patches[0, 3 * row + column].equal(window.permute(1, 2, 0).flatten())


@pytest.mark.parametrize(("width", "grid"), [(8, (2, 3)), (12, (5, 1)), (768, (3, 7))])
def test_positions_are_the_papers(width, grid):
    """`get_2d_sincos_pos_embed` of the paper's code, a number at a time: x in the first half, then y."""
    quarter = width // 4
    expected = torch.empty(grid[0] * grid[1], width, dtype=torch.float64)
    for row in range(grid[0]):
        for column in range(grid[1]):
            angles = [[place / 10000 ** (k / quarter) for k in range(quarter)] for place in (column, row)]
            parts = [function(a) for half in angles for function in (math.sin, math.cos) for a in half]
            expected[row * grid[1] + column] = torch.tensor(parts, dtype=torch.float64)
    positions = sincos_positions(width, grid)
    assert positions.dtype == torch.float32
    torch.testing.assert_close(positions, expected.float(), rtol=0, atol=1e-6)


def test_positions_differ_everywhere():
    positions = sincos_positions(16, (5, 7))
    assert len({tuple(row.tolist()) for row in positions}) == 35


# ---------------------------------------------------------------- masking


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("n", [2, 3, 5, 7, 9, 16, 196, 256])
def test_as_many_patches_stay_as_in_the_papers_code(n, ratio):
    keep, masked = random_masking(noise_of(3, n), ratio)
    assert keep.shape == (3, min(max(int(n * (1 - ratio)), 1), n - 1))
    assert keep.shape[1] + masked.shape[1] == n
    both = torch.cat([keep, masked], dim=1).sort(dim=1).values
    assert both.equal(torch.arange(n).expand(3, n))


def test_the_papers_mask_keeps_49_of_196():
    assert random_masking(noise_of(1, 196), 0.75)[0].shape == (1, 49)


def test_lowest_noise_is_kept():
    noise = noise_of(5, 7)
    keep, masked = random_masking(noise, 0.6)
    assert (noise.gather(1, keep).amax(1) < noise.gather(1, masked).amin(1)).all()


def test_ties_are_broken_by_place():
    keep, masked = random_masking(torch.zeros(2, 5), 0.6)
    assert keep.tolist() == [[0, 1]] * 2
    assert masked.tolist() == [[2, 3, 4]] * 2


def test_every_patch_is_masked_equally_often():
    _, masked = random_masking(noise_of(4000, 10), 0.7)
    share = torch.bincount(masked.flatten(), minlength=10) / 4000
    assert (share - 0.7).abs().max() < 5 * (0.21 / 4000) ** 0.5


def test_kept_tokens_return_to_their_places():
    tokens = torch.randn(3, 7, 5)
    keep, masked = random_masking(noise_of(3, 7), 0.5)
    empty = torch.full_like(tokens, torch.nan)
    assert put(put(empty, keep, take(tokens, keep)), masked, take(tokens, masked)).equal(tokens)
    back = put(empty, keep, take(tokens, keep))
    assert back.isnan().any(-1).float().equal(mask_of(masked, 7))
    assert empty.isnan().all()  # a copy was made


def test_take_agrees_with_a_loop():
    tokens, indices = torch.randn(2, 7, 3), torch.tensor([[6, 0, 3], [1, 1, 5]])
    expected = torch.stack([torch.stack([tokens[b, i] for i in indices[b]]) for b in range(2)])
    assert take(tokens, indices).equal(expected)


def test_mask_is_one_exactly_where_hidden():
    mask = mask_of(torch.tensor([[4, 0], [1, 2]]), 5)
    assert mask.tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]


def test_masking_an_image_leaves_the_kept_pixels_alone():
    images = torch.randn(2, 1, 6, 10)
    keep, masked = random_masking(noise_of(2, 15), 0.75)
    patches = patchify(images, 2)
    shown = unpatchify(put(patches, masked, torch.zeros(2, 12, 4)), (3, 5), 2)
    hidden = rearrange(mask_of(masked, 15), "b (h w) -> b 1 h w", h=3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert shown.equal(images * (1 - hidden))
    assert keep.shape[1] == 3
