"""What a recipe makes of the weights of a module in training: which of them get noise, and which have to go without."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from qn_deploy.recipe import Float, Int4, Int8, Recipe, Table
from qn_deploy.recipe.parameters import ONE_SCALE, Slot, compressible


@dataclass(frozen=True)
class Target:
    """One weight that a recipe compresses: the places where it stands, several if it is tied; `per_tensor` asks for one scale."""

    slots: tuple[Slot, ...]
    method: Table | Int8 | Int4
    per_tensor: bool = False

    @property
    def name(self) -> str:
        """The first name in the model's order; its rule of the recipe decides for all."""
        return self.slots[0].name

    @property
    def weight(self) -> Tensor:
        """The float weight, detached."""
        return self.slots[0].weight.detach()

    @property
    def per_channel(self) -> bool:
        """False if the weight has one scale for all its rows."""
        return not self.per_tensor and not any(isinstance(slot.module, ONE_SCALE) for slot in self.slots)


def targets(model: nn.Module, recipe: Recipe) -> tuple[list[Target], dict[str, str]]:
    """What the recipe compresses, in the model's order, and the weights that it has to leave float, with the reason."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    slots: dict[int, list[Slot]] = {}
    for slot in compressible(model):
        slots.setdefault(id(slot.weight), []).append(slot)
    found, left = [], {}
    for key, places in slots.items():
        first = places[0]
        method = recipe.method_for(first.site)
        if isinstance(method, Float):
            continue
        known = {slot.name for slot in places}
        stranger = next((name for name in owners[key] if name not in known), None)
        if stranger is None:
            found.append(Target(tuple(places), method, recipe.per_tensor))
        else:
            left[first.name] = f"float: tied with {stranger}, which is no weight of a module that can be compressed"
    return found, left
