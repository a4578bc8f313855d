"""What users can mend themselves. Light: commands import it before anything else."""


class UserError(ValueError):
    """A mistake the user can mend: one line, `place: found X, expected Y`; commands exit with 2."""


def printable(text: object, longest: int = 200) -> str:
    """A stranger's name as it may stand in a line: nothing in it ends the line or moves the cursor, and it is short."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))
    return shown if len(shown) <= longest else shown[:longest] + "…"
