"""What tests take from the built-in world, in one place: a caption, prompts that are none, and a clip that is easily
read and edited."""

from pathlib import Path
from random import Random

import numpy as np

from v2edit.metrics.attributes import Read, visible_pixels
from v2edit.primitives.captions import EXAMPLE, caption
from v2edit.primitives.edits import Edit, EditTruth, sample_edit
from v2edit.primitives.questions import scene_labels
from v2edit.primitives.sample import write_sample
from v2edit.prompts import PromptPair

BALL = caption(EXAMPLE)  # a big red ball in the middle
FOREIGN = PromptPair("a fox in the wood", "a hare in the wood")

# "make the red cone green": it hops alone in the back while the camera comes nearer. The classifier is sure of all that
# captions name, and an edit of four steps does it.
EASY_SEED, EASY_KIND = 75, "recolour"


def easy_edit() -> Edit:
    return sample_edit(Random(EASY_SEED), EASY_KIND)


def write_easy_sample(folder: Path) -> None:
    """Write the easy edit as `v2edit sample` does."""
    write_sample(EASY_SEED, folder, EASY_KIND)


def perfect_reader(edit: Edit, clips: EditTruth) -> Read:
    """Return a classifier that errs in nothing: it knows the true edited clip, and takes all else for the source."""
    labels = [
        np.array(scene_labels(scene, visible_pixels(clip.coverage)))
        for scene, clip in ((edit.source, clips.source), (edit.target, clips.target))
    ]
    return lambda frames: labels[np.array_equal(frames, clips.target.frames)]
