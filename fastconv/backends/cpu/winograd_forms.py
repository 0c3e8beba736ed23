"""The form of Winograd's tiles: their taps, outputs and steps, what follows from these, and the phases of a step.

At step s the taps of an axis are taken apart into s phases, each of which meets a phase of the input: correlations at
step 1, whose products are added frequency by frequency, as if each were a channel of its own. r = ⌈taps / s⌉ taps has
the first; phases with one fewer are short. Their last tap is 0, and so is their value at infinity: it is neither
computed nor multiplied. So a tile of m outputs takes s · (r + m - 1) products less one for each short phase: m · s +
taps - s, exactly as many as it has positions of the input. For 3×3 taps at step 2 and tiles of 4×4 these are 81 instead
of 144, for 5×5 121 of 400, for 7×7 169 of 784, for 11×11 at step 4 529 of 1936.

The adjoint, an input gradient, has the phases in its outputs, as if each were a row of weights of its own: a tile of
s · m outputs in turns, short phases first. All of them read the same positions, and as many products are taken.

These functions are compiled into kernels too, by themselves: none calls another.
"""

from __future__ import annotations

from fastconv.backends.cpu.winograd_matrices import OUTPUTS

Form = tuple[tuple[tuple[int, ...], ...], ...]
"""What code is made for, as lengths of tuples of zeros: in height and in width taps, outputs of a phase in a tile, step
of the input and step of the outputs, of which one is 1."""


def form_of(
    taps: tuple[int, int], outputs: int = OUTPUTS, steps: tuple[int, int] = (1, 1), spread: tuple[int, int] = (1, 1)
) -> Form:
    """Of tiles for so many taps in height and width; an axis with one tap has one output."""
    lengths = zip(taps, [outputs if count > 1 else 1 for count in taps], steps, spread)
    return tuple(tuple((0,) * length for length in axis) for axis in lengths)


def phase_taps(taps: int, step: int) -> int:
    """Taps of the first phase of a step, and of all that are not short."""
    return -(-taps // step)


def outputs_of(form: Form) -> tuple[int, int]:
    """Outputs of a tile in height and width."""
    height, width = form
    return len(height[1]) * len(height[3]), len(width[1]) * len(width[3])


def products_of(form: Form) -> tuple[int, int]:
    """Products that a tile takes for a channel and row, in height and width."""
    height, width = form
    return (
        len(height[0]) + (len(height[1]) - 1) * len(height[2]) * len(height[3]),
        len(width[0]) + (len(width[1]) - 1) * len(width[2]) * len(width[3]),
    )


def values_of(form: Form) -> tuple[int, int]:
    """Frequencies in height and width: values at points and at infinity."""
    height, width = form
    return (
        (len(height[0]) - 1) // (len(height[2]) * len(height[3])) + len(height[1]),
        (len(width[0]) - 1) // (len(width[2]) * len(width[3])) + len(width[1]),
    )


def frequencies_of(form: Form) -> int:
    """Frequencies of a tile: so many products are summed over all channels and phases."""
    height, width = form
    rows = (len(height[0]) - 1) // (len(height[2]) * len(height[3])) + len(height[1])
    return rows * ((len(width[0]) - 1) // (len(width[2]) * len(width[3])) + len(width[1]))


def patch_of(form: Form) -> tuple[int, int]:
    """Positions of the input that a tile reads in height and width."""
    height, width = form
    rows = (len(height[0]) - 1) // len(height[3]) + 1 + (len(height[1]) - 1) * len(height[2])
    return rows, (len(width[0]) - 1) // len(width[3]) + 1 + (len(width[1]) - 1) * len(width[2])


def axes_of(form: Form) -> int:
    """Axes that are transformed: those with several taps."""
    return sum(len(axis[0]) > 1 for axis in form)


def phases_of(form: Form) -> int:
    """Phases of the input, in height times width."""
    return len(form[0][2]) * len(form[1][2])


def spread_of(form: Form) -> int:
    """Phases of the outputs, in height times width."""
    return len(form[0][3]) * len(form[1][3])


def phase_of(form: Form, number: int) -> tuple[int, int, int]:
    """The first tap of a phase in height and width, and its kind: short in both (3), in height (2), in width (1), or 0.

    They come in the order 3, 2, 0, 1: those that are not short in an axis, or in both, follow each other. Of phases of
    the outputs, whose taps are those of the gradient in reverse, the one with tap t is number s - 1 - t in a tile.
    """
    height, width = form
    steps_h, steps_w = len(height[2]) * len(height[3]), len(width[2]) * len(width[3])
    full_h, full_w = (len(height[0]) - 1) % steps_h + 1, (len(width[0]) - 1) % steps_w + 1
    short_h, short_w = steps_h - full_h, steps_w - full_w
    if number < short_h * short_w:
        return full_h + number // short_w, full_w + number % short_w, 3
    number -= short_h * short_w
    if number < short_h * full_w:
        return full_h + number // full_w, number % full_w, 2
    number -= short_h * full_w
    if number < full_h * full_w:
        return number // full_w, number % full_w, 0
    number -= full_h * full_w
    return number // short_w, full_w + number % short_w, 1


def phases_with(form: Form, frequency: int) -> tuple[int, int]:
    """The phases of either step that have a frequency, first ≤ number < last: short ones have none at infinity."""
    height, width = form
    steps_h, steps_w = len(height[2]) * len(height[3]), len(width[2]) * len(width[3])
    full_h, full_w = (len(height[0]) - 1) % steps_h + 1, (len(width[0]) - 1) % steps_w + 1
    short_h, short_w = steps_h - full_h, steps_w - full_w
    across = (len(width[0]) - 1) // steps_w + len(width[1])
    first, last = 0, steps_h * steps_w
    if frequency % across == across - 1:
        first, last = short_h * short_w, last - full_h * short_w
    if frequency // across == (len(height[0]) - 1) // steps_h + len(height[1]) - 1:
        first = short_h * steps_w
    return first, last
