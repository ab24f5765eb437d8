"""Measure the tokens that published prompt pairs share: the data behind the checks of generated prompts.

    python benchmarks/alignment.py ../shared/data/prompts/edit_prompts.jsonl --tokenizer zai-org/CogVideoX-5b

Each line of the file is a JSON object with `source` and `target`. The tokenizer is that of a video model (the built-in
one by default), or `trained`: T5 word pieces trained on the file itself, where no model can be downloaded. Pairs mixed
from different edits stand for useless answers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from v2edit import backbones
from v2edit.prompts.comparison import compare_prompts
from v2edit.prompts.lvlm import MIN_SHARED
from v2edit.prompts.tokens import PromptTokenizer

OFFSET = 57  # lines: more than one clip has edits


def train_tokenizer(texts: list[str], length: int = 226) -> PromptTokenizer:
    """A T5 tokenizer of 1000 word pieces."""
    from sentencepiece import SentencePieceTrainer  # pyright: ignore[reportAttributeAccessIssue]
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=f"{folder}/spiece", vocab_size=1000, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
        )  # fmt: skip
        return PromptTokenizer(T5Tokenizer.from_pretrained(folder, extra_ids=0), length)


def summarise(pairs: list[tuple[str, str]], tokenizer: PromptTokenizer) -> str:
    comparisons = [compare_prompts(source, target, tokenizer) for source, target in pairs]
    shares = np.array([one.shared_fraction for one in comparisons])
    quantiles = ", ".join(f"{q:.0%}: {np.quantile(shares, q):.2f}" for q in (0, 0.05, 0.1, 0.5, 0.95))
    long = sum(max(one.lengths) > one.max_tokens for one in comparisons)
    least = np.mean(shares < MIN_SHARED)
    return f"{len(pairs)} pairs, shared {quantiles}; {least:.1%} below {MIN_SHARED}; {long} overrun the text"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", default=backbones.BUILT_IN, help="a video model, or `trained`")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["source"], row["target"]) for row in rows if row.get("source") and row.get("target")]
    if options.tokenizer == "trained":
        tokenizer = train_tokenizer([text for pair in pairs for text in pair])
    else:
        tokenizer = backbones.read_info(backbones.find(options.tokenizer)).tokenizer
    print(f"published: {summarise(pairs, tokenizer)}")
    mismatched = [(source, target) for (source, _), (_, target) in zip(pairs, pairs[OFFSET:], strict=False)]
    print(f"mixed: {summarise(mismatched, tokenizer)}")


if __name__ == "__main__":
    main()
