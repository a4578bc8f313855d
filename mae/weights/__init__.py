"""Exchange of weights with Hugging Face, facebookresearch/mae and timm; nothing is dropped in silence."""

from mae.weights.files import is_foreign
from mae.weights.load import load_facebook, load_huggingface, load_timm
from mae.weights.report import Report
from mae.weights.save import save_encoder, save_huggingface
from mae.weights.source import Target
from mae.weights.start import resolve, starting_point

__all__ = [
    "Report",
    "Target",
    "is_foreign",
    "load_facebook",
    "load_huggingface",
    "load_timm",
    "resolve",
    "save_encoder",
    "save_huggingface",
    "starting_point",
]
