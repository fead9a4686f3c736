"""A folder of images as an input of a network that looks at pictures."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import InputError, ToolchainError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MOST = 512  # images of a folder that are read, spread over all of them
_EXAMPLE = "--preprocess 'resize=256 crop=224 mean=0.485,0.456,0.406 std=0.229,0.224,0.225'"
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Colours = Literal["rgb", "bgr", "gray"]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes numbers: resized, cropped, divided by 255, then (x - mean) / std.

    Attributes:
        resize: (n,) makes the shorter side n pixels long; (height, width) both; () leaves the image as it is.
        crop: (height, width) around the center; () for none.
        mean, std: for each channel, or one for all.
        interpolation: of resizing.
        channels: their order.
    """

    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: Interpolation = "bilinear"
    channels: Colours = "rgb"

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """From `resize=256 crop=224 mean=0.485,0.456,0.406 std=0.229,0.224,0.225`; sizes are N or HEIGHTxWIDTH.

        Raises:
            InputError: a word is unknown or has another value than it can have.
        """
        values: dict[str, Any] = {}
        for word in shlex.split(text):
            key, equals, value = word.partition("=")
            if not equals or key not in _READERS:
                raise InputError(f"{word!r} is unknown in --preprocess; it takes {', '.join(_READERS)}, for example {_EXAMPLE}")
            if key in values:
                raise InputError(f"{key} stands twice in --preprocess")
            values[key] = _READERS[key](key, value)
        if len(values.get("crop", ())) == 1:
            values["crop"] *= 2
        count = 1 if values.get("channels") == "gray" else 3
        for key in ("mean", "std"):
            if len(values.get(key, (0.0,))) not in (1, count):
                raise InputError(f"{key} has {len(values[key])} numbers; expected 1 or one for each of {count} channels")
        return cls(**values)


def read_images(folder: Path, preprocess: Preprocess) -> Tensor:
    """The images of a folder and those in it, in the order of their paths: float32 [n, channels, height, width], n at most `MOST`.

    Raises:
        InputError: the folder holds no images, one can't be read, or they are not all of one size after preprocessing.
        ToolchainError: pillow is not installed.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} holds no images; expected files ending in {', '.join(SUFFIXES)}")
    step = max(1, -(-len(paths) // MOST))
    tensors = [_read(path, preprocess) for path in paths[::step]]
    for path, tensor in zip(paths[::step], tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            raise InputError(
                f"{path} has {_size(tensor)} pixels, {paths[0]} {_size(tensors[0])}; make them alike with resize=HEIGHTxWIDTH or crop=N"
            )
    return torch.stack(tensors)


def _read(path: Path, preprocess: Preprocess) -> Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise ToolchainError("reading images needs pillow: pip install 'qn-deploy[images]'") from None
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if preprocess.channels == "gray" else "RGB")
    except Exception as error:  # pillow raises many classes for damaged files
        raise InputError(f"{path} can't be read as an image ({type(error).__name__}); remove it or copy it again") from None
    if preprocess.resize:
        image = image.resize(_resized(image.size, preprocess.resize), Image.Resampling[preprocess.interpolation.upper()])
    if preprocess.crop:
        high, wide = preprocess.crop
        if high > image.height or wide > image.width:
            raise InputError(f"{path} has {image.height}x{image.width} pixels, less than crop={high}x{wide}; add resize=N to --preprocess")
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        image = image.crop((left, top, left + wide, top + high))
    pixels = np.array(image, np.float32).reshape(image.height, image.width, -1) / 255
    if preprocess.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    scaled = (pixels - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def _resized(size: tuple[int, int], resize: tuple[int, ...]) -> tuple[int, int]:
    """(width, height), as pillow wants it."""
    if len(resize) == 2:
        return resize[1], resize[0]
    width, height = size
    short = min(width, height)
    return max(1, width * resize[0] // short), max(1, height * resize[0] // short)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[1:]))


def _sides(key: str, value: str) -> tuple[int, ...]:
    sides = value.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= 16_384 for side in sides):
        raise InputError(f"{key}={value} in --preprocess: expected pixels, {key}=224 or {key}=224x320")
    return tuple(map(int, sides))


def _numbers(key: str, value: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise InputError(f"{key}={value} in --preprocess: expected numbers, {key}=0.5 or {key}=0.485,0.456,0.406") from None
    if not all(abs(number) < 1e6 for number in numbers) or (key == "std" and min(numbers) <= 0):
        raise InputError(f"{key}={value} in --preprocess: expected {'positive' if key == 'std' else 'finite'} numbers")
    return numbers


def _word(key: str, value: str) -> str:
    choices = get_args(Interpolation if key == "interpolation" else Colours)
    if value not in choices:
        raise InputError(f"{key}={value} in --preprocess: expected {', '.join(choices)}")
    return value


_READERS = {"resize": _sides, "crop": _sides, "mean": _numbers, "std": _numbers, "interpolation": _word, "channels": _word}
