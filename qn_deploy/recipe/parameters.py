"""The weights of a model that a recipe may speak of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from qn_deploy.recipe.rules import Site

# Globs over the names of the matrices in each kind of module. Biases and norms are a hundredth of a model, and stay float.
_WEIGHT = ("weight",)
COMPRESSIBLE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: _WEIGHT,
    nn.Embedding: _WEIGHT,
    nn.Conv1d: _WEIGHT,
    nn.Conv2d: _WEIGHT,
    nn.ConvTranspose1d: _WEIGHT,
    nn.ConvTranspose2d: _WEIGHT,
    nn.MultiheadAttention: ("*_proj_weight",),
    nn.RNNBase: ("weight_*",),
}
# One scale for the whole weight: an embedding's rows are short, so that four bytes for each would cost as much as its codes; a transposed
# convolution keeps its output channels in the second dimension, and a scale for each input channel is none that an int8 kernel knows.
ONE_SCALE = (nn.Embedding, nn.ConvTranspose1d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Slot:
    """A place where a module keeps a weight.

    Attributes:
        name: the parameter's full name in the model, "encoder.0.weight".
        module: the module that owns it.
        leaf: its name there, "weight".
    """

    name: str
    module: nn.Module
    leaf: str

    @property
    def site(self) -> Site:
        """What a recipe may ask of it."""
        kernel = getattr(self.module, "kernel_size", None)
        return Site(self.name, frozenset(kind.__name__ for kind in type(self.module).__mro__), kernel=kernel)

    @property
    def weight(self) -> Tensor:
        """The weight as the module sees it now."""
        weight = getattr(self.module, self.leaf)
        assert isinstance(weight, Tensor)
        return weight


def compressible(model: nn.Module) -> Iterator[Slot]:
    """All weights that a recipe may speak of, in the model's order; a tied weight comes once for each place that it stands in."""
    for path, module in model.named_modules():
        for leaf in _leaves(module):
            yield Slot(f"{path}.{leaf}" if path else leaf, module, leaf)


def _leaves(module: nn.Module) -> list[str]:
    globs = next((leaves for kind, leaves in COMPRESSIBLE.items() if isinstance(module, kind)), ())
    plain = [name for name, _ in module.named_parameters(recurse=False)]
    # By name only: reading a weight that carries noise would draw random numbers.
    carried = [*module.get_submodule("parametrizations")._modules] if parametrize.is_parametrized(module) else []
    return [name for name in (*plain, *carried) if any(fnmatchcase(name, glob) for glob in globs)]
