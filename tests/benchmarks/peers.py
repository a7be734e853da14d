"""Our networks beside their peers, and beside matrix products: python tests/benchmarks/peers.py [--compile]

Parameters, operations, seconds, rate and peak memory of a forward pass and of a training step in fp32, at
about as many weights.  Each network runs in the memory layout that suits it best, and with --compile compiled
where that is faster still; all are then measured in turn in one run.  Peers (denoising-diffusion-pytorch,
video-diffusion-pytorch, diffusers, smalldiffusion) are measured if installed: they are no dependencies, and
of torchvision they want only what reads files.  Run it on an idle machine.  Nothing here decides a test.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.layers.attention import FrameAttention
from diffusion_course.networks.dit import DiT
from diffusion_course.networks.unet import UNet, image_unet

IMAGE, VIDEO, LATENT, CLIP = (64, 1, 32, 32), (4, 1, 16, 32, 32), (64, 4, 16, 16), (8, 4, 16, 8, 8)


class Called(nn.Module):
    """A network of a peer, called as ours are."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x, t):
        return self.call(self.net, x, t)


def without_torchvision(name):
    """A module whose import asks for torchvision."""
    stubs = [f"torchvision{part}" for part in ("", ".transforms", ".utils")]
    stubs = [stub for stub in stubs if stub not in sys.modules]
    sys.modules |= {stub: MagicMock() for stub in stubs}
    try:
        return __import__(name)
    finally:
        for stub in stubs:
            del sys.modules[stub]


# ---- U-Net

def unet():
    """The network of papers/ddpm.py."""
    return image_unet(width=48)


def unet_full():
    """The same without patches, as in the paper: convolutions at every resolution."""
    return UNet(width=48, multipliers=(1, 2, 2), attend=(False, True, True))


def lucidrains():
    return without_torchvision("denoising_diffusion_pytorch").Unet(dim=38, dim_mults=(1, 2, 3), channels=1)


def diffusers_unet():
    from diffusers import UNet2DModel

    net = UNet2DModel(sample_size=32, in_channels=1, out_channels=1, block_out_channels=(48, 96, 96),
                      layers_per_block=1, norm_num_groups=8, attention_head_dim=24,
                      down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
                      up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"))
    return Called(net, lambda net, x, t: net(x, t).sample)


def small_unet():
    net = without_torchvision("smalldiffusion").Unet(
        32, 1, 1, ch=32, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=(16, 8), dropout=0.0)
    return Called(net, lambda net, x, t: net(x, t))


# ---- 3D U-Net

def unet3d():
    """The network of papers/video_diffusion_models.py."""
    return image_unet(width=48, temporal=FrameAttention)


def unet3d_full():
    return UNet(width=48, multipliers=(1, 2, 2), attend=(False, True, True), temporal=FrameAttention)


def lucidrains3d():
    return without_torchvision("video_diffusion_pytorch").Unet3D(dim=32, dim_mults=(1, 2, 4), channels=1)


def diffusers3d():
    from diffusers import UNet3DConditionModel

    net = UNet3DConditionModel(
        sample_size=32, in_channels=1, out_channels=1, block_out_channels=(32, 48, 80), layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"), norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=8)
    return Called(net, lambda net, x, t: net(x, t, torch.zeros(len(x), 1, 32, dtype=x.dtype)).sample)


# ---- DiT

def dit():
    return DiT(4, dim=128, depth=6, patch=(1, 2, 2))


def diffusers_dit():
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=32, num_layers=6, sample_size=16,
                                in_channels=4, out_channels=4, patch_size=2, norm_num_groups=4,
                                num_embeds_ada_norm=1, activation_fn="gelu")
    return Called(net, lambda net, x, t: net(
        x, (1000 * t).long(), class_labels=torch.zeros(len(x), dtype=torch.long)).sample)


def small_dit():
    net = without_torchvision("smalldiffusion").DiT(16, 4, patch_size=2, depth=6, head_dim=32, num_heads=4)
    return Called(net, lambda net, x, t: net(x, t))


# ---- video DiT

def video_dit():
    """The network of papers/latte.py."""
    return DiT(4, dim=128, depth=6, patch=(1, 2, 2), layouts=("space", "time"))


def diffusers_latte():
    from diffusers import LatteTransformer3DModel

    net = LatteTransformer3DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=3,
        sample_size=8, patch_size=2, video_length=16, activation_fn="gelu", caption_channels=32,
        cross_attention_dim=128, norm_type="ada_norm_single", norm_elementwise_affine=False,
        attention_bias=True)
    return Called(net, lambda net, x, t: net(
        x, (1000 * t).long(), torch.zeros(len(x), 1, 32, dtype=x.dtype)).sample)


