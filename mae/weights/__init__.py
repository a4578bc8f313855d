"""Exchange of weights with Hugging Face, facebookresearch/mae and timm; nothing is dropped in silence.

The way in, for a tensor of a file:

    files.py                    the file or folder → names and tensors; no code in it is run
    state_dicts.py              wrappers and prefixes off → StateDict: a model's tensors by its program's names
    huggingface.py, timm.py     what the file says besides the tensors → Facts
    layouts.py                  their name and layout → ours: a Translation, which notes what it did
    source.py                   Translation + Facts → Source: the weights, and the model they belong to
    load.py                     Source + Target (what is wished for) → MaskedAutoencoder, with a Report on every tensor
    adapt.py                    three channels → grey, one grid of positions → another

`start.py` does this for `model.init`: it finds the program that wrote a file, and gives the config the file's sizes.
`save.py` is the way back, with the same tables of `layouts.py`.
"""

from mae.weights.account import Report
from mae.weights.load import load_facebook, load_huggingface, load_timm
from mae.weights.save import save_encoder, save_huggingface
from mae.weights.source import Target
from mae.weights.start import is_foreign, resolve, starting_point, without_weights

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
    "without_weights",
]
