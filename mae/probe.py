"""Probes of frozen features: is the encoder learning anything that tells images apart?

Targets are integers, whatever they mean; NaN where unknown. Features of labelled training images are looked up
(kNN) or fitted (logistic regression) and scored on validation images. Training is not influenced.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from data.loader import Loader
from mae.encoder import Encoder
from mae.engine import distributed
from mae.engine.optim import autocast

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018, as DINO uses them


def probe(encoder: Encoder, train: Loader, held_out: Loader, device: torch.device, precision: str) -> dict[str, float]:
    """Areas under the ROC curve on `held_out` of kNN and logistic regression; {} where a part has one class only."""
    parts = [_features_and_targets(encoder, loader, device, precision) for loader in (train, held_out)]
    (known, targets), (asked, truth) = parts
    if min(len(np.unique(targets)), len(np.unique(truth))) < 2:
        return {}
    scores = {"knn": knn_scores(known, targets, asked), "logistic": logistic_scores(known, targets, asked)}
    return {f"probe/{name}_auc": area(truth, score) for name, score in scores.items()}


def _features_and_targets(
    encoder: Encoder, loader: Loader, device: torch.device, precision: str
) -> tuple[Tensor, np.ndarray]:
    """Mean patch tokens (n d) and targets (n) of the loader's images that have one."""
    pooled, targets = [torch.empty(0, encoder.width)], [torch.empty(0)]
    for batch in loader.epoch():
        images = encoder.standardize(batch.to(device).images)
        with autocast(device, precision):
            pooled.append(encoder(images)[:, 1:].mean(1).float().cpu())  # b d
        targets.append(batch.labels)
    features, labels = (distributed.all_gather_rows(torch.cat(part)) for part in (pooled, targets))
    known = ~labels.isnan()
    return features[known], labels[known].numpy().astype(np.int64)


def knn_scores(known: Tensor, targets: np.ndarray, asked: Tensor) -> np.ndarray:
    """Shares (n classes) of the classes among each image's neighbours, weighted by exp(cosine / temperature)."""
    known, asked = (F.normalize(part, dim=1) for part in (known, asked))
    classes, codes = np.unique(targets, return_inverse=True)
    votes = F.one_hot(torch.from_numpy(codes), len(classes)).float()  # m classes
    near = (asked @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
    weights = ((near.values - near.values[:, :1]) / TEMPERATURE).exp()  # n k
    shares = torch.einsum("n k, n k c -> n c", weights, votes[near.indices])
    return (shares / weights.sum(1, keepdim=True)).numpy()


def logistic_scores(known: Tensor, targets: np.ndarray, asked: Tensor) -> np.ndarray:
    """Probabilities (n classes) by L2-regularised logistic regression on standardised features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return model.fit(known.numpy(), targets).predict_proba(asked.numpy())


def area(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: of the second of two classes, or the mean of one against the rest."""
    if scores.shape[1] == 2:
        return float(roc_auc_score(truth, scores[:, 1]))
    return float(roc_auc_score(truth, scores, multi_class="ovr"))
