"""Results as lossless video files (FFV1 in Matroska): a sixth of the frames' size, and any player shows them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from v2edit import video
from v2edit.files import atomic_path
from v2edit.video.stream import Frames


def write_lossless(frames: Frames, path: Path, fps: Fraction) -> None:
    """Write uint8 frames [T, H, W, 3] to a file that `read_lossless` gives back to the bit; the same frames give the
    same file."""
    import av

    same = {"fflags": "+bitexact"}  # no number that is drawn anew
    with atomic_path(path) as part, av.open(str(part), "w", format="matroska", options=same) as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(format="bgr0")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def read_lossless(path: Path) -> Frames:
    """Return the frames of a file of `write_lossless`, uint8 [T, H, W, 3], of a long one as a stream."""
    return video.read(path).frames
