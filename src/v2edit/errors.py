"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake of the user's that one line explains."""