FAMILIES = {
    "U-Net": (IMAGE, {"ours": unet, "ours, no patches": unet_full, "diffusers": diffusers_unet,
                      "denoising-diffusion-pytorch": lucidrains, "smalldiffusion": small_unet}),
    "3D U-Net": (VIDEO, {"ours": unet3d, "ours, no patches": unet3d_full, "diffusers": diffusers3d,
                         "video-diffusion-pytorch": lucidrains3d}),
    "DiT": (LATENT, {"ours": dit, "diffusers": diffusers_dit, "smalldiffusion": small_dit}),
    "video DiT": (CLIP, {"ours": video_dit, "diffusers": diffusers_latte}),
}


def forward_and_step(family, name, batch=None, layout=torch.contiguous_format, compiled=False):
    """Two functions, and the number of weights; nothing about peers is assumed but net(x, t)."""
    torch.manual_seed(0)
    shape, networks = FAMILIES[family]
    net = networks[name]().train()
    for part in net.modules():                                 # a layout is one of 4 or of 5 dimensions
        wanted = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}.get(type(part))
        if wanted and layout == torch.channels_last:
            part.to(memory_format=wanted)
    weights = sum(p.numel() for p in net.parameters())
    x, t = torch.randn(batch or shape[0], *shape[1:]), torch.rand(batch or shape[0])
    if layout == torch.channels_last:
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    if compiled:
        net.compile()

    def forward():
        with torch.no_grad():
            net(x, t)

    def step():
        optimizer.zero_grad()
        (net(x, t) - x).square().mean().backward()
        optimizer.step()

    return forward, step, weights


def seconds(f):
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def best(family, name, compiled):
    """Its functions in the setting whose training step is fastest, and the name of this setting."""
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        for also in (False, True) if compiled else (False,):
            said = " ".join(["channels last"] * (layout == torch.channels_last) + ["compiled"] * also)
            try:
                functions = forward_and_step(family, name, layout=layout, compiled=also)
                for f in functions[:2]:
                    f()
            except Exception as error:                         # ours must run as they are
                if name.startswith("ours") and not also or isinstance(error, ImportError):
                    raise
                print(f"{name}, {said or 'plain'}: does not run ({str(error).splitlines()[0]:.90})")
                continue
            found[min(seconds(functions[1]) for _ in range(3)), said or "plain"] = functions
    if not found:
        raise ImportError("it runs in no setting")
    (_, setting), functions = min(found.items(), key=lambda item: item[0])
    return functions, setting


def peak(family, name):
    """Megabytes that a process gains by two training steps."""
    code = f"import peers; peers.print_peak({family!r}, {name!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         cwd=Path(__file__).parent,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    return float(out.stdout.split()[-1]) if out.returncode == 0 else float("nan")


def print_peak(family, name):
    forward, *_ = forward_and_step(family, name, 1)
    forward()                                                  # what is loaded once
    _, step, _ = forward_and_step(family, name)
    before = high_water()
    step(), step()
    print(high_water() - before)


def high_water():
    """The most memory this process has had, in megabytes.  Linux; ru_maxrss begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--compile", action="store_true", help="try torch.compile, too (minutes)")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    a, b = torch.randn(2, 1024, 1024)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {args.rounds} rounds")
    for family in args.families:
        shape, networks = FAMILIES[family]
        made, settings, flops = {}, {}, {}
        for name in networks:
            try:
                made[name], settings[name] = best(family, name, args.compile)
            except ImportError as error:                       # ours must run, a peer may not
                if name.startswith("ours"):
                    raise
                print(f"{name}: not measured ({error})")
        for name in made:                                      # of one item: all scores would fill the memory
            for kind, f in zip(("forward", "step"), forward_and_step(family, name, 1)):
                with FlopCounterMode(display=False) as counter, \
                        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                    f()
                flops[name, kind] = counter.get_total_flops() * shape[0]
        taken, matmul = {key: [] for key in flops}, []
        for _ in range(args.rounds):                           # in turn, for fairness
            for name, functions in made.items():
                for kind, f in zip(("forward", "step"), functions):
                    taken[name, kind].append(seconds(f))
                    matmul.append(seconds(lambda: a @ b))
        ceiling = 2 * 1024**3 / statistics.median(matmul)
        print(f"\n{family}, {'x'.join(map(str, shape))}; matrix products of 1024 x 1024: "
              f"{ceiling / 1e9:.0f} GFLOP/s")
        ours = {kind: statistics.median(taken["ours", kind]) for kind in ("forward", "step")}
        for name, (*_, weights) in made.items():
            line = f"{name:28s} {weights / 1e6:5.2f} M, {settings[name]:13s}"
            for kind in ("forward", "step"):
                median, work = statistics.median(taken[name, kind]), flops[name, kind]
                line += (f" | {kind} {work / 1e9:6.1f} GFLOP {median * 1e3:6.0f} ms "
                         f"{work / median / ceiling:4.0%} of matmul, ours takes {ours[kind] / median:.2f}")
            print(line + ("" if args.no_memory else f" | {peak(family, name):5.0f} MB"), flush=True)


if __name__ == "__main__":
    main()
