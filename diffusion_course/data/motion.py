"""Where things are in every frame, and how they get there: paths in a room, and ink on a canvas."""
import numpy as np

Array = np.ndarray


def paths(mode: str, start: Array, velocity: Array, frames: int, room: float,
          size: float) -> tuple[Array, Array]:
    """The corners of digits [B, F, K, 2], and whether they bounce before the next frame [B, F - 1, K].

    start and velocity [B, K, 2] are those of frame 0; room is the largest coordinate of a corner, size that
    of the torus of mode "wrap".
    """
    if mode == "srivastava":
        return clamped(start, velocity, frames, room)
    free = start[:, None] + velocity[:, None] * np.arange(frames)[:, None, None]       # [B, F, K, 2]
    if mode == "bounce":                                       # without walls; they are at multiples of room
        crossed = np.floor(free / room)
        return mirrored(free, room), (crossed[:, 1:] != crossed[:, :-1]).any(-1)
    never = np.zeros((len(free), frames - 1, free.shape[2]), bool)
    return free % size if mode == "wrap" else free, never


def mirrored(free: Array, room: float) -> Array:
    """A coordinate that knows no walls, folded into 0 ... room: a triangle wave."""
    return room - abs(free % (2 * room) - room)


def clamped(at: Array, velocity: Array, frames: int, room: float) -> tuple[Array, Array]:
    """The original rule: step, then clamp to the wall and turn.  The start itself is not shown."""
    corners, turns = [], []
    for _ in range(frames):                                    # each step goes on from where the last was cut
        at = at + velocity                                     # [B, K, 2]
        turn = (at <= 0) | (at >= room)
        at, velocity = at.clip(0, room), np.where(turn, -velocity, velocity)
        corners.append(at)
        turns.append(turn.any(-1))
    return np.stack(corners, 1), np.stack(turns, 1)[:, 1:]


def paint(canvas: Array, b: Array, ink: Array, corners: Array) -> Array:
    """Put ink [b, C, d, d] on the clips b of canvas [B, C, F, H, H] at corners [b, F, 2]; the brighter stays.

    Corners between pixels are drawn bilinearly.  What leaves the canvas comes in again on the other side.
    Returns whether the ink met other ink [b, F].
    """
    _, channels, frames, size, _ = canvas.shape
    whole = np.floor(corners).astype(int)
    ink = ink[:, :, None]                                      # [b, C, 1, d, d]
    if (corners != whole).any():
        ink = shifted(ink, corners - whole)                    # [b, C, F, d + 1, d + 1]
    side = np.arange(ink.shape[-1])
    rows, columns = np.moveaxis((whole[..., None] + side) % size, 2, 0)                # [b, F, d]
    plane = b[:, None] * channels + np.arange(channels)                                # [b, C]
    plane = plane[..., None] * frames + np.arange(frames)                              # [b, C, F]
    place = (plane[..., None] * size + rows[:, None])[..., None] * size + columns[:, None, :, None]
    flat = canvas.reshape(-1)                                  # place is [b, C, F, d, d]
    below = flat[place]
    flat[place] = np.maximum(below, ink)
    return (below.any(1) & ink.any(1)).any((2, 3))


def shifted(ink: Array, part: Array) -> Array:
    """Ink [b, C, 1, d, d] moved by a part of a pixel [b, F, 2], bilinearly: [b, C, F, d + 1, d + 1]."""
    ink = np.pad(ink.astype(np.float32), [(0, 0)] * 3 + [(1, 1)] * 2)
    down, right = (part[:, None, :, axis, None, None] for axis in (0, 1))              # [b, 1, F, 1, 1]
    ink = ink[..., 1:, :] * (1 - down) + ink[..., :-1, :] * down
    ink = ink[..., 1:] * (1 - right) + ink[..., :-1] * right
    return np.floor(ink + 0.5).astype(np.uint8)
