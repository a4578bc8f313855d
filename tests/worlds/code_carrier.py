"""A pickle that does something when it is loaded."""

import os
from pathlib import Path


class Code:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
