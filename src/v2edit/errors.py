"""The one kind of error that is the user's to mend, and how others are told so that it can be."""

import re


class UserError(ValueError):
    """A mistake of the user's that one line explains."""


def shortage(error: BaseException) -> str | None:
    """What to try, in one line, where an error is for want of memory; None for any other."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; not worth loading torch to name it.
        return "out of memory; try --offload model, then --offload group, and --vae-tiling"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("allocate memory|not enough memory", str(error))
    ):
        return "out of memory; try a shorter video, and --vae-tiling"
    return None
