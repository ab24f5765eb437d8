"""What the transformer is trained with: schedule, timesteps, weights, optimizers, the probe, attention to phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from torch import Tensor, nn

from recipes.primitives.training import Muon
from v2edit.primitives.captions import TEXT_LENGTH


def new_scheduler() -> CogVideoXDPMScheduler:
    """Build a scheduler with CogVideoX-5b's published configuration."""
    return CogVideoXDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing",
    )  # fmt: skip


def start_as_identity(transformer: CogVideoXTransformer3DModel) -> CogVideoXTransformer3DModel:
    """Let every block start as the identity and the output as zero (diffusers starts them at random)."""
    silent = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        silent += [block.norm1.linear, block.norm2.linear]
    for linear in silent:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def object_weight(done: float, most: float = 4.0) -> float:
    """Return the additional loss weight of a latent under an object: `most` at first, 0 for the last 7 % of the time.

    Objects are a few per cent of the frame, and a plain loss learns them long after the ground. The weight biases the
    network towards too much object where noise hides it, so it must vanish in the end.
    """
    return most * min(1.0, max(0.0, (0.93 - done) / 0.13))


def sample_timesteps(count: int, upper: float = 0.5, below: int = 1000) -> Tensor:
    """Sample timesteps int64 [B] below a number: a share of `upper` from the upper half, where (of 1000) an object's
    place, colour, shape and motion are decided, the others uniformly; stratified, one from each of B equal parts."""
    u = (torch.rand(count) + torch.randperm(count)) / count
    anywhere = torch.rand(count) >= upper
    return (torch.where(anywhere, u, 0.5 + 0.5 * u) * below).long()


def optimizers(transformer: CogVideoXTransformer3DModel, probe: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for the rest and the probe."""
    named = transformer.transformer_blocks.named_parameters()
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and ".norm" not in name]
    inside = {id(parameter) for parameter in matrices}
    rest = [p for p in [*transformer.parameters(), *probe.parameters()] if id(p) not in inside]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


class TokenProbe(nn.Module):
    """Auxiliary loss on the hidden video tokens: each predicts what is there, field by field.

    The diffusion loss carries this in few latents of few noisy clips, and learns last which words belong to which
    object. Supervised at the tokens, the network learns several times faster (as REPA, Yu et al. 2025, does with the
    features of a pretrained encoder; here the true attributes are known).
    """

    def __init__(self, fields: Mapping[str, Sequence[str]], width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({field: nn.Linear(width, len(values)) for field, values in fields.items()})
        self.hidden = torch.empty(0)

    def attach(self, transformer: CogVideoXTransformer3DModel) -> None:
        """Register a hook that keeps the video tokens after two thirds of the blocks."""
        blocks = transformer.transformer_blocks
        blocks[len(blocks) * 2 // 3 - 1].register_forward_hook(
            lambda _module, _inputs, out: self.__setattr__("hidden", out[0])
        )

    def forward(self, answers: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross-entropy over all fields, and the share of right answers by field.

        answers: int64 [B, N] for each field, -1 where it does not apply."""
        hidden = self.norm(self.hidden.float())
        losses, accuracy = [], {}
        for field, right in answers.items():
            logits = self.heads[field](hidden).flatten(0, 1)
            valid = right.flatten() >= 0
            if valid.any():
                losses.append(F.cross_entropy(logits, right.flatten(), ignore_index=-1))
                accuracy[field] = float((logits.argmax(-1) == right.flatten())[valid].float().mean())
        return torch.stack(losses).mean(), accuracy


class PhraseAttention:
    """Auxiliary loss on attention: in the middle blocks half of the heads of a video token under an object look at the
    words about that object. Told so, the network learns which words are about what in a fraction of the samples; and
    its maps between prompt and video are then as those of large models, which the method replaces."""

    BLOCKS, HEADS = (2, 3), 4

    def __init__(self, transformer: CogVideoXTransformer3DModel, written_out: bool = False) -> None:
        self.written_out = written_out  # in all blocks: in bf16 on a CPU twice as fast, forwards and backwards
        self.maps: list[Tensor] = []  # [B, heads, video tokens, text tokens] of each of the blocks
        self.recording = False
        for k in self.BLOCKS:
            block = transformer.transformer_blocks[k]
            block.register_forward_pre_hook(lambda *_: self.__setattr__("recording", True))
            block.register_forward_hook(lambda *_: self.__setattr__("recording", False))
        self.plain = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self.attend  # pyright: ignore[reportAttributeAccessIssue]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Return attention as torch's own does, written out where its weights are asked for."""
        if attn_mask is not None or others.get("is_causal") or not (self.written_out or self.recording):
            return self.plain(query, key, value, attn_mask, **others)
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), -1)
        if self.recording:
            self.maps.append(weights[:, : self.HEADS, TEXT_LENGTH:, :TEXT_LENGTH])
        return weights @ value

    def loss(self, words: Tensor, owners: Tensor) -> tuple[Tensor, float]:
        """Return the mean of -log of the attention to the words about an object, and the mean of that attention.
        words: int64 [B, L], the object that each is about; owners: int64 [B, F, h, w]; -1 for none."""
        owner = owners.flatten(1)[:, :, None]
        own = (words[:, None] == owner) & (owner >= 0)  # [B, video tokens, L]
        asked, maps = own.any(-1), torch.stack(self.maps)
        self.maps = []
        share = (maps.float() * own[:, None]).sum(-1).transpose(1, 2)[:, :, asked]
        return -share.clamp_min(1e-4).log().mean(), float(share.detach().mean())
