"""Optimisers and learning-rate schedules, with the arguments, update rules and states of `torch.optim`.

An optimiser changes the arrays of its parameters in place. Numbers of a group may differ between groups, and be changed
between steps: `optimizer.param_groups[0]["lr"] = 0.1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from fastconv import backends
from fastconv.autograd import Tensor

Array = Any
Arrays = list[Array]
Group = dict[str, Any]
Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]


class Optimizer:
    """What all optimisers share: groups of parameters, each with its numbers, and arrays of state per parameter.

    `params`: Tensors, or groups as dicts with "params" and any numbers that differ from `defaults`.
    """

    def __init__(self, params: Parameters, defaults: Group) -> None:
        entries = list(params)
        grouped = bool(entries) and isinstance(entries[0], Mapping)
        groups: list[Any] = entries if grouped else [{"params": entries}]
        self._names = tuple(defaults)
        self.param_groups: list[Group] = [self._group(group, defaults) for group in groups]
        self.state: dict[Tensor, dict[str, Any]] = {}
        members = self._members()
        if not members:
            raise ValueError(f"{type(self).__name__}: no parameters given; pass model.parameters()")
        if len(set(members)) < len(members):
            raise ValueError(f"{type(self).__name__}: a parameter was given twice")

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            ready = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in ready:
                if parameter.grad.shape != parameter.shape:
                    raise ValueError(
                        f"{type(self).__name__}: a parameter of shape {parameter.shape} has a gradient of shape "
                        f"{parameter.grad.shape}"
                    )
            alike: dict[tuple[Any, Any], list[tuple[Array, ...]]] = {}  # a parameter that had no gradient lags behind
            for parameter in ready:
                x, state = parameter.data, self.state.setdefault(parameter, {})
                with backends.on(x):
                    number, arrays = self._advance(x, state, group)
                alike.setdefault((backends.of(x), number), []).append((x, parameter.grad, *arrays))
            for (backend, number), members in alike.items():
                self._update(backend, number, group, *map(list, zip(*members)))

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self._members():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Groups and state, with parameters replaced by their position: PyTorch's layout. Arrays are not copied."""
        position = {parameter: i for i, parameter in enumerate(self._members())}
        groups = [
            {**group, "params": [position[parameter] for parameter in group["params"]]} for group in self.param_groups
        ]
        return {
            "state": {position[parameter]: dict(state) for parameter, state in self.state.items()},
            "param_groups": groups,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave, for the same parameters in the same order; arrays are copied.

        ValueError, before anything changes, where groups or shapes do not fit, and for another kind of optimiser.
        """
        members, groups = self._members(), state["param_groups"]
        given, own = ([len(group["params"]) for group in each] for each in (groups, self.param_groups))
        if given != own:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: the state has groups of {given} parameters, "
                f"this optimiser of {own}"
            )
        absent = [name for name in self._names if not all(name in group for group in groups)]
        if absent:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: the state is of another optimiser, without {', '.join(absent)}"
            )
        self.state = {members[i]: self._restored(members[i], entry) for i, entry in state["state"].items()}
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update({key: value for key, value in loaded.items() if key != "params"})

    def _advance(self, x: Array, state: dict[str, Any], group: Group) -> tuple[Any, tuple[Array, ...]]:
        """A parameter's number in its next step, and the arrays of its state, which are made when they are absent."""
        raise NotImplementedError

    def _update(self, backend: Any, number: Any, group: Group, x: Arrays, gradient: Arrays, *state: Arrays) -> None:
        """Change parameters of one number in place, and what `_advance` gave; the gradients must stay as they are."""
        raise NotImplementedError

    def _check(self, group: Group) -> None:
        """Raise ValueError for numbers out of range."""
        for name in ("lr", "weight_decay"):
            self._require(group[name] >= 0, name, "at least 0", group[name])

    def _require(self, holds: bool, name: str, expected: str, value: Any) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, got {value}")

    def _group(self, given: Mapping[str, Any], defaults: Group) -> Group:
        unknown = [key for key in given if key not in defaults and key != "params"]
        if unknown or "params" not in given:
            raise ValueError(
                f'{type(self).__name__}: a group needs "params" and may have {", ".join(defaults)}, '
                f"got {', '.join(given)}"
            )
        group = {**defaults, **given}
        group["params"] = list(group["params"])
        for parameter in group["params"]:
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: parameters must be Tensors, got {type(parameter).__name__}; "
                    "pass model.parameters()"
                )
        self._check(group)
        return group

    def _members(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _restored(self, parameter: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers as they are, arrays copied to the parameter's device and dtype."""
        xp = backends.of(parameter.data).xp
        result: dict[str, Any] = {}
        for name, value in entry.items():
            if isinstance(value, (int, float)):
                result[name] = value
                continue
            if tuple(value.shape) != parameter.shape:
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict: {name} has shape {tuple(value.shape)}, "
                    f"its parameter {parameter.shape}"
                )
            with backends.on(parameter.data):
                result[name] = xp.array(value, dtype=parameter.dtype)
        return result


class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`.

    g ← g + weight_decay · x; with momentum v ← momentum · v + (1 − dampening) · g (v starts as g) and g ← v, or with
    `nesterov` g ← g + momentum · v (Sutskever et al. 2013); x ← x − lr · g.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        super()._check(group)
        self._require(group["momentum"] >= 0, "momentum", "at least 0", group["momentum"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov=True needs a momentum > 0 and no dampening")

    def _advance(self, x: Array, state: dict[str, Any], group: Group) -> tuple[bool, tuple[Array, ...]]:
        if not group["momentum"]:
            return False, ()
        starts = state.get("momentum_buffer") is None
        if starts:
            state["momentum_buffer"] = backends.of(x).xp.empty_like(x)
        return starts, (state["momentum_buffer"],)

    def _update(self, backend: Any, starts: bool, group: Group, x: Arrays, gradient: Arrays, *velocity: Arrays) -> None:
        backend.sgd_step(
            x,
            gradient,
            velocity[0] if velocity else None,
            starts=starts,
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), as `torch.optim.Adam`.

    g ← g + weight_decay · x; m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²;
    x ← x − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps) at step t.
    """

    _decoupled: ClassVar[bool] = False  # whether weights decay apart from the gradient

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, group: Group) -> None:
        super()._check(group)
        self._require(group["eps"] >= 0, "eps", "at least 0", group["eps"])
        betas = group["betas"]
        self._require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", "two numbers in [0, 1)", betas)

    def _advance(self, x: Array, state: dict[str, Any], group: Group) -> tuple[int, tuple[Array, ...]]:
        if not state:
            xp = backends.of(x).xp
            state.update(step=0, exp_avg=xp.zeros_like(x), exp_avg_sq=xp.zeros_like(x))
        state["step"] += 1
        return state["step"], (state["exp_avg"], state["exp_avg_sq"])

    def _update(self, backend: Any, step: int, group: Group, x: Arrays, gradient: Arrays, *moments: Arrays) -> None:
        backend.adam_step(
            x,
            gradient,
            *moments,
            step=step,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self._decoupled,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`.

    x ← x − lr · weight_decay · x, apart from the gradient; then as `Adam` without weight decay.
    """

    _decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class Schedule:
    """A learning rate that follows the number of epochs: call `step()` after each. Sets "lr" in every group."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.last_epoch = 0

    def step(self) -> None:
        """One epoch is over."""
        self.last_epoch += 1
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self._lr(base)

    def get_last_lr(self) -> list[float]:
        """The learning rate of every group, as it is now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimiser."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; the optimiser's own state holds the present learning rates."""
        vars(self).update(state)

    def _lr(self, base: float) -> float:
        raise NotImplementedError


class StepLR(Schedule):
    """lr · gamma^⌊epoch / step_size⌋, as `torch.optim.lr_scheduler.StepLR`."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        if step_size < 1:
            raise ValueError(f"StepLR: step_size must be at least 1, got {step_size}")
        super().__init__(optimizer)
        self.step_size, self.gamma = step_size, gamma

    def _lr(self, base: float) -> float:
        return base * self.gamma ** (self.last_epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """eta_min + (lr − eta_min) · (1 + cos(π · epoch / T_max)) / 2, as `torch.optim.lr_scheduler.CosineAnnealingLR`."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        super().__init__(optimizer)
        self.T_max, self.eta_min = T_max, eta_min

    def _lr(self, base: float) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
