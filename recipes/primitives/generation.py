"""Measure free generation: what prompts name is obeyed, and what they leave out is not frozen to one value.

    python -m recipes.primitives.export
    python -m recipes.primitives.generation --count 200 [--sheet sheet.png]

Fresh prompts, which name as much as those of training do, to clips by the plain diffusers pipeline; the classifier
tells what each shows. A prompt's objects are matched with those shown where it lets them stand, so that as many of its
words as possible are right. Beside each share stands that of the renders of the same scenes, the classifier's own
ceiling, and the share of what it reads rightly off those renders, as the benchmark counts. The entropy of what is not
named is that of the answers, in bits, beside the scenes' own.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import CogVideoXPipeline
from scipy.optimize import linear_sum_assignment

from recipes.primitives.classifier import load_classifier
from recipes.primitives.clips import FRAMES, HEIGHT, WIDTH
from recipes.primitives.export import MODEL
from recipes.primitives.text import sample_caption
from recipes.primitives.training import choose_device, write_sheet
from v2edit.primitives.captions import TEXT_LENGTH, Named
from v2edit.primitives.questions import NONE, OF_OBJECT, OF_SCENE
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import Object, Scene, sample_scene

FIRST_SEED = 2_500_000_000  # of no training, tuning or reporting
AT_ONCE = 10
Fact = tuple[str, bool, str, str]  # a field, whether the prompt names it, the scene's own value, and the one shown
MISSING = "missing"  # instead of the value of an object that is not there
A_HAT = "a hat"  # of any colour
OBJECT_FIELDS = {name: value for name, (_, value) in OF_OBJECT.items() if name not in ("tone", "angle")}


def match_objects(asked: Scene, named: Named, shown: Scene) -> list[tuple[Object, frozenset[str], Object | None]]:
    """Return the objects that a prompt mentions, what it names of each, and the object shown for it."""
    mentioned = [(o, names) for o, names in zip(asked.objects, named.objects, strict=True) if names is not None]
    if not shown.objects:
        return [(o, names, None) for o, names in mentioned]
    agreement = np.array([[_agreement(o, names, other) for other in shown.objects] for o, names in mentioned])
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    found = {r: shown.objects[c] for r, c in zip(rows, columns, strict=True) if agreement[r, c] >= 0}
    return [(o, names, found.get(k)) for k, (o, names) in enumerate(mentioned)]


def _agreement(obj: Object, names: frozenset[str], other: Object) -> float:
    """Return how many of the words about an object are true of another; -1 where it stands elsewhere."""
    if any(field in names and getattr(obj, field) != getattr(other, field) for field in ("place", "row")):
        return -1.0
    fields = [
        "shape",
        "copies",
        *(field for field in ("colour", "size", "motion", "material", "hat") if field in names),
    ]
    return sum(getattr(obj, field) == getattr(other, field) for field in fields) / len(fields)


def facts_of(asked: Scene, named: Named, shown: Scene) -> Iterator[Fact]:
    """Yield what a clip that shows one scene says of a prompt about another, fact by fact."""
    pencil = asked.style == "pencil"  # which shows no colours
    for obj, names, other in match_objects(asked, named, shown):
        yield "there", True, "yes", "no" if other is None else "yes"
        for field, value in OBJECT_FIELDS.items():
            says = field in ("shape", "copies") or field in names
            if (own := value(obj)) is None or (pencil and field in ("colour", "hat")):
                continue
            seen = MISSING if other is None else (value(other) or "plain")
            if field == "hat" and says and "hat colour" not in names:
                own, seen = A_HAT, seen if seen in (MISSING, NONE) else A_HAT
            yield field, says, own, seen
    for field, (_, value) in OF_SCENE.items():
        if not (pencil and field in ("floor", "sky", "light", "balloon")):
            own, other = value(asked), value(shown)
            assert own is not None and other is not None
            says = field in named.scene and (field != "balloon" or "balloon colour" in named.scene)
            yield field, says, own, other


def entropy(values: list[str]) -> float:
    """Return the entropy of the values that were counted, in bits."""
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * math.log2(share) for share in shares)


def as_table(shown: list[Fact], rendered: list[Fact]) -> str:
    """Return, of each field, the share of named values that are right, of generated clips, of renders, and of generated
    clips where those of the renders are; and the entropy of unnamed ones, of generated clips and of the scenes, as
    Markdown. The facts are of the same prompts, in the same order."""
    lines = [
        "| | named | obeyed | of renders | obeyed where readable | unnamed | entropy, bits | of the scenes |",
        "|---|" + "---:|" * 7,
    ]
    groups: dict[str, tuple[list[Fact], list[Fact]]] = defaultdict(lambda: ([], []))
    for facts, k in ((shown, 0), (rendered, 1)):
        for fact in facts:
            groups[fact[0]][k].append(fact)
    for field, (ours, theirs) in groups.items():
        named, left = [f for f in ours if f[1]], [f for f in ours if not f[1] and f[3] != MISSING]
        obeyed, readable = (np.array([f[2] == f[3] for f in facts if f[1]]) for facts in (ours, theirs))
        cells = [f"{len(named)}", "", "", "", f"{len(left)}", "", ""]
        if named:
            shares = [obeyed, readable, obeyed[readable]]
            cells[1:4] = [f"{100 * share.mean():.0f} %" if len(share) else "" for share in shares]
        if left:
            cells[5:] = [f"{entropy([f[3] for f in left]):.2f}", f"{entropy([f[2] for f in left]):.2f}"]
        lines.append(f"| {field} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@torch.no_grad()
def generate(pipeline: CogVideoXPipeline, prompts: list[str], steps: int, guidance: float, seed: int) -> np.ndarray:
    """Generate a clip of each prompt, uint8 [N, T, H, W, 3]."""
    autocast = choose_device()[1]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        clips = pipeline(
            prompts, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=steps, guidance_scale=guidance,
            output_type="np", max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(seed),
        ).frames  # fmt: skip
    return (clips * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--sheet", type=Path, help="a PNG of the first clips; their prompts go beside it")
    options = parser.parse_args()
    pipeline = CogVideoXPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    seeds = range(FIRST_SEED, FIRST_SEED + options.count)
    scenes = [sample_scene(Random(seed)) for seed in seeds]
    told = [sample_caption(Random(f"{seed} named"), scene) for seed, scene in zip(seeds, scenes, strict=True)]
    prompts, named = [text for text, *_ in told], [names for _, names, _ in told]
    clips = np.concatenate(
        [
            generate(pipeline, prompts[k : k + AT_ONCE], options.steps, options.guidance, k)
            for k in range(0, options.count, AT_ONCE)
        ]
    )
    classifier, shown, rendered = load_classifier(), [], []
    for scene, names, clip in zip(scenes, named, clips, strict=True):
        shown += facts_of(scene, names, classifier.classify(clip))
        render = render_clip(scene, FRAMES, HEIGHT, WIDTH).frames
        rendered += facts_of(scene, names, classifier.classify(render))
    print(as_table(shown, rendered))
    print(f"\n{options.count} prompts, {options.steps} steps, guidance {options.guidance:g}")
    if options.sheet:
        write_sheet([clip[::3] for clip in clips[:16]], options.sheet)
        options.sheet.with_suffix(".txt").write_text("\n".join(prompts[:16]) + "\n")


if __name__ == "__main__":
    main()
