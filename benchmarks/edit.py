"""What one subtask costs: forwards, seconds and peak memory as a clip grows, and the FLOPs of CogVideoX-5b's.

    python benchmarks/edit.py                (the built-in model; some minutes)
    python benchmarks/edit.py --flops        (counted while the code runs on tensors without data: no weights, no GPU)

Seconds are those of a first subtask, coding included; memory is the process's peak (on a GPU: of its tensors), with
the model in it. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from random import Random

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from measure import peak_bytes
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from v2edit import backbones
from v2edit.attention import Replacement, replacement
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.registry import BUILT_IN_FOLDER
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.prompts import PromptPair
from v2edit.world.edits import sample_edit
from v2edit.world.render import render

# What zai-org publishes of CogVideoX-5b's transformer, where it differs from diffusers' own defaults.
PUBLISHED = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
FORWARDS = {"first": 130, "later": 170}  # of a subtask at 50 steps; tests/test_editor.py holds them


def measured(device: str, lengths: list[int], sides: list[int], steps: int) -> None:
    """The built-in model's first subtask, for clips of growing length, and of growing size."""
    backbone = backbones.load(device=device)
    editor, config = Editor(backbone), EditConfig(steps=steps)
    edit = sample_edit(Random(2_000_000_000), "recolour")
    text = aligned_text(backbone, PromptPair(edit.source_prompt, edit.target_prompt))
    denoise, rows = backbone.denoise, []

    def counted(latents: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(latents))
        return denoise(latents, *rest)  # pyright: ignore[reportArgumentType]

    backbone.denoise = counted  # pyright: ignore[reportAttributeAccessIssue]
    print(f"{steps} steps, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| frames | pixels | video tokens | forwards | seconds | seconds a frame | peak memory |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    clips = [(frames, 64) for frames in lengths] + [(33, side) for side in sides if side != 64]
    for number, (frames, side) in enumerate([clips[0], *clips]):  # the first of all, twice: once to get warm
        clip = render(edit.source, frames, side, side).frames
        rows.clear()
        took = tokens = 0.0

        def run() -> None:
            nonlocal took, tokens
            started = time.perf_counter()
            x0 = backbone.encode(clip)  # noqa: B023 (called here)
            (edited,) = editor.subtasks(x0, text, config)
            backbone.decode(edited)
            took, tokens = time.perf_counter() - started, x0.shape[1] * x0.shape[3] * x0.shape[4] / 4

        _, peak = peak_bytes(run, backbone.device.type)
        if number > 0:
            print(
                f"| {frames} | {side} x {side} | {tokens:,.0f} | {sum(rows)} | {took:.1f} | {took / frames:.3f} |"
                f" {peak / 2**20:.0f} MiB |",
                flush=True,
            )


def published() -> CogVideoX:
    """CogVideoX-5b without numbers: everything but the text encoder, which runs once, of its published shape."""
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN_FOLDER / "tokenizer")
    scheduler = CogVideoXDPMScheduler.from_pretrained(BUILT_IN_FOLDER / "scheduler")
    with torch.device("meta"):
        text = T5EncoderModel(T5Config(vocab_size=8, d_model=4096, d_kv=8, d_ff=8, num_layers=1, num_heads=1))
        transformer, vae = CogVideoXTransformer3DModel(**PUBLISHED), AutoencoderKLCogVideoX()
    return CogVideoX(CogVideoXPipeline(tokenizer, text, vae, transformer, scheduler))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def flops() -> None:
    """FLOPs of a subtask of CogVideoX-5b at 720 x 480, an open clip's and a loop's, by windows and in full."""
    backbone = published()
    replacement.LOGITS_AT_ONCE = 2**62  # nothing is held
    schedule = backbone.schedule(50)
    parameters = sum(one.numel() for one in backbone.transformer.parameters())
    print(f"CogVideoX-5b ({parameters / 1e9:.2f} B parameters), 720 x 480, PFLOP:\n")
    print("| frames | attention | video tokens | a forward | first subtask (130) | later (170) | encode and decode |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    taken = Replacement(200, (((0, 1.0),), ((0, 1.0),)))
    for frames, attention in ((49, "full"), (73, "full"), (73, "windows"), (73, "loop")):
        loop, trained = attention == "loop", backbone.trained
        size = backbone.fit(backbones.Size(frames, 480, 720), loop)
        latents = (size.frames - 1) // 4 + 1
        noisy = torch.empty(2, latents, 16, 60, 90, device="meta")
        if attention == "full":
            backbone.trained = replace(trained, frames=10**6)
        with FlopCounterMode(display=False) as forward:
            backbone.denoise(noisy, 9, schedule, torch.empty(2, 226, 4096, device="meta"), taken, loop)
        backbone.trained = trained
        with FlopCounterMode(display=False) as coding:
            lead, latent_lead = backbone._lead() if loop else (0, 0)
            backbone.vae.encode(torch.empty(1, 3, lead + size.frames, 480, 720, device="meta"))
            backbone.vae.decode(torch.empty(1, 16, latent_lead + latents, 60, 90, device="meta"))
        each = forward.get_total_flops() / 2 / 1e15
        print(
            f"| {frames} | {attention} | {latents * 1350:,} | {each:.3f} | {FORWARDS['first'] * each:.1f} |"
            f" {FORWARDS['later'] * each:.1f} | {coding.get_total_flops() / 1e15:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", action="store_true", help="the table of CogVideoX-5b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 17, 33, 65, 129])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128], help="at 33 frames")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    if options.flops:
        flops()
    else:
        measured(options.device, options.frames, options.sides, options.steps)


if __name__ == "__main__":
    main()
