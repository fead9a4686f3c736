"""Attaches weight noise to a model, and takes it off again.

Noise is a parametrization (torch.nn.utils.parametrize): the forward pass in training mode sees a noised copy, while the module keeps its
clean weight as the parameter that the optimizer updates. In eval mode the clean weight itself is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from qn_deploy.errors import CompressionError, InputError
from qn_deploy.noise.activations import remove_activations
from qn_deploy.noise.functions import Noise
from qn_deploy.noise.integer import HistogramGrid, MinMaxGrid, StoredGrid
from qn_deploy.noise.passes import ForwardPass, QuantNoise
from qn_deploy.noise.product import Clusters, ExactNoise, MeanNoise, Unit, ZeroNoise
from qn_deploy.noise.rate import check_rate, set_rate
from qn_deploy.noise.targets import Target, targets
from qn_deploy.recipe import Int4, Int8, Recipe, Table
from qn_deploy.recipe.parameters import Slot, compressible

Product = Literal["zero", "mean", "exact"]
"""What a drawn block of a Table becomes: zero, the paper's proxy; the mean of all blocks; or its nearest centroid."""
Grid = Literal["stored", "channel", "tensor", "histogram"]
"""The grid of Int8 and Int4: the symmetric one that compression stores; or with a zero point (paper eq. 2), from the smallest and largest
weight of each channel or of the tensor, or from a running histogram of the tensor that minimises the squared error."""


@dataclass(frozen=True)
class Options:
    """Which noise imitates what the recipe asks for.

    Attributes:
        product: what drawn blocks become, where the recipe says Table.
        unit: whether blocks are drawn by themselves or by clusters (paper table 5).
        over: integers whose noise follows that of a Table, each with its own draw: Int8() for the paper's PQ + int8 (section 3.3).
            Exact noise needs it not, its centroids are int8 already.
        grid: where the recipe says Int8 or Int4. Only "stored" is what will be stored, since runtimes want symmetric weights; the others
            are the paper's, for training alone.
        seed: of the k-means behind exact noise and clusters.

    Raises:
        InputError: an unknown name.
    """

    product: Product = "zero"
    unit: Unit = "subvectors"
    over: Int8 | Int4 | None = None
    grid: Grid = "stored"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("product", Product), ("unit", Unit), ("grid", Grid)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(kind))}")


def attach(model: nn.Module, recipe: Recipe, p: float = 0.1, options: Options | None = None) -> list[str]:
    """Trains a model against the error of its later compression (paper section 4): noises the weights that `recipe` compresses.

    A weight that becomes a Table gets block noise, by default the proxy, random blocks of `block_size` weights set to zero; one that
    becomes Int8 or Int4 gets rounding noise; a table that compression would turn down, because the block size doesn't divide a row or it
    would not pay, means int8 noise. Tied weights stay tied, and each of their modules draws its own noise; a weight tied with
    another kind of module stays float, as in compression.

    In training mode only the weight that a module sees shows noise, drawn anew in each of its forward passes. The parameter, called
    `parametrizations.weight.original` in the state dict, is the same object as before and never written to: an optimizer made
    before goes on working. Its place in `model.parameters()` changes, by which optimizers save their state: to resume training, make
    the optimizer on the same side of `attach` as at first. Call `remove` before saving or compressing.

    What a noise learns of the weights, codebooks or ranges, it learns here and whenever `refresh` is called. It is in the state dict, and
    with it and torch's random state a checkpoint goes on with the same numbers. Attach before wrapping with DDP or `fully_shard`.
    Processes draw from their own generators: seed each differently, as for dropout, and the averaged gradient averages over the draws.

    Args:
        model: changed in place; its weights of any float dtype may be noised.
        recipe: the recipe that the model will be compressed by.
        p: the rate, 0 to 1. The paper's authors advise 0.05 to 0.2. torch.compile compiles anew for each rate.
        options: which noise.

    Returns:
        The names that the noised parameters had, in the model's order, tied ones once.

    Raises:
        InputError: the rate is not in 0..1, the recipe compresses nothing in this model, or a weight already has a parametrization
            (noise, perhaps) or no shape yet. The model is then unchanged.
        CompressionError: a weight that the noise has to learn holds NaN or infinity. The model is then unchanged.
    """
    check_rate(p)
    options = options or Options()
    for slot in compressible(model):
        _check_plain(slot)
    found, left = targets(model, recipe)
    if not found:
        kinds = sorted({type(slot.module).__name__ for slot in compressible(model)})
        raise InputError(
            f"recipe {recipe.title!r} compresses nothing in {type(model).__name__}, which has "
            f"{'weights in ' + ', '.join(kinds) if kinds else 'no weights that a recipe may speak of'}; "
            f"{left or 'give it a rule that matches one, such as Rule(Int8())'}"
        )
    noises = [_noises(target, options) for target in found]
    for target, several in zip(found, noises, strict=True):
        for noise in several:
            _learn(noise, target.weight, target.name)
    owners: dict[nn.Module, list[str]] = {}
    for target, several in zip(found, noises, strict=True):
        for slot in target.slots:
            owners.setdefault(slot.module, [name for name, _ in slot.module.named_parameters(recurse=False)])
            # Registered at rate 0: torch reads the weight to check it, and no random number should be spent on that.
            parametrize.register_parametrization(slot.module, slot.leaf, QuantNoise(several).train(slot.module.training))
    for module, parameters in owners.items():
        around = ForwardPass(module, parameters)
        for _, attached in _carried(module):
            attached.around = around
    set_rate(model, p, QuantNoise)
    return [target.name for target in found]


