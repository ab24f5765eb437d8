"""What a prompt says of a scene."""

from itertools import product

from v2edit.primitives.parsing import parse_caption
from v2edit.primitives.scene import Scene


def says_nothing_wrong(prompt: str, scene: Scene) -> bool:
    """Tell whether the objects that a prompt names can each be another one of the scene."""
    told = parse_caption(prompt)
    fits = [
        {
            k
            for k, seen in enumerate(scene.objects)
            if (obj.shape, obj.copies) == (seen.shape, seen.copies)
            and all(
                bool(seen.hat) if f == "hat" else getattr(obj, f.split()[0]) == getattr(seen, f.split()[0])
                for f in names or ()
            )
        }
        for obj, names in zip(told.scene.objects, told.named.objects, strict=True)
    ]
    return any(len(set(pick)) == len(pick) for pick in product(*fits))
