"""Probes of frozen features: is the encoder learning anything that tells images apart?

Targets are integers, whatever they mean; NaN if unknown. kNN looks up the features of labelled training images, and
logistic regression is fitted to them. Both are scored on validation images. Training is not influenced.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from data.errors import NotFinite
from data.loader import Loader
from mae.encoder import Encoder
from mae.engine import distributed
from mae.engine.optim import autocast
from mae.engine.prefetch import on_device
from mae.settings import Precision

NEIGHBOURS = 20  # and the temperature: Wu et al. 2018, as DINO uses them
TEMPERATURE = 0.07


def probe(
    encoder: Encoder, train: Loader, held_out: Loader, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Areas under the ROC curve on `held_out` of kNN and logistic regression; {} if a part has only one class."""
    # known images, and those that are asked about
    features, targets = _features_and_targets(encoder, train, device, precision)
    asked, truth = _features_and_targets(encoder, held_out, device, precision)
    if len(np.unique(targets)) < 2 or len(np.unique(truth)) < 2:
        return {}

    knn = knn_scores(features, targets, asked)
    logistic = logistic_scores(features, targets, asked)
    return {"probe/knn_auc": area(truth, knn), "probe/logistic_auc": area(truth, logistic)}


def _features_and_targets(
    encoder: Encoder, loader: Loader, device: torch.device, precision: Precision
) -> tuple[Tensor, np.ndarray]:
    """Mean patch tokens (n d) and targets (n) of the loader's images that have one."""
    pooled = [torch.empty(0, encoder.width)]  # so that a rank without images has something to gather: no rows
    labels = [torch.empty(0)]
    for batch, moved in on_device(loader.epoch(), device):
        images = encoder.standardize(moved.images)  # b c h w
        with autocast(device, precision):
            tokens = encoder(images)  # b 1+n d
            pooled.append(tokens[:, 1:].mean(1).float().cpu())  # b d
        labels.append(batch.labels)

    # each rank has seen its share of the images
    features = distributed.all_gather_rows(torch.cat(pooled))  # n d
    if not features.isfinite().all():
        raise NotFinite("probe: found features that are not finite, expected numbers")
    targets = distributed.all_gather_rows(torch.cat(labels))  # n
    known = ~targets.isnan()
    return features[known], targets[known].numpy().astype(np.int64)


def knn_scores(known: Tensor, targets: np.ndarray, asked: Tensor) -> np.ndarray:
    """Shares (n classes) of the classes among each image's neighbours, weighted by exp(cosine / temperature)."""
    # each known image votes for its class
    classes, codes = np.unique(targets, return_inverse=True)
    votes = F.one_hot(torch.from_numpy(codes), len(classes)).float()  # m classes

    similarity = F.normalize(asked, dim=1) @ F.normalize(known, dim=1).T  # n m
    near = similarity.topk(min(NEIGHBOURS, len(known)), dim=1)

    # subtracting the nearest one's similarity changes no share and keeps exp in range
    weights = ((near.values - near.values[:, :1]) / TEMPERATURE).exp()  # n k
    shares = torch.einsum("n k, n k c -> n c", weights, votes[near.indices])  # n classes
    return (shares / weights.sum(1, keepdim=True)).numpy()


def logistic_scores(known: Tensor, targets: np.ndarray, asked: Tensor) -> np.ndarray:
    """Probabilities (n classes) by L2-regularised logistic regression on standardised features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return model.fit(known.numpy(), targets).predict_proba(asked.numpy())


def area(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: of the second of two classes; with more, the mean of each against the rest."""
    if scores.shape[1] == 2:
        return float(roc_auc_score(truth, scores[:, 1]))
    return float(roc_auc_score(truth, scores, multi_class="ovr"))
