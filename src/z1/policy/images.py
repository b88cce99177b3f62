"""Images of any size to the network's, keeping the aspect ratio."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from z1.policy.config import ResizeMode


def letterbox(images: Tensor, size: int, mode: ResizeMode) -> Tensor:
    """Scales images to fit a square and pads the rest with black, centred; an odd pixel goes to the bottom or right.

    Args:
        images: uint8 ``[N, 3, height, width]``, on the CPU.
        size: Height and width of the result.
        mode: ``pil_antialias``: bilinear with antialiasing, rounded to 8 bits, as Pillow does it. ``torch_bilinear``:
            bilinear without antialiasing, on floats.

    Returns:
        ``[N, 3, size, size]``: uint8 in mode ``pil_antialias``, float32 in [-1, 1] in mode ``torch_bilinear``.

    Source: openpi ``image_tools.py`` and openpi_client (Pillow); LeRobot ``resize_with_pad_torch``.
    """
    height, width = images.shape[-2:]
    ratio = max(width / size, height / size)
    inner = (int(height / ratio), int(width / ratio))
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    around = (left, size - inner[1] - left, top, size - inner[0] - top)
    if mode == "pil_antialias":
        # On 8-bit CPU tensors torch resamples as Pillow does, row by row and then column by column, rounding twice.
        scaled = functional.interpolate(images, size=inner, mode="bilinear", align_corners=False, antialias=True)
        return functional.pad(scaled, around)
    scaled = functional.interpolate(images.float(), size=inner, mode="bilinear", align_corners=False)
    return functional.pad(scaled / 255.0 * 2.0 - 1.0, around, value=-1.0)
