"""Step 3: encode clips and stills to latents, once.

    python -m recipes.world.encode

Writes out/latents/clips/00000.npy ...: float16 [500, F, C, h, w], the posterior's mean times the scaling factor, in the
transformer's layout, and the same of stills (F = 1). Finished shards that are newer than the autoencoder are not
encoded again.
"""

from __future__ import annotations

import argparse

from recipes.primitives.encode import encode_shards
from recipes.world.clips import OUT, SHARDS, find_trained


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for kind in SHARDS:
        encode_shards(find_trained("vae"), OUT / kind, OUT / "latents" / kind)


if __name__ == "__main__":
    main()
