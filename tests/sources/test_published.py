"""Files as docs/formats/published.md describes them, written here from that page alone, and every way in which they can be wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import qn_deploy
from qn_deploy.compression import IntWeight, PQWeight
from qn_deploy.errors import InputError
from qn_deploy.program.store import load, save
from qn_deploy.sources.published import import_checkpoint, read_published

Held = dict[str, Any]


def drawn(weight: Tensor, d: int, size: int) -> tuple[Tensor, Tensor]:
    """Float16 centroids and block-major assignments for a weight."""
    blocks = weight.numel() // d
    return (torch.randn(size, d) * 0.05).half(), torch.randint(0, size, (blocks,))


def decoded(centroids: Tensor, assignments: Tensor, shape: torch.Size) -> Tensor:
    """The page's formula, block by block."""
    out, d = shape[0], centroids.shape[1]
    rows = np.empty((out, shape.numel() // out), np.float32)
    book, codes = centroids.float().numpy(), assignments.numpy()
    for j in range(rows.shape[1] // d):
        rows[:, j * d : (j + 1) * d] = book[codes[j * out : (j + 1) * out]]
    return torch.from_numpy(rows).reshape(shape)


def by_layer(model: nn.Module, first: str, folded: bool) -> tuple[Held, dict[str, Tensor]]:
    """The layout by layer, and what its weights are: 3x3 kernels in blocks of 9, all else of 4; norms with or without statistics."""
    held: Held = {}
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            state = {key: value.clone() for key, value in module.state_dict().items()}
            state["weight"], state["bias"] = torch.randn_like(state["weight"]) * 0.1 + 1, torch.randn_like(state["bias"])
            held[name] = {key: state[key].half() for key in ("weight", "bias")} if folded else state
        elif name == first:
            held[name] = {key: value.half() for key, value in module.state_dict().items()}
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight, is_conv = module.weight, isinstance(module, nn.Conv2d)
            k = weight.shape[-1] if is_conv else 1
            d, size = (9, 256) if k == 3 else (4, 256) if is_conv else (4, 512)
            centroids, assignments = drawn(weight, d, size)
            weights[f"{name}.weight"] = decoded(centroids, assignments, weight.shape)
            codes = assignments.byte() if is_conv else assignments.short()
            held[name] = {"centroids": centroids, "assignments": codes, "n_blocks": weight[0].numel() // d, "is_conv": is_conv, "k": k}
            if module.bias is not None:
                held[f"{name}_bias"] = {"bias": module.bias}
    return held, weights


def by_name(model: nn.Module, block_sizes: dict[str, int], size: int = 32) -> tuple[Held, dict[str, Tensor]]:
    """The layout by name, with tables for the layers in `block_sizes`."""
    held: Held = dict(model.state_dict())
    weights = {}
    for layer, d in block_sizes.items():
        weight = held.pop(f"{layer}.weight")
        centroids, assignments = drawn(weight, d, size)
        weights[f"{layer}.weight"] = decoded(centroids, assignments, weight.shape)
        counts = torch.bincount(assignments).half()
        held |= {f"{layer}.centroids": centroids.float(), f"{layer}.assignments": assignments, f"{layer}.counts": counts}
    return held, weights


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 5, bias=False), nn.BatchNorm2d(8)
        self.body, self.body_bn = nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8)
        self.point, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 64)

    def forward(self, image: Tensor) -> Tensor:
        x = self.point(self.body_bn(self.body(self.bn(self.stem(image)).relu())).relu())
        return self.fc(x.relu().mean((2, 3)))


class Layer(nn.Module):
    """A layer of a Transformer as fairseq names its parts, and an embedding that is tied with the output."""

    def __init__(self, width: int = 16, words: int = 40) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.output_projection = nn.Linear(width, words, bias=False)
        self.output_projection.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens) * 4.0
        q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        met = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.self_attn_layer_norm(x + self.out_proj(met))
        x = self.final_layer_norm(x + self.fc2(self.fc1(x).relu()))
        return self.output_projection(x)


SIZES = {"embed_tokens": 8, "q_proj": 4, "k_proj": 4, "v_proj": 4, "out_proj": 4, "fc1": 8, "fc2": 8}
IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def loaded(path: Path, held: Held, model: nn.Module) -> nn.Module:
    """The model as importing the file leaves it, weights alone."""
    torch.save(held, path)
    state = read_published(path, model).state
    assert set(model.state_dict()) - set(state) <= {"output_projection.weight"}
    return model


