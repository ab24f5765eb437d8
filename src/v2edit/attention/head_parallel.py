"""Heads over processes (Ulysses, Jacobs et al. 2023), exactly: outside attention a process has its share of the video's
tokens with all heads, inside it its share of the heads with all tokens. AMR and windows act on each head alone.

Letters: P processes, R rows, H heads, D channels, N video tokens, n = ceil(N / P) of a process, the last ones padded, L
text tokens, of which every process has all."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor


@dataclass(eq=False)
class HeadParallel:
    """Exchanges tokens for heads among the processes of torch's default group, of which this is one."""

    rank: int
    processes: int
    tokens: int = field(default=0, init=False)  # N of the call

    def split_tokens(self, x: Tensor) -> Tensor:
        """Return this process's share [R, n, D] of the hidden states [R, N, D] of video, and remember N."""
        self.tokens = x.shape[1]
        share = -(-self.tokens // self.processes)
        start = min(self.rank * share, self.tokens)
        own = x[:, start : start + share]
        return F.pad(own, (0, 0, 0, share - own.shape[1])).clone()

    def join_tokens(self, x: Tensor) -> Tensor:
        """Return the hidden states [R, N, D] from every process's share [R, n, D]."""
        shares = self._exchange(x.expand(self.processes, *x.shape))
        return shares.movedim(0, 1).flatten(1, 2)[:, : self.tokens]

    def split_heads(self, q: Tensor, k: Tensor, v: Tensor, text_tokens: int) -> tuple[Tensor, ...]:
        """Return this process's heads of all tokens [R, H / P, L + N, D] from all heads of its tokens [R, H, L + n, D]:
        of queries, keys and values."""
        by_process = torch.stack([q, k, v]).unflatten(2, (self.processes, -1)).movedim(2, 0)
        received = self._exchange(by_process)  # [P, 3, R, H / P, L + n, D]
        video = received[..., text_tokens:, :].movedim(0, 3).flatten(3, 4)[:, :, :, : self.tokens]
        return torch.cat([received[self.rank, ..., :text_tokens, :], video], dim=3).unbind()

    def join_heads(self, out: Tensor, text_tokens: int) -> Tensor:
        """Return all heads of this process's tokens [R, H, L + n, D] from its heads of all of them
        [R, H / P, L + N, D]."""
        text, video = out[:, :, :text_tokens], out[:, :, text_tokens:]
        share = -(-self.tokens // self.processes)
        video = F.pad(video, (0, 0, 0, share * self.processes - self.tokens))
        video = video.unflatten(2, (self.processes, share)).movedim(2, 0)
        received = self._exchange(torch.cat([text.expand(self.processes, *text.shape), video], dim=3))
        return received.movedim(0, 1).flatten(1, 2)

    def _exchange(self, by_process: Tensor) -> Tensor:
        """Send part p of the first dimension to process p, and return what all sent here."""
        sent = by_process.contiguous()
        received = torch.empty_like(sent)
        torch.distributed.all_to_all_single(received, sent)
        return received
