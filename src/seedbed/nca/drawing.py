"""Pictures of roll-outs: strips of frames as PNG, an animation as GIF, colored blocks for a terminal.

Letters: F frames, G grid side.
"""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8

# Okabe and Ito's colors, told apart also without color vision; further states go around the hue circle.
_COLORS = ["f4f1e8", "1b3a4b", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "7f7f7f"]


def palette(states: int) -> UInt8[np.ndarray, "states 3"]:
    """Return one color a state."""
    import matplotlib

    fixed = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _COLORS], dtype=np.uint8)
    if states <= len(fixed):
        return fixed[:states]
    more = matplotlib.colormaps["hsv"](np.linspace(0, 1, states - len(fixed), endpoint=False))[:, :3]
    return np.concatenate([fixed, (more * 255).astype(np.uint8)])


def strips(
    rollouts: list[UInt8[np.ndarray, "F G G"]], *, states: int, scale: int = 4, gap: int = 4
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image with one roll-out a row, its frames from left to right, each cell `scale` pixels wide."""
    colors = palette(states)
    lines = []
    for frames_FGG in rollouts:
        big = colors[frames_FGG].repeat(scale, axis=1).repeat(scale, axis=2)
        lines.append(np.concatenate([np.pad(f, ((0, gap), (0, gap), (0, 0)), constant_values=255) for f in big], axis=1))
    return np.concatenate(lines, axis=0)[:-gap, :-gap]


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    from matplotlib.image import imsave

    out = BytesIO()
    imsave(out, image, format="png")
    return out.getvalue()


def gif(rollouts: list[UInt8[np.ndarray, "F G G"]], *, states: int, scale: int = 8, milliseconds: int = 200) -> bytes:
    """Return an animation that shows the roll-outs side by side, a frame at a time, for ever."""
    from PIL import Image

    colors = palette(states)
    pictures = []
    for frames in zip(*rollouts, strict=True):
        wide = [np.pad(colors[f].repeat(scale, 0).repeat(scale, 1), ((0, 0), (0, scale), (0, 0))) for f in frames]
        pictures.append(Image.fromarray(np.concatenate(wide, axis=1)[:, :-scale]))
    out = BytesIO()
    pictures[0].save(out, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return out.getvalue()


def blocks(frames_FGG: UInt8[np.ndarray, "F G G"], *, states: int) -> str:
    """Return frames from left to right as half blocks in 24-bit color: a character is two cells, one above the other."""
    colors = palette(states)
    side = frames_FGG.shape[1]
    lines = []
    for row in range(0, side, 2):
        line = ""
        for frame_GG in frames_FGG:
            for column in range(side):
                upper = ";".join(map(str, colors[frame_GG[row, column]]))
                lower = f"\x1b[48;2;{';'.join(map(str, colors[frame_GG[row + 1, column]]))}m" if row + 1 < side else ""
                line += f"\x1b[38;2;{upper}m{lower}\u2580"
            line += "\x1b[0m "
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"
