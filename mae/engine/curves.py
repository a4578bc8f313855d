"""What TensorBoard calls the numbers of a run, and what each of them is.

metrics.jsonl has the same names in both stages, because its reader knows which run it belongs to. On the board the
curves of all runs below a --logdir share a page, so there the losses of reconstruction and classifier need two names.
"""

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import scalar

LOSSES = {
    "mae": (
        "reconstruction_loss",
        "mean squared error of the hidden patches' pixels, normalised or not as the config says",
    ),
    "classifier": (
        "classification_loss",
        "binary cross-entropy of the logits; ln 2 = 0.693 if every image gets 0.5",
    ),
}
ABOUT = {
    "train/gradient_norm": "norm of all gradients of an update, before clipping; mean since the previous point",
    "train/learning_rate": "learning rate of the step; layers with a rate of their own have a fraction of it",
    "train/skipped_updates": "updates skipped so far, because loss or gradient was not finite",
    "train/images_per_second": "training images per second since the previous point, waiting for data included",
    "train/data_wait_share": "share of that time spent waiting for images: near 1, reading is the bottleneck",
    "train/peak_memory_gb": "most memory in use so far: allocated on a GPU, else resident in this process",
    "validate/auc": "area under the ROC curve, validation images",
    "validate/accuracy": "share of validation images classified correctly at the threshold chosen on them",
    "probe/knn_auc": "AUC of nearest neighbours in the frozen features, validation images",
    "probe/logistic_auc": "AUC of a logistic regression on the frozen features, validation images",
    "epoch": "epochs completed",
}
WHERE = {
    "train": "training images, as augmented and masked; mean since the previous point",
    "epoch": "training images; mean over the epoch",
    "validate": "validation images, at the epoch's end",
}
Described = tuple[str, str]  # a tag, and what it is


def described(name: str, kind: str) -> Described:
    """The board's tag and description for a logged number of a run of that kind."""
    best = name.startswith("best/")
    bare = name.removeprefix("best/")
    group, _, last = bare.partition("/")
    about = ABOUT.get(bare, "")
    if kind in LOSSES and last in ("loss", "train_loss"):
        loss, meaning = LOSSES[kind]
        bare = f"{group}/{last.removesuffix('loss')}{loss}"
        about = f"{meaning}; {WHERE[group]}"
    if best:
        return f"best/{bare}", f"of the weights in best.pt: {about}" if about else ""
    return bare, about


def draw_point(board: SummaryWriter, tag: str, about: str, value: float, step: int) -> None:
    """A point of a curve, with the description that TensorBoard shows on request."""
    summary = scalar(tag, value)
    summary.value[0].metadata.plugin_data.plugin_name = "scalars"
    summary.value[0].metadata.summary_description = about
    writer = board.file_writer
    assert writer is not None
    writer.add_summary(summary, step)
