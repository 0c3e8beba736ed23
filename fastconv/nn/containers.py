"""Modules made of modules: in a row, in a list, in a dict."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from fastconv.nn.module import Module, indented


class Sequential(Module):
    """Modules applied one after the other: `Sequential(a, b)`, or `Sequential({"name": a, "other": b})`."""

    def __init__(self, *modules: Any) -> None:
        named = modules[0] if len(modules) == 1 and isinstance(modules[0], Mapping) else None
        for name, module in named.items() if named is not None else _numbered(modules):
            _put(self, name, module)

    def forward(self, input: Any) -> Any:
        for module in self.children():
            input = module(input)
        return input

    def fusible(self) -> Sequence[Sequence[str]]:
        return ([name for name, _ in self.named_children()],)

    def append(self, module: Module) -> Sequential:
        """Add a module at the end, named by its position."""
        _put(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, position: int | slice) -> Any:
        """One module, or a Sequential of a slice, which shares the modules and keeps their names."""
        if isinstance(position, slice):
            return type(self)(dict(list(self.named_children())[position]))
        return list(self.children())[position]


class ModuleList(Module):
    """A list of modules, so that a network finds them; it computes nothing itself."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def append(self, module: Module) -> ModuleList:
        _put(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, position: int | slice) -> Any:
        """One module, or a ModuleList of a slice."""
        found = list(self.children())[position]
        return ModuleList(found) if isinstance(found, list) else found

    def _repr_children(self) -> list[str]:
        """Equal neighbours in one line, as PyTorch shows them."""
        runs: list[list[Any]] = []  # [first, last, text]
        for position, module in enumerate(self):
            text = indented(module)
            if runs and runs[-1][2] == text:
                runs[-1][1] = position
            else:
                runs.append([position, position, text])
        return [
            f"({first}): {text}" if first == last else f"({first}-{last}): {last - first + 1} x {text}"
            for first, last, text in runs
        ]


class ModuleDict(Module):
    """A dict of modules, so that a network finds them; it computes nothing itself."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        for name, module in (modules or {}).items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        _put(self, name, module)

    def __getitem__(self, name: str) -> Module:
        return dict(self.named_children())[name]

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in dict(self.named_children())

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        return dict(self.named_children()).keys()

    def values(self) -> ValuesView[Module]:
        return dict(self.named_children()).values()

    def items(self) -> ItemsView[str, Module]:
        return dict(self.named_children()).items()


def _numbered(modules: Iterable[Module]) -> Iterator[tuple[str, Module]]:
    return ((str(position), module) for position, module in enumerate(modules))


def _put(container: Module, name: str, module: Module) -> None:
    kind = type(container).__name__
    if not isinstance(module, Module):
        raise TypeError(f"{kind}: every part must be a Module, got {type(module).__name__} for {name!r}")
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"{kind}: a name must be a string without dots and not empty, got {name!r}")
    if hasattr(container, name) and not isinstance(vars(container).get(name), Module):
        raise ValueError(f"{kind}: {name!r} is an attribute of every {kind}; choose another name")
    setattr(container, name, module)
