"""BatchNorm after training with noise: it gathered its running statistics behind noised weights, and takes them anew behind clean ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qn_deploy.errors import InputError


@torch.no_grad()
def settle(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    """Gives BatchNorm the statistics of the model without noise: call it once after training, before or after `remove`.

    Each running mean and variance becomes the plain average over the batches, as momentum None has it. Only BatchNorm is in training mode
    meanwhile; noise, LayerDrop and dropout are off, as when the model is evaluated (torch's update_bn runs all in training mode). All
    modes and momenta are afterwards as they were, and so is a BatchNorm that no batch reached. Gradients and random numbers are not
    touched. A model without running statistics stays as it is, and no batch is read.

    Args:
        model: changed in place, in its buffers alone.
        batches: gone through once; a few hundred samples or more, on the model's device. Each is a tuple or list with one tensor for each
            input, a dict of them by name, or the only tensor. Labels are no input. They all count the same, so let them be of one size.

    Returns:
        Paths of the modules that have new statistics; empty if there are none.

    Raises:
        InputError: there are no batches, one does not fit the model's forward, or statistics are NaN or infinite. The statistics are then
            what they were, as after any exception of the model itself.
    """
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is not None}
    if not norms:
        return []
    modes = [(module, module.training) for module in model.modules()]
    momenta = {path: norm.momentum for path, norm in norms.items()}
    before = {path: [buffer.clone() for buffer in norm.buffers(recurse=False)] for path, norm in norms.items()}
    settled: list[str] = []
    try:
        model.eval()
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # not by train(), which its children would follow: noise of its output
        _run(model, batches)
        reached = [path for path, norm in norms.items() if norm.num_batches_tracked]
        for path in reached:
            if not all(buffer.isfinite().all() for buffer in norms[path].buffers(recurse=False)):
                raise InputError(
                    f"{path}: its statistics over these batches are NaN or infinite; look for such values in the data or weights"
                )
        settled = reached
    finally:
        for path, norm in norms.items():
            norm.momentum = momenta[path]
            if path not in settled:
                for buffer, value in zip(norm.buffers(recurse=False), before[path], strict=True):
                    buffer.copy_(value)
        for module, training in modes:
            module.training = training
    return settled


def _run(model: nn.Module, batches: Iterable[Any]) -> None:
    signature, index = inspect.signature(model.forward), -1
    for index, batch in enumerate(batches):
        args, kwargs = _arguments(batch, f"batch {index}")
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(
                f"batch {index} does not fit {type(model).__name__}, whose inputs are {', '.join(signature.parameters)}: {error}; "
                "give a tuple with one tensor for each input, without labels, or a dict by their names"
            ) from None
        model(*args, **kwargs)
    if index < 0:
        raise InputError("there are no batches; give tuples with one tensor for each input of the model")


def _arguments(batch: Any, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), {str(name): value for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise InputError(f"{where} is a {type(batch).__name__}; give tuples of input tensors, dicts by name, or single tensors")
