"""Video in and out through PyAV: the frames that a player shows, and files that any player plays.

Frames are numpy uint8 [T, H, W, 3], RGB, everywhere. `write` preserves what `read` returns: the frame count, the frame
rate, the timestamps, the duration and the sound.
"""

from v2edit.video.clip import Video
from v2edit.video.reading import read
from v2edit.video.sheets import contact_sheet, write_compare
from v2edit.video.writing import check_format, open_edit, open_folder, write, write_frames, write_still

__all__ = [
    "Video", "check_format", "contact_sheet", "open_edit", "open_folder", "read", "write", "write_compare",
    "write_frames", "write_still",
]  # fmt: skip
