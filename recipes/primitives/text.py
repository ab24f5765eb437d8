"""Step 4: train the text encoder on captions alone, before anything is generated, and make its tokenizer.

    python -m recipes.primitives.text

A text encoder that learns from the diffusion loss alone does not learn which of several objects a word is about
(recipes/primitives/LOG.md); this one is taught that by itself and then frozen, as CogVideoX's is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from recipes.primitives.training import OUT
from v2edit.primitives.captions import (
    PARTS,
    TEXT_LENGTH,
    VOCABULARY,
    Named,
    Wording,
    caption,
    caption_parts,
    count_words,
    describe_object,
    sample_named,
    sample_wording,
)
from v2edit.primitives.scene import (
    CAMERAS,
    COLOURS,
    FLOORS,
    LIGHTS,
    MATERIALS,
    MOTIONS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    SKIES,
    STYLES,
    Object,
    Scene,
    sample_scene,
)

WIDTH = 128
DROPPED = 0.1
UNNAMED = "unnamed"
# What each token is to tell: which part of the caption it belongs to, and all that this part says. (The colour of a
# floor that is not told from that of an object is taken for one.)
FIELDS: dict[str, tuple[str, ...]] = {
    "part": (UNNAMED, *PARTS), "shape": (UNNAMED, *SHAPES), "copies": (UNNAMED, "1", "3"),
    "colour": (UNNAMED, *COLOURS), "size": (UNNAMED, *SIZES), "place": (UNNAMED, *PLACES), "row": (UNNAMED, *ROWS),
    "motion": (UNNAMED, *MOTIONS), "material": (UNNAMED, *MATERIALS[1:]), "hat": (UNNAMED, "a hat", *COLOURS),
    "floor": (UNNAMED, *FLOORS), "sky": (UNNAMED, *SKIES), "light": (UNNAMED, *LIGHTS),
    "style": (UNNAMED, *STYLES[1:]), "camera": (UNNAMED, *CAMERAS),
}  # fmt: skip
PADDING_WEIGHT = 0.1  # of the loss, of tokens that are there to fill the length


def new_tokenizer() -> T5Tokenizer:
    """Build a tokenizer with one token per word of the grammar; other words split into letters."""
    letters = [chr(c) for c in range(33, 127)]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    scores += [(f"▁{word}", -1.0) for word in sorted(VOCABULARY) if word.isalpha()]
    scores += [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocab=list(dict(scores).items()), extra_ids=0, model_max_length=TEXT_LENGTH)


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=WIDTH, d_kv=32, num_heads=4, d_ff=256, num_layers=3,
                 num_decoder_layers=0, feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1)
    )  # fmt: skip


def sample_caption(rng: Random, scene: Scene, full: float = 0.0) -> tuple[str, Named, Wording]:
    """Sample a caption of a scene, what it names and its wording; none is longer than the text encoder reads. A share
    of `full` names everything, where that is not too long, the others as much as `sample_named` draws."""
    names_all = rng.random() < full
    while True:
        named = sample_named(rng, scene, 1.0 if names_all else None)
        wording = sample_wording(rng)
        text = caption(scene, named, wording)
        if count_words(text) < TEXT_LENGTH:
            return text, named, wording
        names_all = False


def tokenise(tokenizer: T5Tokenizer, texts: list[str]) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """Return token ids [B, L] and the characters of each token."""
    tokens = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt",
                       return_offsets_mapping=True)  # fmt: skip
    return tokens.input_ids, tokens.offset_mapping.tolist()


def object_values(obj: Object, named: frozenset[str]) -> dict[str, str]:
    """Return what a phrase says of an object, by field."""
    values = {field: getattr(obj, field) for field in FIELDS if field in named and field != "hat"}
    if obj.material == "gold":
        values.pop("colour", None)
    if "hat" in named:
        values["hat"] = str(obj.hat) if "hat colour" in named else "a hat"
    return values | {"part": "objects", "shape": obj.shape, "copies": str(obj.copies)}


def part_values(scene: Scene, part: str, named: frozenset[str]) -> dict[str, str]:
    """Return what a part of a caption that is about no object says, by field."""
    values = {"part": part}
    if part != "balloon":
        return values | {part: getattr(scene, part)}
    assert scene.balloon is not None
    values |= {"colour": scene.balloon.colour} if "balloon colour" in named else {}
    return values | ({"place": scene.balloon.place} if "balloon place" in named else {})


@dataclass(frozen=True)
class Phrase:
    """A phrase of a caption: the characters from `start` to `end`, the object that it is about (the balloon comes after
    the last, -1: none), and what it says by field."""

    start: int
    end: int
    owner: int
    values: dict[str, str]

    def holds(self, token: tuple[int, int]) -> bool:
        """Return whether a token, from one character to another, lies in it."""
        return self.start <= token[0] < token[1] <= self.end


def phrases_of(scene: Scene, named: Named, wording: Wording, text: str) -> list[Phrase]:
    """Return the phrases of a caption."""
    parts, phrases, starts = caption_parts(scene, named, wording), [], {}
    for part in filter(parts.get, wording.order):  # "a ball" also begins "a balloon", which may come first
        starts[part] = sum(len(parts[before]) + len(", ") for before in starts)
    start = starts["objects"]
    for k, (obj, names) in enumerate(zip(scene.objects, named.objects, strict=True)):
        if names is not None:
            end = start + len(describe_object(obj, names, wording))
            phrases.append(Phrase(start, end, k, object_values(obj, names)))
            start = end + len(wording.connective)
    for part, phrase in parts.items():
        if part != "objects":
            start, owner = starts[part], len(scene.objects) if part == "balloon" else -1
            assert text.startswith(phrase, start), (text, phrase)
            phrases.append(Phrase(start, start + len(phrase), owner, part_values(scene, part, named.scene)))
    return phrases


def phrase_labels(phrases: list[Phrase], offsets: list[tuple[int, int]]) -> list[list[int]]:
    """Return for each token of a caption what its phrase says, an index for each of FIELDS."""
    rows = [[0] * len(FIELDS) for _ in offsets]
    for phrase in phrases:
        labels = [options.index(phrase.values.get(field, UNNAMED)) for field, options in FIELDS.items()]
        rows = [labels if phrase.holds(token) else row for token, row in zip(offsets, rows, strict=True)]
    return rows


def token_owners(phrases: list[Phrase], offsets: list[tuple[int, int]]) -> list[int]:
    """Return for each token of a caption the object that its phrase is about, -1 for none."""
    return [max((p.owner for p in phrases if p.holds(token)), default=-1) for token in offsets]


class FieldHeads(nn.Module):
    """Reads fields off embeddings: a direction for each answer. Logits are cosines at a fixed scale, so that large
    weights cannot make up for small differences."""

    SCALE = 16.0

    def __init__(self, answers: dict[str, int], width: int) -> None:
        super().__init__()
        self.heads = nn.ParameterDict({k: nn.Parameter(torch.randn(n, width)) for k, n in answers.items()})

    def logits(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return the logits [..., answers] of each field, of embeddings [..., D]."""
        unit = self.SCALE * F.normalize(embeddings, dim=-1)
        return {field: unit @ F.normalize(head, dim=-1).T for field, head in self.heads.items()}


