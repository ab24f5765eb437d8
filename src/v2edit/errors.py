"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake of the user's that one line explains: whatever names and contents of files it quotes, its text has no
    line breaks and nothing that a terminal would obey."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
