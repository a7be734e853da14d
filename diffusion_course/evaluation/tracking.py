"""Where digits are in a video and how they move: numbers about motion that need no trained network.

Positions are (row, column) in pixels, the first pixel at (0, 0): up is decreasing row.  K digits per clip;
one that is not there is NaN, and so is whatever is computed of it.  Digits are often drawn at whole pixels:
at half a pixel per frame they go 0, 1, 0, 1.  So displacements are taken over several frames, `step`, and the
value on real clips belongs beside every number.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

FAINT = 0.1  # ink below this is background: networks leave some in every pixel


def ink(x: Tensor) -> Tensor:
    """How white images [N, C, H, W] or videos [N, C, F, H, W] are: [N, H, W] or [N, F, H, W] in [0, 1]."""
    if x.ndim not in (4, 5) or not x.numel() or x.is_complex():
        raise ValueError(f"x of shape {tuple(x.shape)} must be images [N, C, H, W] or videos [N, C, F, H, W]")
    white = ((x.amax(1).float() + 1) / 2).clamp(0, 1)
    return white.where(white >= FAINT, 0)


def places(x: Tensor) -> Tensor:
    """The (row, column) of every pixel of x [..., H, W]: [H W, 2]."""
    return torch.cartesian_prod(*(torch.arange(n, device=x.device).float() for n in x.shape[-2:]))


def centroid(x: Tensor) -> Tensor:
    """The centre of the ink of images [N, C, H, W] or of every frame of videos: [N, 2] or [N, F, 2]."""
    white = ink(x)
    return white.flatten(-2) @ places(white) / white.sum((-2, -1))[..., None]


def tracks(x: Tensor, count: Tensor, spread: float | None = None, rounds: int = 4) -> Tensor:
    """The centres [N, F, K, 2] of the digits in videos [N, C, F, H, W] with count [N] of one or two digits.

    One digit is the centroid.  Two are told apart by where they were and by how they look, in no particular
    order.  spread: standard deviation of a digit's ink in pixels (3 on a canvas of 32, the MNIST digits of
    14 pixels).  A frame without ink is NaN; two digits that never part have one another's ink.
    """
    if x.ndim != 5:
        raise ValueError(f"x of shape {tuple(x.shape)} must be videos [N, C, F, H, W]")
    if count.shape != (len(x),) or not ((count == 1) | (count == 2)).all():
        raise ValueError(f"count={str(count.tolist()):.80} must be 1 or 2 for each of the {len(x)} videos")
    single = centroid(x)                                       # [N, F, 2]
    centres = torch.stack([single, torch.full_like(single, torch.nan)], 2)[:, :, :int(count.max())]
    pairs = (count == 2).nonzero()[:, 0]
    for clips in pairs.split(50) if len(pairs) else ():        # few at once stay in the processor's cache
        centres[clips] = two(ink(x[clips]), spread or 3 / 32 * x.shape[-1], rounds)
    return centres.masked_fill(single.isnan()[:, :, None], torch.nan)


def two(white: Tensor, spread: float, rounds: int) -> Tensor:
    """The centres [N, F, 2, 2] of two digits in ink [N, F, H, W].

    From the frame where they are farthest apart they are followed in both directions; what was seen of each
    on the way then says, in all frames at once, which ink is whose.
    """
    where, (N, frames) = places(white), white.shape[:2]
    flat = white.flatten(2)                                    # [N, F, H W]
    begun = split(flat.flatten(0, 1), halves(flat.flatten(0, 1), where), where, spread, 10)
    begun = begun.unflatten(0, (N, frames))                    # [N, F, 2, 2]
    first = (begun[:, :, 0] - begun[:, :, 1]).norm(dim=-1).argmax(1)[:, None]          # [N, 1]
    clip, time = torch.arange(N, device=first.device)[:, None], torch.arange(frames, device=first.device)
    ahead, back = (follow(flat[clip, (first + way * time) % frames], begun[clip, first][:, 0], where, spread)
                   for way in (1, -1))                         # both go round; what is past the end is unused
    centres = torch.where((time >= first)[..., None, None], ahead[clip, (time - first) % frames],
                          back[clip, (first - time) % frames])
    return recognised(white, centres, where, spread, rounds)


def halves(flat: Tensor, where: Tensor) -> Tensor:
    """Where to begin in ink [M, P]: one standard deviation either way along the longest axis, [M, 2, 2]."""
    total = flat.sum(1, keepdim=True).clamp_min(1e-6)
    mean = flat @ where / total
    square = (where[:, :, None] * where[:, None]).flatten(1)   # [P, 4]
    covariance = (flat @ square / total).unflatten(1, (2, 2)) - mean[:, :, None] * mean[:, None]
    variances, axes = torch.linalg.eigh(covariance)
    step = axes[..., 1] * variances[:, 1:].clamp_min(0).sqrt()
    return torch.stack([mean - step, mean + step], 1)


def centres_of(mass: Tensor, where: Tensor, before: Tensor) -> Tensor:
    """Centres [..., 2] of mass [..., P]; where there is hardly any, it stays where it was before."""
    return (mass @ where + 1e-3 * before) / (mass.sum(-1, keepdim=True) + 1e-3)


def split(flat: Tensor, centres: Tensor, where: Tensor, spread: float, iterations: int) -> Tensor:
    """Expectation-maximisation of two Gaussians of one spread in ink [M, P]: better centres [M, 2, 2]."""
    for _ in range(iterations):
        apart, middle = centres[:, 0] - centres[:, 1], centres.mean(1)
        of_first = flat * torch.sigmoid((apart @ where.T - (apart * middle).sum(1, True)) / spread**2)
        centres = centres_of(torch.stack([of_first, flat - of_first], 1), where, centres)
    return centres


def follow(flat: Tensor, centres: Tensor, where: Tensor, spread: float) -> Tensor:
    """Centres [N, F, 2, 2] in ink [N, F, P], from those of its first frame [N, 2, 2] on.

    Each frame begins where a constant velocity leads to.  How far two digits lie from one another cannot be
    seen while they cover each other: the closer, the more the prediction counts.
    """
    path, velocity = [centres], torch.zeros_like(centres)
    for frame in flat.unbind(1)[1:]:
        ahead = centres + velocity
        seen = split(frame, ahead, where, spread, 8)
        trust = ((ahead[:, :1] - ahead[:, 1:]).norm(dim=-1, keepdim=True) / (2.5 * spread)).clamp_max(1) ** 2
        seen = seen.mean(1, True) + torch.lerp(ahead - ahead.mean(1, True), seen - seen.mean(1, True), trust)
        velocity = torch.lerp(velocity, seen - centres, 0.3)
        centres = seen
        path.append(centres)
    return torch.stack(path, 1)


def recognised(white: Tensor, centres: Tensor, where: Tensor, spread: float, rounds: int) -> Tensor:
    """Better centres [N, F, 2, 2] by the looks of the digits in ink [N, F, H, W].

    A digit looks like the mean over time of its share of the ink, centred; its share of a pixel is how much
    it is expected there among both.  At first both look like Gaussians.
    """
    middle = torch.tensor([(n - 1) / 2 for n in white.shape[-2:]], device=white.device)
    blob = (-(where - middle).square().sum(1) / (2 * spread**2)).exp().reshape(white.shape[-2:])
    looks = blob.expand(len(white), 2, -1, -1)                 # [N, 2, H, W]
    for _ in range(rounds):
        expected = moved(looks[:, None].expand(-1, white.shape[1], -1, -1, -1), centres - middle)
        mine = white[:, :, None] * expected / expected.sum(2, True).clamp_min(1e-9)    # [N, F, 2, H, W]
        centres = centres_of(mine.flatten(3), where, centres)
        looks = moved(mine, middle - centres).mean(1) + 0.02 * blob
    return centres


def moved(x: Tensor, by: Tensor) -> Tensor:
    """Images [..., H, W] moved by (rows, columns) [..., 2], also by parts of pixels."""
    size = torch.tensor(x.shape[-2:], device=x.device)
    shift = (-2 * by / size).flip(-1).reshape(-1, 2, 1)        # grids of torch are (column, row) in -1 ... 1
    grid = F.affine_grid(torch.cat([torch.eye(2, device=x.device).expand(len(shift), 2, 2), shift], 2),
                         [len(shift), 1, *x.shape[-2:]], align_corners=False)
    return F.grid_sample(x.reshape(-1, 1, *x.shape[-2:]), grid, align_corners=False).reshape(x.shape)


def velocity(centres: Tensor) -> Tensor:
    """The mean displacement per frame of centres [N, F, K, 2]: [N, K, 2]."""
    if centres.ndim != 4 or centres.shape[1] < 2 or centres.shape[3] != 2:
        raise ValueError(f"centres of shape {tuple(centres.shape)} must be [N, F, K, 2] with two frames at "
                         "least; draw longer clips")
    return (centres[:, -1] - centres[:, 0]) / (centres.shape[1] - 1)


def direction(centres: Tensor, still: float = 0.1) -> Tensor:
    """Where digits go, [N, K]: 0 ... 4 for up, down, left, right, stays, and -1 if there is none.

    It is the larger component of the mean velocity; slower than `still` pixels per frame is staying.
    """
    (row, column), speeds = velocity(centres).unbind(-1), velocity(centres).norm(dim=-1)
    found = torch.where(row.abs() >= column.abs(), (row > 0).long(), 2 + (column > 0).long())
    return found.masked_fill(speeds < still, 4).masked_fill(speeds.isnan(), -1)


def windows(centres: Tensor, length: int, room: tuple[float, float] | None, margin: float = 2.0) -> Tensor:
    """Every stretch of so many frames of centres [N, F, K, 2]: [N, F - length + 1, K, 2, length].

    NaN where a digit comes within `margin` pixels of a wall; room = (lowest, highest) coordinate of a centre.
    """
    if centres.ndim != 4 or centres.shape[1] < length:
        raise ValueError(f"centres of shape {tuple(centres.shape)} must be [N, F, K, 2] with {length} frames "
                         "at least; take a smaller step or longer clips")
    stretches = centres.unfold(1, length, 1)
    if room is None:
        return stretches
    free = ((stretches > room[0] + margin) & (stretches < room[1] - margin)).all(-1).all(-1)
    return stretches.where(free[..., None, None], torch.nan)


def steps(centres: Tensor, step: int, room: tuple[float, float] | None) -> Tensor:
    """Speeds [N, F - step, K] in pixels per frame over `step` frames."""
    stretches = windows(centres, step + 1, room)
    return (stretches[..., -1] - stretches[..., 0]).norm(dim=-1) / step


def speed(centres: Tensor, step: int = 4, room: tuple[float, float] | None = None) -> Tensor:
    """The mean speed [N, K] of centres [N, F, K, 2] in pixels per frame, away from the walls of the room."""
    return steps(centres, step, room).nanmean(1)


def speed_constancy(centres: Tensor, step: int = 4, room: tuple[float, float] | None = None,
                    still: float = 0.1) -> Tensor:
    """Standard deviation of the speed over its mean, [N, K]: 0 if constant; NaN if slower than `still`.

    Whole pixels alone make it 1 at half a pixel per frame from frame to frame, and 0 over 2 or 4 frames.
    """
    speeds = steps(centres, step, room)
    mean = speeds.nanmean(1)
    mean = mean.masked_fill(mean < still, torch.nan)
    return (speeds - mean[:, None]).square().nanmean(1).sqrt() / mean


def jump(centres: Tensor, step: int = 2, room: tuple[float, float] | None = None) -> Tensor:
    """Root mean square acceleration [N, K] of centres [N, F, K, 2] in pixels per frame^2.

    The second difference over `step` frames, away from the walls of the room if one is given.
    """
    path = windows(centres, 2 * step + 1, room)
    bend = (path[..., -1] - 2 * path[..., step] + path[..., 0]) / step**2              # [N, F - 2 step, K, 2]
    return bend.square().sum(-1).nanmean(1).sqrt()


def bounce_error(centres: Tensor, room: tuple[float, float], step: int = 3, margin: float = 2.0) -> Tensor:
    """How far the angle out is from the angle in where centres [N, F, K, 2] touch a wall: degrees [N, K].

    room = (lowest, highest) coordinate of a centre.  A wall is touched where a digit within `margin` pixels
    of it turns round; the velocities are those over `step` frames before and after.  Corners do not count.
    NaN if no wall is touched.
    """
    path = windows(centres, 2 * step + 2, None)                # the bounce is between its middle frames
    before, after = path[..., step] - path[..., 0], path[..., -1] - path[..., step + 1]
    middle = path[..., step:step + 2]
    low, high = (middle < room[0] + margin).any(-1), (middle > room[1] - margin).any(-1)
    turn = torch.where((low & (before < 0) & (after > 0)) | (high & (before > 0) & (after < 0)),
                       -before * after, 0)                     # [N, F', K, 2], largest where it is cleanest
    around = F.max_pool1d(turn.permute(0, 2, 3, 1).flatten(0, 2)[:, None], 2 * step + 1, 1, step)
    around = around.reshape(turn.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    touched = (turn > 0) & (turn == around) & (around.flip(-1) == 0)
    out = torch.where(touched, -before, before)                # mirrored
    angle = torch.atan2(out[..., 0], out[..., 1]) - torch.atan2(after[..., 0], after[..., 1])
    error = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
    return error.abs().rad2deg().where(touched.any(-1), torch.nan).nanmean(1)


def frame_difference(x: Tensor) -> Tensor:
    """The mean squared difference [N] of adjacent frames of videos [N, C, F, H, W]."""
    if x.ndim != 5 or x.shape[2] < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} must be videos [N, C, F, H, W] of two frames at least")
    return x.float().diff(dim=2).square().flatten(1).mean(1)


def flips(top: Tensor) -> Tensor:
    """How often [N] adjacent frames are read as different classes, of top [N, F]: 0 never, 1 always."""
    if top.ndim != 2 or top.shape[1] < 2:
        raise ValueError(f"top of shape {tuple(top.shape)} must be the class of each frame, [N, F], of two "
                         "frames at least")
    return (top[:, 1:] != top[:, :-1]).float().mean(1)


def diversity(features: Tensor) -> float:
    """The mean distance between two samples' features [N, D]: 0 if all are the same."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)} must be [N, D] with N of two at least")
    return torch.pdist(features.double()).mean().item()


def nearest(features: Tensor, train_features: Tensor) -> Tensor:
    """The distance [N] of features [N, D] to the nearest of train_features [M, D]; 0 is a copy."""
    if not features.ndim == train_features.ndim == 2 or features.shape[1] != train_features.shape[1]:
        raise ValueError(f"features of shape {tuple(features.shape)} and train_features of "
                         f"{tuple(train_features.shape)} must be [N, D] and [M, D] of one layer")
    exact = "donot_use_mm_for_euclid_dist"                     # or a copy would be at some distance
    return torch.cat([torch.cdist(part, train_features, compute_mode=exact).amin(1)
                      for part in features.split(100)])
