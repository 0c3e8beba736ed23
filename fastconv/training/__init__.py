"""Training: `fit`, its history and checkpoints, and `predict` and `evaluate` for what was trained."""

from fastconv.training.history import History as History
from fastconv.training.inference import accuracy as accuracy
from fastconv.training.inference import evaluate as evaluate
from fastconv.training.inference import predict as predict
from fastconv.training.loop import fit as fit
