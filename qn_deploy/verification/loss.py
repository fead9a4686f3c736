"""Rung 5: what compression costs, for each output of the simulated program against the float model's."""

from __future__ import annotations

from torch import Tensor

from qn_deploy.exporting.collapse import MIN_VALUES, by_channel, channel_axes, collapsed
from qn_deploy.exporting.golden import Vectors
from qn_deploy.exporting.manifest import Manifest
from qn_deploy.verification.judge import Check, describe, form_of, outputs_of
from qn_deploy.verification.numerics import compare

RANGES_APART = 100.0  # channels whose ranges differ by more are reported apart: the large ones would drown the others


def check_loss(manifest: Manifest, golden: Vectors, min_sqnr_db: float | None) -> list[Check]:
    """A line for each output, and within one for each group of channels of another range; and one for each that collapsed.

    Args:
        manifest: of the build.
        golden: its golden vectors.
        min_sqnr_db: limit of each line in dB; None only reports.
    """
    checks = []
    for exporter in sorted({entry.exporter for entry in manifest.files.values()}):
        what = f"float model to simulation ({exporter})"
        for output, found, expected in outputs_of(manifest, golden.simulated[exporter], golden.floats):
            checks += _check_output(what + output, found, expected, min_sqnr_db)
            if (reason := collapsed(found, expected)) is not None:
                allowed = manifest.config.allow_constant
                limit = "allowed by the export" if allowed else "varies as the float model"
                checks.append(Check(5, what + output, reason, limit, None if allowed else False))
    return checks


def _check_output(what: str, found: Tensor, expected: Tensor, min_sqnr_db: float | None) -> list[Check]:
    if (form := form_of(found)) != (wanted := form_of(expected)):
        return [Check(5, what, form, wanted, False)]
    if not expected.is_floating_point():
        return [Check(5, what, describe(compare(found, expected)), "reported", None)]
    if bool(missing := (expected.isnan() & ~found.isnan()).sum()):
        reason = (
            f"the float model gives NaN for {int(missing):,} of {expected.numel():,} values: capture it with example inputs that it knows"
        )
        return [Check(5, what, reason, "numbers", False)]
    if expected.numel() and bool(expected.isnan().all()):
        return [Check(5, what, "every value is NaN: nothing was compared", "numbers", False)]
    limit = "reported" if min_sqnr_db is None else f">= {min_sqnr_db:g} dB"
    checks = []
    for part, ours, theirs in groups(found, expected):
        result = compare(ours, theirs)
        said = f"SQNR {result.sqnr_db:.1f} dB, cosine {result.cosine:.4f}, max {result.max_error:.3g}"
        said += "" if part else f", top-1 {result.top1:.1%}"
        checks.append(Check(5, what + part, said, limit, None if min_sqnr_db is None else result.sqnr_db >= min_sqnr_db))
    return checks


def groups(found: Tensor, expected: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """An output in groups of channels whose ranges lie within a factor of 100, the largest first; whole, without a label, if that is one.

    Channels are counted along the dimension in which ranges differ most. Of fewer than 16 values a channel's range is not known: a logit is
    near zero for two images by chance.
    """
    parts: list[tuple[str, Tensor, Tensor]] = []
    for axis in channel_axes(expected.ndim):
        ours, theirs = by_channel(found, axis), by_channel(expected, axis)
        if theirs.shape[1] < MIN_VALUES:
            continue
        ranges = theirs.double().nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
        members = _members(ranges)
        if len(members) > max(len(parts), 1):
            labels = [f", {len(each)} channels up to {float(ranges[each].max()):.3g}" for each in members]
            parts = [(label, ours[each], theirs[each]) for label, each in zip(labels, members, strict=True)]
    return parts or [("", found, expected)]


def _members(ranges: Tensor) -> list[Tensor]:
    """The indices of each group; channels of zeros stay with the smallest."""
    left, found = ranges > 0, []
    while bool(left.any()):
        group = left & (ranges > ranges[left].max() / RANGES_APART)
        found.append(group)
        left = left & ~group
    if found:
        found[-1] = found[-1] | (ranges == 0)
    return [group.nonzero().flatten() for group in found]