class TextObjective(FieldHeads):
    """Training objective in place of pretraining the text encoder: each token's embedding predicts its word and every
    field of the part of the caption that it belongs to, "unnamed" among the answers."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__({"word": vocabulary, **{field: len(values) for field, values in FIELDS.items()}}, WIDTH)

    def forward(self, text: Tensor, ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of text [B, L, D], ids [B, L] and labels int64 [B, L, fields], and the share of right
        answers by field."""
        told = self.logits(text)
        right = {"word": ids} | {f: labels[..., k] for k, f in enumerate(FIELDS)}
        weight = torch.where(ids == 0, PADDING_WEIGHT, 1.0).flatten()
        losses, accuracy = {}, {}
        for field, answer in right.items():
            logits = told[field].flatten(0, 1)
            costs = F.cross_entropy(logits, answer.flatten(), reduction="none")
            losses[field] = (costs * weight).sum() / weight.sum()
            accuracy[field] = float((logits.argmax(-1) == answer.flatten())[ids.flatten() != 0].float().mean())
        word = losses.pop("word")
        return word + torch.stack(list(losses.values())).mean(), accuracy


def train_text_encoder(steps: int = 1500, scenes: int = 20_000) -> tuple[T5Tokenizer, T5EncoderModel]:
    """Train a text encoder by `TextObjective` (some minutes of one core)."""
    tokenizer, rng = new_tokenizer(), Random(0)
    encoder, objective = new_text_encoder(len(tokenizer)), TextObjective(len(tokenizer))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], betas=(0.9, 0.98), weight_decay=0.0)
    pool = [sample_scene(rng) for _ in range(scenes)]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.5 * steps))
        batch = rng.choices(pool, k=96)
        captions = [sample_caption(rng, scene) for scene in batch]
        ids, offsets = tokenise(tokenizer, [text for text, *_ in captions])
        labels = [
            phrase_labels(phrases_of(scene, named, wording, text), places)
            for scene, (text, named, wording), places in zip(batch, captions, offsets, strict=True)
        ]
        loss, accuracy = objective(encoder(ids)[0], ids, torch.tensor(labels))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            worst = min(accuracy.items(), key=lambda entry: entry[1])
            print(json.dumps({"step": step + 1, "loss": round(loss.item(), 4), "worst": worst}), flush=True)
    return tokenizer, encoder.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer, encoder = train_text_encoder(options.steps)
    encoder.save_pretrained(OUT / "text/text_encoder")
    tokenizer.save_pretrained(OUT / "text/tokenizer")


if __name__ == "__main__":
    main()
