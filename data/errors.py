"""What users can mend themselves. Light: commands import it before anything else."""

LONGEST = 2000  # characters of a message: a damaged table may hold a field of megabytes


class UserError(ValueError):
    """A mistake the user can mend: one line, `place: found X, expected Y`; commands exit with 2.

    What it quotes of files is made printable and short, so that it stays a line and tells a terminal nothing.
    """

    def __init__(self, message: str):
        super().__init__(shortened(printable(message)))


def printable(text: str) -> str:
    """The text with escapes, such as \\n and \\u200b, for what would not be seen as it is."""
    if text.isprintable():
        return text
    shown = [sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text]
    return "".join(shown)


def shortened(text: str) -> str:
    """A text of any length without its middle; how it begins and ends says what is wrong."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 1
    return f"{text[:half]}…{text[-half:]}"
