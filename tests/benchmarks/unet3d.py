"""Our 3D U-Net beside its peers, and beside this machine's matrix products: python tests/benchmarks/unet3d.py

Parameters, operations, seconds, rate and peak memory of a forward pass and of a training step in fp32 on the
CPU, measured in turn in one run.  The peers (video-diffusion-pytorch, diffusers) are measured if installed.
Run it on an idle machine.  Nothing here decides a test.
"""
import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.layers.attention import FrameAttention
from diffusion_course.networks.unet import UNet, image_unet

SHAPES = ((4, 1, 16, 32, 32), (16, 1, 8, 16, 16))


def ours():
    """The network of papers/video_diffusion_models.py."""
    return image_unet(width=64, temporal=FrameAttention)


def full():
    """The same without patches, as in the paper: convolutions at every resolution."""
    return UNet(width=48, multipliers=(1, 2, 2), attend=(False, True, True), temporal=FrameAttention)


def lucidrains():
    """Unet3D of video-diffusion-pytorch, which wants torchvision only to read GIFs."""
    stubs = [name for name in ("torchvision", "torchvision.transforms", "torchvision.utils")
             if name not in sys.modules]
    sys.modules |= {name: MagicMock() for name in stubs}
    try:
        from video_diffusion_pytorch import Unet3D
    finally:
        for name in stubs:
            del sys.modules[name]
    return Unet3D(dim=32, dim_mults=(1, 2, 4), channels=1)


def diffusers():
    """UNet3DConditionModel at about the same number of parameters, without text."""
    from diffusers import UNet3DConditionModel

    class Unconditional(UNet3DConditionModel):
        def forward(self, x, t):
            return super().forward(x, t, torch.zeros(len(x), 1, 32)).sample

    return Unconditional(
        sample_size=32, in_channels=1, out_channels=1, block_out_channels=(32, 64, 96), layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"), norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=8)


NETWORKS = {"ours": ours, "ours, no patches": full, "diffusers": diffusers,
            "video-diffusion-pytorch": lucidrains}


def forward_and_step(name, shape):
    """Two functions, and the number of weights; nothing about peers is assumed but net(x, t)."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x, t = torch.randn(shape), torch.rand(shape[0])
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def forward():
        with torch.no_grad():
            net(x, t)

    def step():
        optimizer.zero_grad()
        (net(x, t) - x).square().mean().backward()
        optimizer.step()

    return forward, step, sum(p.numel() for p in net.parameters())


def seconds(f):
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def peak(name, shape):
    """Megabytes that a process gains by two training steps."""
    code = f"import unet3d; unet3d.print_peak({name!r}, {shape})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         cwd=Path(__file__).parent)
    return float(out.stdout.split()[-1]) if out.returncode == 0 else float("nan")


def print_peak(name, shape):
    forward, _, _ = forward_and_step(name, (1, *shape[1:]))
    forward()                                                  # what is loaded once
    _, step, _ = forward_and_step(name, shape)
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
    parser.add_argument("--only", help="one network")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    a, b = torch.randn(2, 1024, 1024)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {args.rounds} rounds")
    for shape in SHAPES:
        made = {}
        for name in [args.only] if args.only else NETWORKS:
            try:
                made[name] = forward_and_step(name, shape)
                for f in made[name][:2]:
                    f()
            except (ImportError, RuntimeError, ValueError) as error:   # ours must run, a peer may not
                if name.startswith("ours"):
                    raise
                made.pop(name, None)
                print(f"{name}: not measured at {shape} ({str(error).splitlines()[0]})")
        flops = {}
        for name in made:                                      # of one clip: all scores would fill the memory
            for kind, f in zip(("forward", "step"), forward_and_step(name, (1, *shape[1:]))):
                with FlopCounterMode(display=False) as counter, \
                        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                    f()
                flops[name, kind] = counter.get_total_flops() * shape[0]
        taken = {key: [] for key in flops}
        matmul = []
        for _ in range(args.rounds):                           # in turn, for fairness
            for name, functions in made.items():
                for kind, f in zip(("forward", "step"), functions):
                    taken[name, kind].append(seconds(f))
                    matmul.append(seconds(lambda: a @ b))
        ceiling = 2 * 1024**3 / statistics.median(matmul)
        print(f"\n{'x'.join(map(str, shape))}; matrix products of 1024 x 1024: {ceiling / 1e9:.0f} GFLOP/s")
        ours_at = {kind: statistics.median(taken["ours", kind]) for kind in ("forward", "step")} \
            if "ours" in made else {}
        for name, (*_, weights) in made.items():
            line = f"{name:24s} {weights / 1e6:5.2f} M"
            for kind in ("forward", "step"):
                median, work = statistics.median(taken[name, kind]), flops[name, kind]
                line += (f" | {kind} {work / 1e9:6.1f} GFLOP {median * 1e3:6.0f} ms "
                         f"{work / median / 1e9:4.0f} GFLOP/s {work / median / ceiling:4.0%} of matmul")
                line += f", ours takes {ours_at[kind] / median:.2f}" if ours_at and name != "ours" else ""
            print(line + ("" if args.no_memory else f" | {peak(name, shape):5.0f} MB"), flush=True)


if __name__ == "__main__":
    main()
