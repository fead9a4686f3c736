"""`qn-deploy import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qn_deploy.cli.options import PATH, json_option
from qn_deploy.cli.progress import stages
from qn_deploy.cli.saving import save_and_tell
from qn_deploy.cli.source_options import source_options

if TYPE_CHECKING:
    from qn_deploy.cli.source_options import Given
    from qn_deploy.compression.published import Rest


@click.command("import")
@source_options
@click.option(
    "--rest", type=click.Choice(["int8", "float"]), default="int8", show_default=True, help="What weights become that have no table."
)
@click.option("--out", type=PATH, default=Path("model.pt"), show_default=True, help="The file to write.")
@json_option
def command(given: Given, rest: Rest, out: Path, as_json: bool) -> None:
    """Take a published checkpoint with tables: the network SOURCE with the --weights FILE becomes a model.pt.

    FILE is a state dict of fairseq's product quantization, or a compressed network of kill-the-bits. Codes stay as they are, centroids are
    rounded to int8; what that costs is told. With --calibrate the ranges of static int8 activations are found too.

    SOURCE is package.module:function of your own code, which gives the network that the checkpoint was made of.

    \b
    Examples:
      qn-deploy import torchvision.models:resnet18 --weights resnet18_small_blocks.pth --example 'x=float32[1,3,224,224]'
      qn-deploy import my_net:build --weights checkpoint.pth --calibrate data.npz --rest float --out small.pt
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {given.source}")
    from qn_deploy.compression.calibrate import calibrate

    program, batches = given.imported(rest)
    if batches is not None:
        progress("calibrating")
        program = calibrate(program, batches)
    save_and_tell(program, out, as_json, progress)
