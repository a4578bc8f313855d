"""A 3 × 3 convolution is torch's, and no memory that nobody wrote reaches its gradient."""

import pytest
import torch
from torch import nn

from classify.models.resnet import build_resnet
from mae.convolution import Conv3x3


def leave_nan_in_freed_memory(like: torch.Tensor) -> None:
    junk = [torch.full_like(like, float("nan")) for _ in range(20)]
    del junk


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (2, 2), (5, 7)])
def test_it_is_the_convolution_of_torch(size, stride):
    torch.manual_seed(0)
    ours = Conv3x3(2, 3, stride, bias=True).double()
    theirs = nn.Conv2d(2, 3, 3, stride, padding=1).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(5, 2, *size, dtype=torch.float64)

    answers = [layer(images) for layer in (ours, theirs)]
    for answer in answers:
        answer.square().sum().backward()

    torch.testing.assert_close(*answers)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("height", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_what_sees_padding_alone_is_zero_in_16_bits(stride, height):
    layer = Conv3x3(64, 128, stride).bfloat16()
    answer = layer(torch.randn(3, 64, height, 1, dtype=torch.bfloat16))
    leave_nan_in_freed_memory(layer.weight.detach())

    answer.sum().backward()

    assert layer.weight.grad.isfinite().all()
    assert not layer.weight.grad[..., (0, 2)].any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_images_that_shrink_to_a_pixel_has_finite_gradients_in_16_bits(name):
    torch.manual_seed(0)
    model = build_resnet(name, stem="imagenet")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(3, 1, 8, 8))
    for weight in model.parameters():
        leave_nan_in_freed_memory(weight.detach().bfloat16())

    logits.float().sum().backward()

    assert [of for of, weight in model.named_parameters() if not weight.grad.isfinite().all()] == []
