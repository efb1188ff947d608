"""What every reader of a format needs: the refusal and the limits."""

LONGEST = 64  # sides to each other: at 64:1 the short one is 5 of 336 pixels, less than a patch


class UnreadableImage(ValueError):
    """An image that cannot be shown faithfully; the message is the reason and names no path."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise UnreadableImage where an image has no pixels, too many, or is a mere line."""
    if width < 1 or height < 1:
        raise UnreadableImage(f"it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels are more than the {max_pixels} allowed")
    if max(width, height) > LONGEST * min(width, height):
        raise UnreadableImage(
            f"{width} x {height} pixels: one side is more than {LONGEST} times the other, which "
            "leaves less than a patch of it on a square: cut it into parts"
        )


def frame_number(part: str, frames: int) -> int:
    """Read `frame=12` (0-based) and check that there is such a frame."""
    name, _, number = part.partition("=")
    if name != "frame" or not number.isdecimal():
        raise UnreadableImage(f"part {part!r} does not name a frame such as frame=0")
    if int(number) >= frames:
        raise UnreadableImage(f"part {part!r}: the file has {frames} frames, counted from 0")
    return int(number)
