"""Random weights under which every tensor of a replica matters."""

from __future__ import annotations

import torch

# computed from the sizes, and not learned
BUFFERS = ("relative_coords_table", "attn_mask", "num_points_scale", "anchors", "valid_mask")


@torch.no_grad()
def randomise(module, seed=0):
    """Fill parameters and statistics so that no two tensors are alike; eval mode."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith(BUFFERS):
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.ndim <= 1:
            tensor += torch.randn(tensor.shape, generator=random) * 0.2
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=random) / max(1, tensor[0].numel()) ** 0.5)
    return module.eval()


def noise(*shape, seed=1):
    """Normal noise (shape), the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
