"""The phases of Winograd's tiles at a step: every tap and every position of a patch belongs to one of them."""

import numpy as np
import pytest

from fastconv.backends.cpu import winograd_forms as forms
from fastconv.backends.cpu.winograd_matrices import matrices

CASES = [
    ((3, 3), 4, (1, 1)),
    ((3, 3), 4, (2, 2)),
    ((3, 3), 2, (2, 2)),
    ((4, 4), 3, (2, 2)),
    ((7, 7), 4, (2, 2)),
    ((11, 11), 4, (4, 4)),
    ((5, 3), 4, (2, 1)),
    ((3, 5), 4, (1, 2)),
    ((1, 7), 4, (1, 4)),
    ((7, 6), 3, (3, 4)),
]
given = pytest.mark.parametrize("taps, outputs, steps", CASES)


@given
def test_phases_cover_all_taps_and_the_patch(taps, outputs, steps):
    form = forms.form_of(taps, outputs, steps)
    phases = [forms.phase_of(form, number) for number in range(forms.phases_of(form))]
    assert sorted((h, w) for h, w, _ in phases) == [(h, w) for h in range(steps[0]) for w in range(steps[1])]
    values, patch = forms.values_of(form), forms.patch_of(form)
    assert forms.frequencies_of(form) == np.prod(values)
    for h, w, kind in phases:
        short = kind // 2, kind % 2
        for axis, first in enumerate((h, w)):
            of_phase = len(range(first, taps[axis], steps[axis]))
            assert of_phase == forms.phase_taps(taps[axis], steps[axis]) - short[axis]
            assert len(range(first, patch[axis], steps[axis])) == values[axis] - short[axis]


@given
def test_phases_with_a_frequency_follow_each_other(taps, outputs, steps):
    form = forms.form_of(taps, outputs, steps)
    kinds = [forms.phase_of(form, number)[2] for number in range(forms.phases_of(form))]
    down, across = forms.values_of(form)
    products = 0
    for frequency in range(down * across):
        lacking = 2 * (frequency // across == down - 1) + (frequency % across == across - 1)
        having = [number for number, kind in enumerate(kinds) if not kind & lacking]
        assert having == list(range(*forms.phases_with(form, frequency)))
        products += len(having)
    assert products == np.prod(forms.patch_of(form))  # see the head of winograd_forms.py


@pytest.mark.parametrize("taps, outputs", [(2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4), (5, 4), (7, 4)])
def test_matrices_are_those_of_a_convolution(taps, outputs):
    """Exact but for the last digits of float64: the rows of a convolution's matrix are shifted taps."""
    transform = matrices(taps, outputs)
    g, d = (np.random.default_rng(0).standard_normal(n) for n in (taps, taps + outputs - 1))
    frequencies = (np.array(transform.filter) @ g) * (np.array(transform.input) @ d)
    expected = [d[i : i + taps] @ g for i in range(outputs)]
    assert np.allclose(np.array(transform.output) @ frequencies, expected, rtol=0, atol=1e-12)
