"""Image files from outside: whatever their name and header claim."""

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

# An explicit list: other formats that Pillow knows run programs (PostScript) or follow references.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Raised by Pillow's decoders for a broken file, beside OSError.
DECODER_ERRORS = (ArithmeticError, EOFError, LookupError, SyntaxError, TypeError, ValueError, struct.error, zlib.error)
MAX_PIXELS = 2**26  # of one picture: 8192x8192


@contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """Open an image file without decoding it. Raises `UserError`, also while it is decoded inside the context, for a
    file that is no image, is damaged or is larger than 8192x8192."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"{path} is too large an image: {image.width}x{image.height}")
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path} is too large an image") from None
    except OSError as error:
        reason = error.strerror or "damaged, or of an unknown kind"
        raise UserError(f"{path} is not an image that can be read ({reason})") from None
    except DECODER_ERRORS as error:
        raise UserError(f"{path} is not an image that can be read ({type(error).__name__})") from None
