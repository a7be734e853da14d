"""Several processes that train one model: each computes the loss of its rows of a batch.

With share_out they share the weights, too, with gradients, averages and the optimizer's moments.  As in ZeRO
(https://arxiv.org/abs/1910.02054), by PyTorch's fully_shard: every process keeps a part of every tensor, and
has the whole weights of a block only while the block runs.  What is saved is whole, so a run may be resumed
by another number of processes.
"""
import time

import torch
from torch import Tensor, nn

from ..diffusion.ema import EMA
from ..recipe import Recipe


class LossModule(nn.Module):
    """The loss as a module that owns the model, so that DDP sees its forward pass and syncs its gradients."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.model, self.recipe = recipe.model, recipe

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.recipe.loss(batch)


def leave(state) -> None:
    """Close the group of processes.

    Its threads need the interpreter to free a tensor of Python's.  Before: PyTorch may wait for them while it
    closes the group, holding the interpreter.  After: DDP may keep them alive, and one that comes when the
    interpreter is ending aborts the process.  So they are let run twice.
    """
    time.sleep(0.1)
    state.destroy_process_group()
    time.sleep(0.1)


def share_out(model: nn.Module, ema: EMA) -> None:
    """Leave this process its part of the weights of denoisers and of their averages, in place."""
    from torch.distributed.device_mesh import init_device_mesh  # they take a second
    from torch.distributed.fsdp import fully_shard

    if sum(count(net) for net in networks(model)) != count(model):
        raise ValueError("only the networks of denoisers can be shared out, and this has other weights; "
                         "train without shard")
    if numbers := [name for name, p in model.named_parameters() if not p.ndim]:
        raise ValueError(f"{numbers[0]} is a single number, which cannot be shared out; train without shard")
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for net in *networks(model), *networks(ema.average):
        for p in net.parameters():
            p.data = p.data.contiguous()
            torch.distributed.broadcast(p.data, 0)             # all begin with those of the first process
        blocks = [block for part in net.modules() if isinstance(part, nn.ModuleList) for block in part]
        for part in *reversed(blocks), net:                    # the innermost first
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    with torch.no_grad():
        ema.pairs = [(a.to_local(), p.to_local()) for a, p in ema.matched()]


def networks(model: nn.Module) -> list[nn.Module]:
    """Of the denoisers in a model: what is only ever called, so that its weights can come when it is."""
    own = getattr(model, "net", None)
    return [own] if own is not None else [net for part in model.children() for net in networks(part)]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def whole(x: Tensor) -> Tensor:
    """A tensor that was shared out, put together on the CPU; every process must ask for it."""
    return x.full_tensor().cpu() if hasattr(x, "full_tensor") else x


def part_of(x: Tensor, like: Tensor) -> Tensor:
    """This process's part of x, if like is shared out."""
    if not hasattr(like, "full_tensor"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
