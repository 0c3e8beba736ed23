"""Training: `fit`, its `History` and checkpoints; `predict`, `evaluate` and `accuracy` for what was trained.

`help(fastconv.training.fit)` says more. A metric is any function (output, target) → number.
"""

from fastconv.training.history import History as History
from fastconv.training.inference import accuracy as accuracy
from fastconv.training.inference import evaluate as evaluate
from fastconv.training.inference import predict as predict
from fastconv.training.loop import fit as fit
