"""The tensors of two networks, which share those that are the same in both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnxcp.calibration.store import Handle, Store
from onnxcp.calibration.values import Shape

ORIGINAL, REWRITTEN = 0, 1


class Tensors:
    """The live tensors of the original and the rewritten network, batch by batch.

    Parameters
    ----------
    store
        What keeps them.

    Attributes
    ----------
    diverged
        Names of the tensors of which each network has its own.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batches: list[dict[str, tuple[Handle, Handle]]] = []
        self.diverged: set[str] = set()

    def __len__(self) -> int:
        return len(self._batches)

    def add_batch(self, values: Mapping[str, Any]) -> None:
        """Begin another batch with the values that both networks are given."""
        self._batches.append({})
        self.put(len(self) - 1, values, ORIGINAL)

    def put(self, batch: int, values: Mapping[str, Any], network: int) -> None:
        """Keep tensors: the original's serve both networks until the rewritten one has its own."""
        tensors = self._batches[batch]
        for name, value in values.items():
            handle = self._store.put(value)
            tensors[name] = (handle, handle) if network == ORIGINAL else (tensors[name][0], handle)

    def get(self, batch: int, name: str, network: int) -> Any:
        """Return the value of a tensor in one of the networks."""
        return self._batches[batch][name][network].get()

    def shapes(self, name: str) -> set[Shape]:
        """Return the shapes that a tensor has, over all batches and both networks."""
        return {handle.shape for tensors in self._batches for handle in tensors[name]}

    def shape(self, batch: int, name: str, network: int) -> Shape:
        """Return the shape of a tensor; None if it is no array."""
        return self._batches[batch][name][network].shape

    def free(self, names: Iterable[str], batch: int | None = None) -> None:
        """Forget tensors, of one batch or of all."""
        for tensors in self._batches if batch is None else [self._batches[batch]]:
            for name in names:
                for handle in tensors.pop(name, ()):
                    handle.free()

    def clear(self) -> None:
        """Forget everything."""
        self._batches.clear()
