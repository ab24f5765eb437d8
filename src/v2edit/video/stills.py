"""Image files, opened with care: an ending proves nothing, and a header may claim any size."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Named one by one: others that Pillow knows run programs (PostScript) or follow references.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# What Pillow's decoders raise over a broken file, beside OSError.
STUMBLES = (ArithmeticError, EOFError, LookupError, SyntaxError, TypeError, ValueError, struct.error, zlib.error)
MOST_PIXELS = 2**26  # of one picture: 8192x8192


@contextmanager
def opened_image(path: Path) -> Iterator[Image]:
    """An image file, open and not yet decoded; UserError for one that is none, or is damaged or larger than 8192x8192,
    raised while it is decoded inside the context, too."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise UserError(f"{path} is too large an image: {image.width}x{image.height}")
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path} is too large an image") from None
    except OSError as error:
        reason = error.strerror or "damaged, or of an unknown kind"
        raise UserError(f"{path} is not an image that can be read ({reason})") from None
    except STUMBLES as error:
        raise UserError(f"{path} is not an image that can be read ({type(error).__name__})") from None
