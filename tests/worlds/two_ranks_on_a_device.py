"""What tests/cuda starts twice: two ranks that share a device by gloo. `two_ranks_on_a_device.py cpu|cuda`."""

import sys

import torch
import torch.distributed as dist
from trained_steps import batch_of, model_of

from mae.engine import distributed

DEVICE = torch.device(sys.argv[1])


def main() -> None:
    dist.init_process_group("gloo")
    try:
        buckets_leave_during_the_backward_pass()
        if DEVICE.type == "cuda":
            shared_statistics()
    finally:
        dist.destroy_process_group()


def buckets_leave_during_the_backward_pass() -> None:
    """The last layers' gradients are on their way before the first layers' are computed."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(512, 512) for _ in range(40)]  # 1 MB each: several buckets of 25
    model = torch.nn.Sequential(*layers).to(DEVICE)
    replica = distributed.data_parallel(model, DEVICE)
    events: list[str] = []

    def reduce(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        events.append("bucket")
        total = bucket.buffer().div_(2)
        work = dist.all_reduce(total, async_op=True).get_future()
        return work.then(lambda done: done.value()[0])

    replica.register_comm_hook(None, reduce)
    layers[0].weight.register_hook(lambda gradient: events.append("first layer"))
    for _ in range(3):  # the first backward pass has a single bucket; its order makes the later buckets
        events.clear()
        replica(torch.randn(3, 512, device=DEVICE)).square().mean().backward()
    assert events.count("bucket") > 1, events
    assert events.index("bucket") < events.index("first layer"), events

    # and both ranks have the same gradient
    gradient = layers[0].weight.grad
    other = gradient.clone()
    dist.broadcast(other, 0)
    assert other.equal(gradient)


def shared_statistics() -> None:
    """A ResNet's statistics and gradients are those of the whole batch."""
    torch.backends.cudnn.allow_tf32 = False
    batch = batch_of(8).to(DEVICE)
    whole = model_of("resnet").train().to(DEVICE)
    loss_of(whole, batch.images, batch.labels).backward()

    part = slice(distributed.rank(), None, 2)
    replica = distributed.data_parallel(model_of("resnet").train().to(DEVICE), DEVICE)
    loss_of(replica, batch.images[part], batch.labels[part]).backward()
    expected = dict(whole.named_parameters())
    for name, parameter in replica.module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-2, atol=1e-3, msg=name)
    statistics = dict(whole.named_buffers())
    for name, buffer in replica.module.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=1e-4, atol=1e-5, msg=name)


def loss_of(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(model.standardize(images))
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


if __name__ == "__main__":
    main()
