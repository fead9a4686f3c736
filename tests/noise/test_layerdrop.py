from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from qn_deploy.errors import InputError
from qn_deploy.noise.layerdrop import LayerDrop, attach_layer_drop, remove_layer_drop
from qn_deploy.noise.rate import set_rate

torch.set_num_threads(1)


class Adds(nn.Module):
    """A residual layer whose trace in the sum shows that it ran: x + 2^i."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.term = nn.Parameter(torch.tensor(2.0**index))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + (self.term if mask is None else mask * self.term)


class Net(nn.Module):
    """Counts through its layers by `enumerate`, with keyword arguments, as models do."""

    def __init__(self, depth: int = 6, recompute: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Adds(index) for index in range(depth))
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            assert layer is self.layers[index]
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x, mask=None)
        return x


def ran(model: nn.Module, depth: int = 6) -> list[bool]:
    """Which layers one forward pass ran."""
    total = int(model(torch.zeros(1)).detach())
    return [bool(total >> index & 1) for index in range(depth)]


def test_eval_mode_runs_all_layers_and_draws_nothing() -> None:
    model = Net().eval()
    attach_layer_drop(model, "layers", p=1.0)
    before = torch.get_rng_state()
    assert ran(model) == [True] * 6
    assert torch.equal(torch.get_rng_state(), before)


def test_rate_0_runs_all_layers_and_draws_nothing() -> None:
    model = Net()
    attach_layer_drop(model, "layers", p=0.0)
    before = torch.get_rng_state()
    assert ran(model) == [True] * 6
    assert torch.equal(torch.get_rng_state(), before)


def test_rate_1_skips_all_layers() -> None:
    model = Net()
    assert attach_layer_drop(model, "layers", p=1.0) == [f"layers.{index}" for index in range(6)]
    assert ran(model) == [False] * 6


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_layer_is_skipped_at_the_rate(p: float) -> None:
    model = Net()
    attach_layer_drop(model, "layers", p)
    torch.manual_seed(0)
    passes = torch.tensor([ran(model) for _ in range(500)]).float()
    deviation = 5 * (p * (1 - p) / 500) ** 0.5
    assert (passes.mean(0) - (1 - p)).abs().max() < deviation
    assert (passes[:, 0] != passes[:, 1]).any()


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 9), chunk=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_a_chunk_is_skipped_as_a_whole_by_one_draw(depth: int, chunk: int, seed: int) -> None:
    model = Net(depth)
    attach_layer_drop(model, "layers", 0.5, chunk)
    torch.manual_seed(seed)
    expected = [bool(torch.rand(()) >= 0.5) for _ in range(0, depth, chunk)]
    torch.manual_seed(seed)
    assert ran(model, depth) == [expected[index // chunk] for index in range(depth)]


def test_a_frozen_leader_in_eval_mode_skips_nothing() -> None:
    model = Net()
    attach_layer_drop(model, "layers", 1.0, chunk=2)
    assert not any(ran(model))
    model.layers[0].eval()
    assert ran(model) == [True, True, False, False, False, False]


def test_a_sequential_and_an_index_drop_layers_too() -> None:
    model = nn.Sequential(*Net().layers)
    attach_layer_drop(model, "", p=1.0)
    assert ran(model) == [False] * 6
    assert model[3](torch.zeros(1)).tolist() == [0.0]


def test_set_rate_follows_a_schedule() -> None:
    model = Net()
    attach_layer_drop(model, "layers", 0.0, chunk=2)
    set_rate(model, 1.0, LayerDrop)
    assert not any(ran(model))


def test_the_state_dict_and_the_classes_stay_and_remove_restores_the_rest() -> None:
    model = Net()
    names, kinds = list(model.state_dict()), [type(layer) for layer in model.layers]
    attach_layer_drop(model, "layers", 1.0)
    assert list(model.state_dict()) == names and [type(layer) for layer in model.layers] == kinds
    remove_layer_drop(model)
    assert all("forward" not in vars(layer) for layer in model.layers) and all(ran(model))


def test_a_copy_drops_its_own_layers() -> None:
    model = Net()
    attach_layer_drop(model, "layers", 1.0, chunk=2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        remove_layer_drop(model)
        assert all(ran(model)) and not any(ran(twin))
        set_rate(twin, 0.0, LayerDrop)
        assert all(ran(twin))


# gradients


def test_a_skipped_layer_passes_the_gradient_on_and_gets_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    attach_layer_drop(model, "", 1.0)
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    torch.autograd.backward((model(x) * torch.tensor([10.0, 20.0, 30.0])).sum())
    assert x.grad is not None and x.grad.tolist() == [10.0, 20.0, 30.0]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_a_frozen_parameter_gets_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    attach_layer_drop(model, "", 1.0)
    model(torch.ones(3)).sum().backward()
    assert model[0].weight.grad is None and model[0].bias.grad is not None


def test_what_a_skipped_layer_returns_may_be_written_into() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    attach_layer_drop(model, "", 1.0)
    x = torch.ones(3)
    model(x).add_(1.0).sum().backward()
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_activation_checkpointing_recomputes_the_same_layers() -> None:
    gradients = []
    for recompute in (False, True):
        model = Net(recompute=recompute)
        attach_layer_drop(model, "layers", 0.5, chunk=2)
        torch.manual_seed(0)
        model(torch.ones(1, requires_grad=True)).square().sum().backward()
        gradients.append([float(parameter.grad) for parameter in model.parameters() if parameter.grad is not None])
    assert gradients[0] == gradients[1] and len(set(gradients[0])) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precisions(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    attach_layer_drop(model, "", 1.0)
    output = model(torch.ones(2, 3, dtype=dtype))
    output.sum().backward()
    assert output.dtype == dtype and {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {dtype}


def test_autocast() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    attach_layer_drop(model, "", 0.5, chunk=1)
    for seed in range(4):  # all four subsets of two layers come up
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(2, 3)).float().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_training_resumes_with_the_same_numbers() -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1)).square().sum().backward()
            optimizer.step()

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Net()
        attach_layer_drop(model, "layers", 0.3, chunk=2)
        return model, torch.optim.AdamW(model.parameters())

    torch.manual_seed(0)
    model, optimizer = make()
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()), file)
    train(model, optimizer, 5)

    resumed, other = make()
    weights, state, random = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    train(resumed, other, 5)
    assert [p.tolist() for p in resumed.parameters()] == [p.tolist() for p in model.parameters()]


def test_a_model_compiles_and_draws_the_same_layers() -> None:
    model = Net()
    attach_layer_drop(model, "layers", 0.5, chunk=2)
    torch.manual_seed(3)
    expected = [ran(model) for _ in range(6)]
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(3)
    assert [ran(compiled) for _ in range(6)] == expected


@pytest.mark.parametrize("strict", [False, True])
def test_eval_mode_exports(strict: bool) -> None:
    model = Net().eval()
    attach_layer_drop(model, "layers", 0.5)
    exported = torch.export.export(model, (torch.zeros(1),), strict=strict)
    assert float(exported.module()(torch.zeros(1))) == 63.0


def _train_alone(rank: int, folder: str, shard: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model: Any = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    attach_layer_drop(model, "", 0.5)
    if shard:
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in (*model, model):
            fully_shard(layer, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.manual_seed(rank)  # the processes skip other layers
    for _ in range(4):
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save([p.full_tensor() if shard else p for p in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_processes_that_skip_other_layers_train_one_model(shard: bool, tmp_path: Any) -> None:
    mp.start_processes(_train_alone, (str(tmp_path), shard), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == 8 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# what a layer must be like


class Pair(nn.Linear):
    """A layer that returns its output and something else."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x.mean()


