"""Labels and scores of made-up cases, and their metrics by scikit-learn."""

import warnings

import numpy as np
from scipy.stats import norm
from sklearn import metrics as sk

EVERY = ("accuracy", "precision", "recall", "specificity", "f1", "auc", "average_precision", "brier")
SIZES = (1, 2, 3, 5, 7, 31, 200)


def sample(n, seed=0, levels=None, lift=1.0):
    """Labels and scores in [0, 1]; few levels make ties."""
    rng = np.random.default_rng([seed, n])
    labels = rng.integers(0, 2, n)
    scores = norm.cdf(rng.normal(size=n) + lift * (labels - 0.5))
    return labels, scores if levels is None else np.round(scores * levels) / levels


def by_sklearn(labels, scores, threshold):
    called = scores >= threshold
    both = len(set(labels.tolist())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a class is missing
        average_precision = sk.average_precision_score(labels, scores)
    return {
        "accuracy": sk.accuracy_score(labels, called),
        "precision": sk.precision_score(labels, called, zero_division=0),
        "recall": sk.recall_score(labels, called, zero_division=0),
        "specificity": sk.recall_score(labels, called, pos_label=0, zero_division=0),
        "f1": sk.f1_score(labels, called, zero_division=0),
        "auc": sk.roc_auc_score(labels, scores) if both else np.nan,
        "average_precision": average_precision,
        "brier": np.mean((scores - labels) ** 2),
    }