@pytest.mark.parametrize("folded", [True, False], ids=["statistics folded", "statistics kept"])
def test_a_network_by_layer(tmp_path: Path, folded: bool) -> None:
    model = made(ConvNet)
    held, weights = by_layer(model, "stem", folded)
    stem = model.stem.weight.detach().half().float()
    torch.save(held, tmp_path / "net.pth")
    program = import_checkpoint(model, tmp_path / "net.pth", (IMAGES,))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items()) and torch.equal(state["stem.weight"], stem)
    assert torch.equal(state["bn.weight"], held["bn"]["weight"].float())
    assert torch.equal(state["fc.bias"], held["fc_bias"]["bias"])
    if folded:
        assert not state["bn.running_mean"].any() and bool((state["bn.running_var"] == 1).all())
    assert any("2 norms have no running statistics in net.pth" in note for note in program.notes) == folded
    with torch.no_grad():
        assert torch.equal(program.golden.outputs[0], model(IMAGES))
    for name in weights:
        weight, layer = program.weights[name], held[name.removesuffix(".weight")]
        assert isinstance(weight, PQWeight), name
        columns = layer["assignments"].long().reshape(-1, weight.shape[0])
        assert torch.equal(weight.codes.long(), columns.t())
    assert isinstance(program.weights["stem.weight"], IntWeight)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, held: torch.save(held, path),
        lambda path, held: torch.save(held, path, _use_new_zipfile_serialization=False),
        lambda path, held: torch.save({"epoch": 1, "model": {f"module.{name}": value for name, value in held.items()}}, path),
        lambda path, held: safetensors.torch.save_file({n: v.clone() for n, v in held.items() if n != "output_projection.weight"}, path),
    ],
    ids=["zip", "old torch", "nested, with a prefix", "safetensors"],
)
def test_a_network_by_name(tmp_path: Path, write: Callable[[Path, Held], Any]) -> None:
    model = made(Layer)
    held, weights = by_name(model, SIZES)
    del held["output_projection.weight"]  # tied with the embedding, which is a table
    write(tmp_path / "net.pth", held)
    tokens = torch.randint(0, 40, (2, 6))
    program = import_checkpoint(model, str(tmp_path / "net.pth"), (tokens,))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert torch.equal(state["fc1.bias"], held["fc1.bias"])
    tables = {name: weight for name, weight in program.weights.items() if isinstance(weight, PQWeight)}
    assert set(tables) == set(weights) == set(program.weights) and program.left == {}
    assert all(weight.scale.shape == (1,) for weight in tables.values())
    assert min(program.provenance[-1]["rounding_db"].values()) > 35


def test_a_table_under_the_second_name_of_a_tied_weight(tmp_path: Path) -> None:
    model = made(Layer)
    held, _ = by_name(model, SIZES)
    del held["output_projection.weight"]
    for part in ("centroids", "assignments"):
        held[f"output_projection.{part}"] = held.pop(f"embed_tokens.{part}")
    del held["embed_tokens.counts"]
    torch.save(held, tmp_path / "net.pth")
    assert "embed_tokens.weight" in read_published(tmp_path / "net.pth", model).tables
    held |= {
        "embed_tokens.centroids": held["output_projection.centroids"] + 1,
        "embed_tokens.assignments": held["output_projection.assignments"],
    }
    torch.save(held, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"ties embed_tokens.weight and .*, which have different tables there"):
        read_published(tmp_path / "net.pth", model)


def test_what_was_imported_is_saved_and_loaded(tmp_path: Path) -> None:
    model = made(ConvNet)
    held, _ = by_layer(model, "stem", True)
    held["bn"]["weight"] = -held["bn"]["weight"]
    held["body_bn"]["weight"][:3] *= -1
    torch.save(held, tmp_path / "net.pth")
    program = import_checkpoint(model, tmp_path / "net.pth", kwargs={"image": IMAGES})
    save(program, tmp_path / "model.pt")
    again = load(tmp_path / "model.pt")
    assert again.left == program.left and again.notes == program.notes and again.provenance[-1]["stage"] == "import"
    assert torch.equal(again.exported.module()(IMAGES)[0], program.exported.module()(IMAGES)[0])


def without(*names: str) -> Callable[[Held], None]:
    return lambda held: [held.pop(name) for name in names] and None


def with_value(name: str, change: Callable[[Tensor], Any]) -> Callable[[Held], None]:
    return lambda held: held.update({name: change(held[name])})


def code_of(value: int) -> Callable[[Tensor], Tensor]:
    return lambda codes: torch.cat([codes[:-1], torch.tensor([value])])


