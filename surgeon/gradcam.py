"""Where the network looks: Grad-CAM on the last layer that keeps the rows and columns of the image.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
localization", ICCV 2017, eq. 1 and 2, as captum computes it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from math import isqrt, log
from typing import Literal

import torch
from torch import Tensor, nn

from surgeon.errors import IncompatibleError, OptionError
from surgeon.preprocessing import Preprocessing
from surgeon.subject import Subject

_BATCH = 32
# Class, distillation and register tokens; more than any known network has.
_PREFIX = 16
# Fewer places tell little; where a network has no such map late, the last one has to do.
_PLACES = 16
# How far the shape of a map may be from the image's: padding adds rows and columns.
_STRETCH = 1.5


@dataclass(frozen=True)
class FeatureMap:
    """Output of a module in which the places of the image can still be told apart."""

    module: str
    """Name of the module."""
    layout: Literal["channels first", "channels last", "tokens"]
    """`[n, c, h, w]`, `[n, h, w, c]`, or `[n, prefix + h * w, c]`."""
    height: int
    width: int
    prefix: int = 0
    """Tokens in front that have no place."""

    def to_map(self, output: Tensor) -> Tensor:
        """Return the module's output as `[n, c, h, w]`."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.unflatten(2, (self.height, self.width))

    def from_map(self, found: Tensor, output: Tensor) -> Tensor:
        """Return a map in the layout of the module's output, with what else that holds."""
        if self.layout == "channels first":
            return found
        if self.layout == "channels last":
            return found.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix], found.flatten(2).transpose(1, 2)], 1)


def find_feature_map(subject: Subject) -> FeatureMap:
    """Find the last feature map of sixteen places, or else of two, that all goes through.

    Maps come as `[n, c, h, w]`, with channels last, or as tokens in rows, behind a few of no place.
    Where a class token alone is read, the last block is too late: no place speaks for itself.

    Raises:
        OptionError: captum is not installed.
        IncompatibleError: There is no such map.
    """
    if importlib.util.find_spec("captum") is None:
        raise OptionError("--explain: needs captum; pip install 'debias-surgeon[explain]'")
    size = subject.preprocessing.input_size
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(subject.device)
    coarse = None
    for found in _maps(subject, x.requires_grad_()):
        if found.height * found.width < _PLACES and coarse:
            continue
        if _is_passed_by_all(subject, found, x):
            if found.height * found.width >= _PLACES:
                return found
            coarse = found
    if coarse:
        return coarse
    raise IncompatibleError(
        f"{subject.architecture}: no layer keeps the rows and columns of the image, so there is no "
        "place to look at; run without --explain"
    )


def _maps(subject: Subject, x: Tensor) -> list[FeatureMap]:
    """List the maps, the last first, that the logits depend on at more than one place."""
    outputs: dict[str, list[Tensor]] = {}
    names = {
        module: name
        for name, module in subject.net.named_modules()
        if name and name not in subject.head.modules and any(True for _ in module.parameters())
    }

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            outputs.setdefault(names[module], []).append(output)

    handles = [module.register_forward_hook(note) for module in names]
    try:
        logits = subject.net(x)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: own[0] for name, own in outputs.items() if len(own) == 1}
    maps = {name: _as_map(name, tuple(y.shape), subject.preprocessing) for name, y in once.items()}
    found = [place for place in maps.values() if place]
    if not found:
        return []
    # Weights of their own: where all count the same, a normalisation may have no gradient.
    score = (logits * torch.arange(1, logits.shape[1] + 1, device=logits.device)).sum()
    gradients = torch.autograd.grad(score, [once[m.module] for m in found], allow_unused=True)
    felt = [
        place
        for place, gradient in zip(found, gradients, strict=True)
        if gradient is not None and int(place.to_map(gradient).ne(0).any(1).sum()) > 1
    ]
    return felt[::-1]


def _is_passed_by_all(subject: Subject, where: FeatureMap, x: Tensor) -> bool:
    """Say whether the logits no longer depend on the image once a map is held fixed."""
    module = subject.net.get_submodule(where.module)
    handle = module.register_forward_hook(lambda _, __, output: output.detach())
    try:
        return not subject.net(x).requires_grad
    finally:
        handle.remove()


def look(subject: Subject, where: FeatureMap, x: Tensor, classes: Tensor) -> Tensor:
    """Say how much each place speaks for a class.

    Args:
        subject: The network, as it is or edited.
        where: Its feature map.
        x: `[n, 3, H, W]` preprocessed images.
        classes: `[n]` the class to ask about, of each image.

    Returns:
        `[n, h, w]` on the CPU, of each image from 0 to 1 (all 0 where nothing speaks for it).
    """
    from captum.attr import LayerGradCam

    seen = nn.Identity()  # takes the map, whatever the layout of the output

    def through(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return where.from_map(seen(where.to_map(output)), output)

    explain = LayerGradCam(subject.net, seen)
    handle = subject.net.get_submodule(where.module).register_forward_hook(through)
    found = []
    try:
        for images, asked in zip(x.split(_BATCH), classes.split(_BATCH), strict=True):
            heat = explain.attribute(
                images.detach().to(subject.device).requires_grad_(),
                target=asked.to(subject.device),
                relu_attributions=True,
            )
            assert isinstance(heat, Tensor)
            found.append(heat.detach()[:, 0].cpu())
    finally:
        handle.remove()
    heat = torch.cat(found)
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)


def _as_map(module: str, shape: tuple[int, ...], given: Preprocessing) -> FeatureMap | None:
    """Read the shape of an output for one image as that of a map, None where it is none."""
    image = given.input_size[1:]
    if len(shape) == 4:
        return _of_image(module, shape, image)
    return _of_tokens(module, shape[1], image) if len(shape) == 3 else None


def _of_image(module: str, shape: tuple[int, ...], image: tuple[int, int]) -> FeatureMap | None:
    def stretch(sides: tuple[int, ...]) -> float:
        return abs(log(sides[0] / sides[1]) - log(image[0] / image[1]))

    first, last = shape[2:], shape[1:3]
    if min(stretch(first), stretch(last)) > log(_STRETCH):
        return None
    if stretch(last) < stretch(first):
        return FeatureMap(module, "channels last", *last)
    return FeatureMap(module, "channels first", *first)


def _of_tokens(module: str, tokens: int, image: tuple[int, int]) -> FeatureMap | None:
    for prefix in range(min(_PREFIX, tokens - 1)):
        height = isqrt((tokens - prefix) * image[0] // image[1])
        width = height * image[1] // image[0]
        if height * width == tokens - prefix and image[0] % max(height, 1) == 0:
            return FeatureMap(module, "tokens", height, width, prefix)
    return None
