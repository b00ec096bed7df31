"""Seeded random weights for trials without a trained checkpoint, scaled so that a wrong graph would show.

The libraries' own initialisation (normal, std 0.02; zero biases) is made for training: its outputs hardly depend on
the input (a random DETR moves its boxes by 0.001 px between photographs), so a swapped colour order would pass a
comparison. Here every layer keeps the variance of its input, norms and biases are not trivial, attention is peaked
and the heads give scores and boxes that spread.
"""

from __future__ import annotations

import math
import re

import torch
from torch import nn

# standard deviation of a layer's output for inputs of unit variance, by the name of the layer; first match
_GAINS = (
    (re.compile(r"(q|k)_proj$"), 1.6),  # peaked attention: an average over all tokens would forget the image
    (re.compile(r"self_attn\.(v|o)_proj$"), 0.75),  # what all tokens attend to must not drown what sets them apart
    (re.compile(r"(v|o)_proj$"), 1.6),
    (re.compile(r"class_labels_classifier$"), 4.0),
    (re.compile(r"classifier$"), 1.0),
    (re.compile(r"(class_embed\.\d+|enc_score_head)$"), 2.0),
    (re.compile(r"bbox_predictor\.layers\.\d+$"), 2.0),
    (re.compile(r"(bbox_embed\.\d+|enc_bbox_head)\.layers\.2$"), 0.3),  # refined: 0.7 triples rounding errors
    (re.compile(r"sampling_offsets$"), 0.5),
)
_FOCAL_HEAD = re.compile(r"(class_embed\.\d+|enc_score_head)$")
_RESIDUAL_END = re.compile(r"\.layers\.\d+\.layer\.(\d)\.normalization$")


@torch.no_grad()
def seed_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter and every batch-norm statistic of `model` in place; the same seed gives the same."""
    random = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            _seed_product(module, name, random)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm) or "BatchNorm" in type(module).__name__:
            _seed_norm(module, name, random, last_of_residual=_ends_residual(model, name))
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 2.0, generator=random)  # object queries that look at different places
        else:  # tokens, position tables, layer scales: parameters of the module itself
            for key, parameter in module.named_parameters(recurse=False):
                if key.startswith("lambda"):
                    parameter.uniform_(0.3, 0.7, generator=random)
                elif key == "logit_scale":  # of cosines, as a logarithm: what Swin v2 starts to learn from
                    parameter.normal_(math.log(10), 0.3, generator=random)
                else:
                    parameter.normal_(0, 0.5, generator=random)


def _seed_product(
    module: nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d, name: str, random: torch.Generator
) -> None:
    inputs, taps, axis = module.weight.shape[1], module.weight[0, 0].numel(), 1
    if isinstance(module, nn.ConvTranspose2d):  # of its taps an output sees one in each step of the stride
        inputs, taps, axis = module.weight.shape[0], taps // math.prod(module.stride), 0
    # ReLU and SiLU pass about 0.4 of the variance
    default = 1.6 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else 1.0
    gain = next((gain for pattern, gain in _GAINS if pattern.search(name)), default)
    module.weight.normal_(0, gain / math.sqrt(inputs * taps), generator=random)
    if taps > 1:
        # smooth kernels: white ones make features of pixel noise, and box refinement amplifies its rounding errors
        smooth = torch.empty_like(module.weight[..., :1, :1]).normal_(
            0, gain / math.sqrt(inputs) / taps, generator=random
        )
        module.weight.mul_(0.4).add_(smooth, alpha=0.9)
    if inputs > 4:
        # rectified inputs have a mean: without it, positions and images do not grow alike with every layer
        module.weight -= module.weight.mean(axis, keepdim=True)
    if module.bias is None:
        return
    module.bias.normal_(0, 0.1, generator=random)
    if name.endswith("enc_output.0"):
        module.bias.zero_()  # the tokens masked out in RT-DETR all score the same: let it be low
    if name.endswith("class_labels_classifier"):
        module.bias[-1] -= 2.0  # "no object", so that many queries name a class
    if _FOCAL_HEAD.search(name):
        # the best of Q x C scores are kept: shift their distribution so that the Q-th best stays near one half
        classes = module.weight.shape[0]
        module.bias += 0.5 - gain * max(0.0, float(torch.special.ndtri(torch.tensor(1 - 1 / classes))))


def _seed_norm(module: nn.Module, name: str, random: torch.Generator, *, last_of_residual: bool) -> None:
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    for key, tensor in tensors.items():
        if key == "weight":
            tensor.uniform_(0.7, 1.3, generator=random)
            if last_of_residual:  # else every residual block doubles the variance
                tensor.mul_(0.3)
        elif key == "running_var":
            tensor.uniform_(0.7, 1.3, generator=random)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.1, generator=random)


def _ends_residual(model: nn.Module, name: str) -> bool:
    """Whether `name` is the last norm of a ResNet block's residual branch."""
    found = _RESIDUAL_END.search(name)
    if not found:
        return False
    branch = model.get_submodule(name.rsplit(".", 2)[0])
    return int(found[1]) == len(list(branch.children())) - 1
