"""A timm network becomes an .onnx and a .pte of a given size: python examples/timm_network.py FOLDER.

The weights and images are random. With a network of your own, the command line does the same without this file:

    qn-deploy compress timm_network:network --weights net.safetensors --calibrate photos/ --preprocess 'crop=32' --max-size 180KB
    qn-deploy export model.pt --out build
    qn-deploy verify build
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from torch import nn

import qn_deploy

PIXELS, LIMIT = 32, 180_000


def network() -> nn.Module:
    """The network; on the command line, SOURCE names this function."""
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", pretrained=False, num_classes=10).eval()


def main() -> None:
    """The whole road."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model, images = network(), torch.randn(32, 3, PIXELS, PIXELS)  # for a real network: a few hundred photos, unlabelled
    program = qn_deploy.capture(model, (images[:2],))

    # Each weight gets the form by which all together lose least within the bytes of model.pt.
    small = qn_deploy.plan(program, [(batch,) for batch in images.split(16)], max_size=LIMIT, config=qn_deploy.PlanConfig(draws=16))
    qn_deploy.save(small, folder / "model.pt")
    print(f"model.pt: {(folder / 'model.pt').stat().st_size:,} of {LIMIT:,} bytes")

    print(qn_deploy.export(small, folder / "build"))
    report = qn_deploy.verify(folder / "build")
    print(report)
    sys.exit(not report.passed)


if __name__ == "__main__":
    main()
