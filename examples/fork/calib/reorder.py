"""A grouping with the signature of Quamba's group_wise_sort_indices."""

import torch


def by_loudness(tensor, headdim, ssd_ngroups, group_heads=False, nhead_groups=4, ndim_groups=4):
    """Heads in order of their loudest channel, channels in their own; groups of equal sizes, no clustering."""
    channels = tensor.view(ssd_ngroups, -1, headdim)
    n_heads = channels.shape[1]
    heads = channels.amax(-1).argsort(dim=-1, stable=True)  # (ssd_ngroups, n_heads), counted within each SSD group
    order = channels.argsort(dim=-1, stable=True).gather(1, heads[..., None].expand(-1, -1, headdim))
    head_index = (heads + n_heads * torch.arange(ssd_ngroups)[:, None]).flatten()
    channel_index = (head_index[:, None] * headdim + order.flatten(0, 1)).flatten()
    head_groups = torch.full((ssd_ngroups, nhead_groups), n_heads // nhead_groups, dtype=torch.int32)
    dim_groups = torch.full((ssd_ngroups, nhead_groups, ndim_groups), headdim // ndim_groups, dtype=torch.int32)
    return channel_index, head_groups, head_index, dim_groups