BY_NAME = {
    "no table": (lambda held: [held.pop(name) for name in list(held) if name.endswith(("assignments", "centroids"))], "holds no tables"),
    "no centroids": (without("fc1.centroids"), "fc1 has no tensor centroids"),
    "no assignments": (without("fc2.assignments"), "fc2 has no tensor assignments"),
    "assignments missing": (with_value("fc1.assignments", lambda codes: codes[:-1]), "63 assignments; 32 rows of 2 blocks, .* are 64"),
    "assignments too many": (with_value("fc1.assignments", lambda codes: codes.repeat(2)), "fc1 has 128 assignments"),
    "code past the end": (with_value("fc1.assignments", code_of(32)), "fc1 has the assignment 32; it has 32 centroids, counted from 0"),
    "code below zero": (with_value("fc1.assignments", code_of(-1)), "fc1 has the assignment -1"),
    "float codes": (with_value("fc1.assignments", Tensor.float), r"fc1.assignments is float32 \[64\]; expected whole numbers"),
    "codes in rows": (with_value("fc1.assignments", lambda codes: codes.reshape(2, -1)), r"fc1.assignments is int64 \[2, 32\]"),
    "block size": (with_value("fc1.centroids", lambda book: book[:, :5].clone()), "blocks of 5 weights, which do not divide .* of 16"),
    "another block size": (with_value("fc1.centroids", lambda book: book[:, :4].clone()), "fc1 has 64 assignments; 32 rows of 4 blocks"),
    "whole centroids": (with_value("fc1.centroids", Tensor.long), r"fc1.centroids is int64 \[32, 8\]; expected float16 or float32"),
    "double centroids": (with_value("fc1.centroids", Tensor.double), r"fc1.centroids is float64 \[32, 8\]; expected float16 or float32"),
    "endless blocks": (
        with_value("fc1.centroids", lambda book: book[:, :1].clone().expand(32, 1 << 40)),
        "fc1 has blocks of 1099511627776 weights, which do not divide",
    ),
    "endless assignments": (
        with_value("fc1.assignments", lambda codes: codes[:1].clone().expand(1 << 40)),
        "fc1 has 1,099,511,627,776 assignments",
    ),
    "three dimensions": (with_value("fc1.centroids", lambda book: book[None]), r"fc1.centroids is float32 \[1, 32, 8\]; expected"),
    "no centroid": (with_value("fc1.centroids", lambda book: book[:0]), r"fc1.centroids is float32 \[0, 8\]"),
    "too many centroids": (with_value("fc1.centroids", lambda book: book[:1].repeat(65_537, 1)), r"fc1.centroids is float32 \[65537, 8\]"),
    "infinite": (with_value("fc1.centroids", lambda book: book / 0), "fc1.centroids holds NaN or infinity"),
    "no tensor": (with_value("fc1.centroids", lambda book: 5), "fc1 has no tensor centroids"),
    "meta": (with_value("fc1.centroids", lambda book: book.to("meta")), "fc1.centroids is no plain tensor with values"),
    "sparse": (with_value("fc1.centroids", Tensor.to_sparse), "fc1.centroids is no plain tensor with values"),
    "missing bias": (without("fc1.bias"), "does not fit Layer: it lacks fc1.bias"),
    "missing norm": (without("final_layer_norm.weight"), "does not fit Layer: it lacks final_layer_norm.weight"),
    "another bias": (with_value("fc1.bias", lambda bias: bias[1:]), r"fc1.bias has shape \[31\]; Layer has \[32\]"),
    "a strange tensor": (lambda held: held.update({"fc3.bias": torch.zeros(2)}), "does not fit Layer: the module has no fc3.bias"),
    "twice": (lambda held: held.update({"fc1.weight": torch.zeros(32, 16)}), "fc1.weight stands there both by itself and as a table"),
    "a strange table": (
        lambda held: held.update({"fc3.centroids": held["fc1.centroids"], "fc3.assignments": held["fc1.assignments"]}),
        "fc3 has a table, but the network has no fc3.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
def test_a_wrong_file_by_name_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    model = made(Layer)
    before = copy.deepcopy(model.state_dict())
    held, _ = by_name(model, SIZES)
    del held["output_projection.weight"]
    change, message = BY_NAME[name]
    change(held)
    torch.save(held, tmp_path / "net.pth")
    with pytest.raises(InputError, match=message) as found:
        import_checkpoint(model, tmp_path / "net.pth", (torch.zeros(1, 4, dtype=torch.int64),))
    assert "net.pth" in str(found.value) and "\n" not in str(found.value) and len(str(found.value)) < 400
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the network was changed"


BY_LAYER = {
    "no layer": (without("body"), "does not fit ConvNet: it lacks body.weight"),
    "no classifier bias": (without("fc_bias"), "does not fit ConvNet: it lacks fc.bias"),
    "no norm": (without("bn"), "does not fit ConvNet: it lacks bn.weight"),
    "half of the statistics": (lambda held: held["bn"].update(running_mean=torch.zeros(8)), "ConvNet: it lacks bn.running_var"),
    "blocks": (lambda held: held["body"].update(n_blocks=5), r"body says n_blocks = 5; for the network's weight \[8, 4, 3, 3\] it is 4"),
    "kernel": (lambda held: held["body"].update(k=5), "body says k = 5"),
    "kind": (lambda held: held["fc"].update(is_conv=True), "fc says is_conv = True"),
    "a fact that is none": (lambda held: held["fc"].update(k=torch.ones(1)), "fc says k = tensor"),
    "code past the end": (lambda held: held["fc"].update(centroids=held["fc"]["centroids"][:9]), "assignment 5.*; it has 9 centroids"),
    "a strange layer": (lambda held: held.update(neck=held["fc"]), "neck has a table, but the network has no neck.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_LAYER)
def test_a_wrong_file_by_layer_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    model = made(ConvNet)
    held, _ = by_layer(model, "stem", True)
    change, message = BY_LAYER[name]
    change(held)
    torch.save(held, tmp_path / "net.pth")
    with pytest.raises(InputError, match=message):
        import_checkpoint(model, tmp_path / "net.pth", (IMAGES,))


def test_another_network_is_refused(tmp_path: Path) -> None:
    held, _ = by_layer(made(ConvNet), "stem", True)
    torch.save(held, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"net.pth: body has a table, but the network has no body.weight; give the network that"):
        import_checkpoint(made(Layer), tmp_path / "net.pth", (torch.zeros(1, 4, dtype=torch.int64),))


def test_no_file_and_no_weights_are_refused(tmp_path: Path) -> None:
    endless: Held = {}
    endless["again"] = endless
    for name, held, message in (("list.pth", [1, 2], "holds no tables"), ("endless.pth", endless, "holds no tables")):
        torch.save(held, tmp_path / name)
        with pytest.raises(InputError, match=message):
            read_published(tmp_path / name, made(ConvNet))
    torch.save({"fc.centroids": torch.zeros(2, 4), "args": made(ConvNet)}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="holds more than tensors, which could run code"):
        read_published(tmp_path / "code.pth", made(ConvNet))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ConvNet, Layer])
def test_what_was_imported_runs_on_both_runtimes(tmp_path: Path, kind: type[nn.Module]) -> None:
    """A BatchNorm that turns signs among it."""
    model = made(kind)
    if kind is ConvNet:
        inputs, held = IMAGES, by_layer(model, "stem", True)[0]
        held["body_bn"]["weight"][::2] *= -1
    else:
        inputs, held = torch.randint(0, 40, (4, 6)), by_name(model, SIZES)[0]
        del held["output_projection.weight"]
    torch.save(held, tmp_path / "net.pth")
    program = qn_deploy.calibrate(import_checkpoint(model, tmp_path / "net.pth", (inputs[:1],)), [(inputs,)])
    assert any("4 channels behind 1 tables are multiplied by -1" in note for note in program.notes) == (kind is ConvNet)
    qn_deploy.export(program, tmp_path / "build", qn_deploy.ExportConfig("x86"))
    report = qn_deploy.verify(tmp_path / "build")
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("folded", [True, False], ids=["statistics folded", "statistics kept"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_networks_of_kill_the_bits_to_the_bit(tmp_path: Path, name: str, folded: bool) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=1000)
    held, weights = by_layer(model, "conv1", folded)
    torch.save(held, tmp_path / "net.pth")
    program = import_checkpoint(model, tmp_path / "net.pth", (torch.randn(1, 3, 64, 64),))
    state = model.state_dict()
    assert len(weights) == {"resnet18": 20, "resnet50": 53}[name]
    for weight, value in weights.items():
        assert torch.equal(state[weight], value), weight
        table, layer = program.weights[weight], held[weight.removesuffix(".weight")]
        assert isinstance(table, PQWeight)
        assert torch.equal(table.codes.long(), layer["assignments"].long().reshape(-1, table.shape[0]).t()), weight
    assert program.left == {}
