"""The features of published FVD numbers, for those who have the network: I3D of Kinetics-400 as TorchScript.

Unterthiner et al., 2018, arXiv:1812.01717.  `i3d_torchscript.pt` is not ours to give; StyleGAN-V's page says
where it is.  Its numbers compare with published ones only at their protocol (2048 clips of 16 frames), and
never with those of our own video probe.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SIDE, FEWEST = 224, 10  # pixels and frames that I3D was made for


@torch.no_grad()
def i3d_features(path: str | Path, x: Tensor, batch_size: int = 8,
                 device: str | torch.device = "cpu") -> Tensor:
    """Logits [N, 400] of videos [N, C, F, H, W] in [-1, 1] with ten frames at least; grey becomes RGB.

    TorchScript holds code, which runs here: use a file that you trust.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; I3D comes as TorchScript, i3d_torchscript.pt")
    if x.ndim != 5 or x.shape[1] not in (1, 3) or x.shape[2] < FEWEST:
        raise ValueError(f"videos of shape {tuple(x.shape)} must be [N, 1 or 3, F, H, W] with F of {FEWEST} "
                         "at least")
    try:
        net = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: not a whole TorchScript file ({str(error).splitlines()[0]})") from error
    features = []
    for part in x.split(batch_size):
        frames = rearrange(part.to(device).expand(-1, 3, -1, -1, -1), "n c f h w -> (n f) c h w")
        frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False).clamp(-1, 1)
        clips = rearrange(frames, "(n f) c h w -> n c f h w", n=len(part))
        features.append(net(clips, rescale=False, resize=False, return_features=True).float().cpu())
    return torch.cat(features)
