"""SETR as MMSegmentation defines it, written a second time on bare state dicts: the reference of the tests.

Names, order of operations and every resize are those of mmseg's VisionTransformer, SETRUPHead, MLANeck, SETRMLAHead and
EncoderDecoder; nothing is shared with the module under test.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, DEPTH, HEADS, PATCH, CLASSES = 32, 4, 2, 16, 5
CHANNELS, MLA_CHANNELS = 16, 8


def random_state(decoder, seed=0, side=64):
    """A state dict with the names and shapes of an official checkpoint, whose classes are about equally frequent."""
    state = {}
    generator = torch.Generator().manual_seed(seed)

    def draw(name, *shape, scale=1.0, centre=0.0):
        state[name] = centre + scale * torch.randn(*shape, generator=generator)

    def linear(name, outputs, inputs, *taps, bias=True):
        draw(f"{name}.weight", outputs, inputs, *taps, scale=1.5 / math.sqrt(inputs * math.prod(taps)))
        if bias:
            draw(f"{name}.bias", outputs, scale=0.2)

    def norm(name, width, statistics):
        draw(f"{name}.weight", width, scale=0.2, centre=1.0)
        draw(f"{name}.bias", width, scale=0.2)
        if statistics:
            draw(f"{name}.running_mean", width, scale=0.2)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv_module(name, outputs, inputs, kernel):
        linear(f"{name}.conv", outputs, inputs, kernel, kernel, bias=False)
        norm(f"{name}.bn", outputs, statistics=True)

    draw("backbone.cls_token", 1, 1, WIDTH)
    draw("backbone.pos_embed", 1, 1 + (side // PATCH) ** 2, WIDTH)
    linear("backbone.patch_embed.projection", WIDTH, 3, PATCH, PATCH)
    for i in range(DEPTH):
        layer = f"backbone.layers.{i}"
        norm(f"{layer}.ln1", WIDTH, statistics=False)
        linear(f"{layer}.attn.attn.in_proj", 3 * WIDTH, WIDTH)
        for part in ("weight", "bias"):  # nn.MultiheadAttention's own spelling
            state[f"{layer}.attn.attn.in_proj_{part}"] = state.pop(f"{layer}.attn.attn.in_proj.{part}")
        linear(f"{layer}.attn.attn.out_proj", WIDTH, WIDTH)
        norm(f"{layer}.ln2", WIDTH, statistics=False)
        linear(f"{layer}.ffn.layers.0.0", 2 * WIDTH, WIDTH)
        linear(f"{layer}.ffn.layers.1", WIDTH, 2 * WIDTH)
    if decoder == "mla":
        for i in range(4):
            norm(f"neck.norm.{i}", WIDTH, statistics=False)
            conv_module(f"neck.mla.channel_proj.{i}", CHANNELS, WIDTH, 1)
            conv_module(f"neck.mla.feat_extract.{i}", CHANNELS, CHANNELS, 3)
            conv_module(f"decode_head.up_convs.{i}.0", MLA_CHANNELS, CHANNELS, 3)
            conv_module(f"decode_head.up_convs.{i}.1", MLA_CHANNELS, MLA_CHANNELS, 3)
            linear(f"auxiliary_head.{i}.conv_seg", CLASSES, CHANNELS, 1, 1)
    else:
        count, kernel = (1, 1) if decoder == "naive" else (4, 3)
        norm("decode_head.norm", WIDTH, statistics=False)
        for i in range(count):
            conv_module(f"decode_head.up_convs.{i}.0", CHANNELS, CHANNELS if i else WIDTH, kernel)
        for i in range(3):
            norm(f"auxiliary_head.{i}.norm", WIDTH, statistics=False)
            conv_module(f"auxiliary_head.{i}.up_convs.0.0", CHANNELS, WIDTH, kernel)
            linear(f"auxiliary_head.{i}.conv_seg", CLASSES, CHANNELS, 1, 1)
    linear("decode_head.conv_seg", CLASSES, 4 * MLA_CHANNELS if decoder == "mla" else CHANNELS, 1, 1)
    blobs = resize(torch.randn(1, 3, 10, 10, generator=generator), (160, 160))
    seen = logits(state, decoder, blobs, side).detach()
    mean, deviation = seen.mean((0, 2, 3)), seen.std((0, 2, 3))
    state["decode_head.conv_seg.weight"] /= deviation[:, None, None, None]
    state["decode_head.conv_seg.bias"] = (state["decode_head.conv_seg.bias"] - mean) / deviation
    return state


def under(state, prefix):
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def conv_module(state, name, x):
    """mmcv's ConvModule: convolution without bias, batch norm, ReLU."""
    part = under(state, f"{name}.")
    x = F.conv2d(x, part["conv.weight"], padding=part["conv.weight"].shape[-1] // 2)
    x = F.batch_norm(x, part["bn.running_mean"], part["bn.running_var"], part["bn.weight"], part["bn.bias"])
    return F.relu(x)


def map_norm(state, name, x):
    n, c, h, w = x.shape
    x = x.reshape(n, c, h * w).transpose(2, 1)
    x = F.layer_norm(x, (c,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
    return x.transpose(1, 2).reshape(n, c, h, w)


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def backbone(state, pixels, out_indices, with_cls_token, trained, interpolate_mode):
    state = under(state, "backbone.")
    x = F.conv2d(pixels, state["patch_embed.projection.weight"], state["patch_embed.projection.bias"], stride=PATCH)
    hw = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((state["cls_token"].expand(len(x), -1, -1), x), dim=1)
    positions = state["pos_embed"]
    if hw != (trained // PATCH, trained // PATCH):
        side = trained // PATCH
        grid = positions[:, 1:].reshape(1, side, side, WIDTH).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=hw, mode=interpolate_mode, align_corners=False)
        positions = torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)
    x = x + positions
    if not with_cls_token:
        x = x[:, 1:]
    outs = []
    for i in range(DEPTH):
        layer = under(state, f"layers.{i}.")
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
        attention.load_state_dict(under(layer, "attn.attn."))
        y = F.layer_norm(x, (WIDTH,), layer["ln1.weight"], layer["ln1.bias"], 1e-6)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = F.layer_norm(x, (WIDTH,), layer["ln2.weight"], layer["ln2.bias"], 1e-6)
        y = F.gelu(F.linear(y, layer["ffn.layers.0.0.weight"], layer["ffn.layers.0.0.bias"]))
        x = x + F.linear(y, layer["ffn.layers.1.weight"], layer["ffn.layers.1.bias"])
        if i in out_indices:
            tokens = x[:, 1:] if with_cls_token else x
            outs.append(tokens.reshape(len(x), *hw, WIDTH).permute(0, 3, 1, 2))
    return outs


@torch.no_grad()
def logits(state, decoder, pixels, trained=64, interpolate_mode="bilinear"):
    """The decode head's output, before anything resizes it: (N,C,h,w)."""
    maps = backbone(state, pixels, (0, 1, 2, 3), decoder != "mla", trained, interpolate_mode)
    if decoder == "mla":
        maps = [map_norm(state, f"neck.norm.{i}", x) for i, x in enumerate(maps)]
        feats = [conv_module(state, f"neck.mla.channel_proj.{i}", x) for i, x in enumerate(maps)][::-1]
        mids = []
        for feat in feats:
            mids.append(mids[-1] + feat if mids else feat)
        outs = [conv_module(state, f"neck.mla.feat_extract.{i}", mid) for i, mid in enumerate(mids)]
        branches = []
        for i, x in enumerate(outs):
            for j in range(2):
                x = conv_module(state, f"decode_head.up_convs.{i}.{j}", x)
            branches.append(F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False))
        x = torch.cat(branches, dim=1)
    else:
        x = map_norm(state, "decode_head.norm", maps[-1])
        for i in range(1 if decoder == "naive" else 4):
            x = conv_module(state, f"decode_head.up_convs.{i}.0", x)
            x = F.interpolate(x, scale_factor=4 if decoder == "naive" else 2, mode="bilinear", align_corners=False)
    return F.conv2d(x, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])


def encode_decode(state, decoder, pixels, trained=64):
    """Logits at the input's size."""
    return resize(logits(state, decoder, pixels, trained), pixels.shape[2:])


def slide(state, decoder, pixels, crop, stride, trained=64):
    """slide_inference: logits at the image's size, averaged where windows overlap."""
    n, _, height, width = pixels.shape
    rows = max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1
    cols = max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1
    preds = pixels.new_zeros((n, CLASSES, height, width))
    counts = pixels.new_zeros((n, 1, height, width))
    for row in range(rows):
        for col in range(cols):
            y2, x2 = min(row * stride[0] + crop[0], height), min(col * stride[1] + crop[1], width)
            y1, x1 = max(y2 - crop[0], 0), max(x2 - crop[1], 0)
            preds[:, :, y1:y2, x1:x2] += encode_decode(state, decoder, pixels[:, :, y1:y2, x1:x2], trained)
            counts[:, :, y1:y2, x1:x2] += 1
    assert not (counts == 0).any()
    return preds / counts


def class_map(seg_logits, size):
    """Logits at the input's size -> the class of each pixel of a frame of `size`."""
    return resize(seg_logits, size)[0].argmax(0).numpy()
