"""The averaging of weights between processes that train one model."""

import os
import socket
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from recipes.primitives.training import Replicas

STEPS, SIZES = (3, 1), (16, 32)  # of each process, until the first average


def train(rank: int, folder: str) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (Path(folder) / "port").read_text()
    model, replicas, seen = nn.Linear(2, 2), Replicas(), 0
    nn.init.constant_(model.weight, float(rank))
    nn.init.constant_(model.bias, 10.0 * rank)
    for step in range(STEPS[rank]):
        if step == STEPS[rank] - 1:
            replicas.due = time.time() - 0.1
        seen += replicas.after_step(model, SIZES[rank])
    torch.save((model.state_dict(), seen), f"{folder}/{rank}.pt")
    if rank == 0:
        replicas.close(model)
    if rank == 1:  # ends with the first
        replicas.due = time.time() - 0.1
        replicas.after_step(model, 1)
        raise AssertionError("goes on alone")


def test_weights_are_averaged_by_steps_and_the_others_end_with_the_first(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    multiprocessing.spawn(train, (str(tmp_path),), 2)
    for rank in range(2):
        weights, seen = torch.load(tmp_path / f"{rank}.pt")
        assert weights["weight"] == pytest.approx(torch.full((2, 2), 0.25))  # 3 steps at 0, one at 1
        assert weights["bias"] == pytest.approx(torch.full((2,), 2.5))
        assert seen == 3 * 16 + 32


def test_one_process_alone_counts_what_it_sees():
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    assert [Replicas().after_step(model, 16) for _ in range(2)] == [16, 16]
    assert model.weight.equal(before)