def refresh(model: nn.Module) -> None:
    """Lets the noises learn the weights as they are now: codebooks, clusters, searched and histogram ranges. Call it once an epoch.

    Zero and mean noise and min/max ranges have nothing to learn, so there it costs nothing. It spends no random number of torch's. Under
    FSDP all processes must call it together, and all learn the same.

    Args:
        model: a model after `attach`.

    Raises:
        InputError: the model has no weight noise.
        CompressionError: a weight holds NaN or infinity; the message names it.
    """
    learnt: set[int] = set()
    found = False
    for path, module in model.named_modules():
        for leaf, carried in _carried(module):
            found = True
            weight = module.get_parameter(f"parametrizations.{leaf}.original").detach()
            for noise in carried.sequence():
                if id(noise) not in learnt:  # tied weights share it
                    learnt.add(id(noise))
                    _learn(noise, weight, f"{path}.{leaf}" if path else leaf)
    if not found:
        raise InputError(f"{type(model).__name__} has no weight noise to refresh; call qn_deploy.noise.attach(model, recipe) first")


def remove(model: nn.Module) -> None:
    """Takes all noise off, of weights and of activations: plain modules of their own class, with the very parameters that trained.

    LayerDrop stays, `remove_layer_drop` takes it off. A model without noise stays as it is.

    BatchNorm has gathered its running statistics behind noised weights: call `settle(model, batches)` before the model is evaluated or
    compressed.

    Args:
        model: changed in place. A parametrization that was put on top of the noise goes with it.
    """
    remove_activations(model)
    for module in list(model.modules()):
        for leaf, noise in list(_carried(module)):
            around = noise.around
            around.remove()
            # torch deletes the property from the module's class, which deep copies of the module share: give this one its own.
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
            # torch puts the weight last, but optimizer state goes by position: let all stand again as the class has them.
            plain = dict(module.named_parameters(recurse=False))
            for name in (name for name in around.parameters if name in plain):
                delattr(module, name)
                module.register_parameter(name, plain[name])


def _noises(target: Target, options: Options) -> list[Noise]:
    """What imitates the compression of one weight, in order."""
    method, weight = target.method, target.weight
    if not isinstance(method, Table):
        return [_rounding(target, method, options.grid)]
    row = weight[0].numel()
    if row % method.block_size or not method.pays(weight.shape[0], row):  # compression will store it as int8
        return [_rounding(target, Int8(), options.grid)]
    noise: Noise
    if options.product == "exact":
        noise = ExactNoise(weight, method, target.per_channel, options.seed)
    else:
        noise = (ZeroNoise if options.product == "zero" else MeanNoise)(method.block_size)
    if options.unit == "clusters":
        noise = Clusters(weight, noise, method, target.per_channel, options.seed)
    return [noise] if options.over is None else [noise, _rounding(target, options.over, options.grid)]


def _rounding(target: Target, method: Int8 | Int4, grid: Grid) -> Noise:
    if grid == "stored":
        return StoredGrid(target.weight, method, target.per_channel)
    if grid == "histogram":
        return HistogramGrid(target.weight, method.bits)
    return MinMaxGrid(method.bits, per_channel=grid == "channel")


@torch.no_grad()
def _learn(noise: Noise, weight: Tensor, name: str) -> None:
    gather: Callable[[], Tensor] | None = getattr(weight, "full_tensor", None)  # of FSDP's shards; importing their class takes a second
    try:
        noise.refresh(weight if gather is None else gather())
    except CompressionError as error:
        raise CompressionError(f"{name}: {error}") from None


def _carried(module: nn.Module) -> Iterator[tuple[str, QuantNoise]]:
    """The noise on each of this module's own weights."""
    if parametrize.is_parametrized(module):
        for leaf, carried in module.get_submodule("parametrizations").named_children():
            if isinstance(first := carried.get_submodule("0"), QuantNoise):
                yield leaf, first


def _check_plain(slot: Slot) -> None:
    if slot.leaf in dict(_carried(slot.module)):
        raise InputError(f"{slot.name} already has noise; call set_rate(model, p) for another rate, or remove(model) for another recipe")
    if parametrize.is_parametrized(slot.module, slot.leaf):
        kind = type(slot.module.get_submodule(f"parametrizations.{slot.leaf}.0")).__name__
        raise InputError(
            f"{slot.name} already has a parametrization, {kind}; "
            "take it off with torch.nn.utils.parametrize.remove_parametrizations before attaching noise"
        )
    if isinstance(slot.weight, UninitializedParameter):
        raise InputError(f"{slot.name} has no shape yet; run one batch through the model before attaching noise")
