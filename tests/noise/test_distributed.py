"""Two processes, as torchrun would start them."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from qn_deploy import noise
from qn_deploy.recipe import Recipe, Rule, Table

SECONDS = 60
RECIPE = Recipe((Rule(Table(4, 4)),))


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def train(rank: int, wrapper: str, model: nn.Sequential, seed: int) -> dict[str, torch.Tensor]:
    """Three steps with noise, a refresh after the first; the state dict with whole tensors."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    noise.attach(model, RECIPE, 0.5, noise.Options("exact"))
    if wrapper == "DDP":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        for layer in (model[0], model[2]):
            fully_shard(layer)
        wrapped = fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(rank))
    torch.manual_seed(seed)
    for step in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(wrapped(x).square().mean())
        optimizer.step()
        if step == 0:
            noise.refresh(model)
    gathered = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in model.state_dict().items()}
    return {name: value.detach().clone() for name, value in gathered.items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS))
    for wrapper in ("DDP", "FSDP2"):
        for case, seed in (("own seeds", rank), ("one seed", 7)):
            torch.save(train(rank, wrapper, a_net(), seed), f"{folder}/{wrapper} {case} {rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_and_fsdp2_train_the_same_weights_on_all_processes(tmp_path: Path) -> None:
    context = mp.start_processes(work, (str(tmp_path),), nprocs=2, join=False, start_method="spawn")
    assert context is not None
    try:
        deadline = time.monotonic() + SECONDS
        while not context.join(timeout=1):  # true once all processes have ended
            assert time.monotonic() < deadline, f"two processes ran for more than {SECONDS} s"
    finally:
        for process in context.processes:
            process.kill()
    states = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    assert len(states) == 8
    for case in ("own seeds", "one seed"):
        expected = states[f"DDP {case} 0"]
        for name in (f"DDP {case} 1", f"FSDP2 {case} 0", f"FSDP2 {case} 1"):
            assert states[name].keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(states[name][key], value, rtol=1e-5, atol=1e-6)
    key = "0.parametrizations.weight.original"
    assert not torch.equal(states["DDP own seeds 0"][key], states["DDP one seed 0"][key])  # the draws are each process's own
