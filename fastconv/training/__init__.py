"""Training: `fit`, its `History`, checkpoints and their `load_weights`; `predict`, `evaluate` and `accuracy`.

`help(fastconv.training.fit)` says more. A metric is any function (output, target) → number.
"""

from fastconv.training.checkpoint import load_weights as load_weights
from fastconv.training.history import History as History
from fastconv.training.inference import accuracy as accuracy
from fastconv.training.inference import evaluate as evaluate
from fastconv.training.inference import predict as predict
from fastconv.training.loop import fit as fit