def test_a_layer_that_returns_a_tuple_asks_for_a_skip_and_takes_it() -> None:
    model = nn.Sequential(Pair(3, 3))
    attach_layer_drop(model, "", 0.0)
    with pytest.raises(InputError, match=r"0 turned a tensor of \[3\] into a tuple; .*`skip`"):
        model(torch.ones(3))
    remove_layer_drop(model)
    attach_layer_drop(model, "", 1.0, skip=lambda x: (x, None))
    output, rest = model(torch.ones(3))
    assert output.tolist() == [1.0, 1.0, 1.0] and rest is None
    set_rate(model, 0.0, LayerDrop)
    assert isinstance(model(torch.ones(3))[1], Tensor)


def test_a_layer_that_changes_the_shape_is_refused_in_training() -> None:
    model = nn.Sequential(nn.Linear(3, 5))
    attach_layer_drop(model, "", 0.0)
    with pytest.raises(InputError, match=r"0 turned a tensor of \[3\] into one of \[5\]"):
        model(torch.ones(3))
    assert model.eval()(torch.ones(3)).shape == (5,)


def test_a_layer_called_by_keyword_is_refused_in_training() -> None:
    model = Net()
    attach_layer_drop(model, "layers")
    with pytest.raises(InputError, match=r"layers\.2 was called without a tensor as its first positional argument"):
        model.layers[2](x=torch.zeros(1))


def test_attaching_twice_says_what_to_do_and_changes_nothing() -> None:
    model = Net()
    attach_layer_drop(model, "layers", 0.3)
    with pytest.raises(InputError, match=r"layers\.0 already has a forward of its own.*remove_layer_drop"):
        attach_layer_drop(model, "layers", 1.0)
    assert {drop.p for layer in model.layers if isinstance(drop := vars(layer)["forward"], LayerDrop)} == {0.3}


def test_a_layer_that_stands_twice_is_refused() -> None:
    layer = Adds(0)
    with pytest.raises(InputError, match=r"1 .* stands twice"):
        attach_layer_drop(nn.Sequential(layer, layer), "")
    assert "forward" not in vars(layer)


def test_an_empty_list_and_a_rate_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="'layers' is empty"):
        attach_layer_drop(Net(0), "layers")
    model = Net()
    with pytest.raises(InputError, match=r"is not in 0\.\.1"):
        attach_layer_drop(model, "layers", p=1.5)
    assert "forward" not in vars(model.layers[0])
