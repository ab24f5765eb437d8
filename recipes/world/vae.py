"""Step 2: train the autoencoder, as `recipes/primitives` does.

    python -m recipes.world.vae --minutes 125 --batch 4

4x4 pixels and 4 frames to 16 values: an object is only some 25 pixels wide, and a latent must still hold its stripes.
Resumes from out/vae/state.pt; without one, and with `--from recipes/world/weights/vae`, from the autoencoder there.
"""

from __future__ import annotations

from recipes.primitives.vae import AutoencoderRecipe, new_autoencoder, parse_options, train
from recipes.world.clips import HEIGHT, OUT, WIDTH

RECIPE = AutoencoderRecipe(
    OUT,
    lambda: new_autoencoder((32, 64, 96), 16, HEIGHT, WIDTH),
    on_objects=0.75,
    weight=3.0,
    coverage=lambda x: (x > 0).float(),  # the channel names the object
)

if __name__ == "__main__":
    train(RECIPE, parse_options(__doc__, minutes=125))
