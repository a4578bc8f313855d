"""What users can mend themselves. Light: commands import it before anything else."""


class UserError(ValueError):
    """A mistake the user can mend: one line, `place: found X, expected Y`; commands exit with 2."""
