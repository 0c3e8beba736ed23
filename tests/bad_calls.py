"""What the tables of bad calls share. A row: the call, the kind of its exception, the whole text."""

from __future__ import annotations

import numpy as np
import pytest


def bad_calls(rows):
    """The test once for each row, as `call`, `kind` and `text`."""
    return pytest.mark.parametrize(("call", "kind", "text"), rows, ids=[text[:60] for _, _, text in rows])


def refused(call, kind, text):
    """The call raises that exception with one string, and so it does again: nothing remembers a refusal as a result."""
    for _ in range(2):
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.args == (text,)


def zeros(*shape):
    """A float32 array of that shape."""
    return np.zeros(shape, "float32")
