"""Which source files changed? Looks at their times every now and then, for ``choreo run --reload``. Imports nothing of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})


class Sources:
    """The Python files below a folder. Owner: the thread that calls `changed`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen = dict(_stamps(root))

    @classmethod
    def of(cls, module_name: str) -> Sources:
        """Those of the package that `module_name` is in; of the working directory where it can't be found."""
        top = module_name.partition(".")[0]
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.submodule_search_locations:
            return cls(Path(next(iter(spec.submodule_search_locations))))
        return cls(Path(spec.origin).parent if spec is not None and spec.origin else Path.cwd())

    def changed(self) -> list[str]:
        """The files that were written, made or removed since the last call, by their paths below the folder."""
        now = dict(_stamps(self.root))
        found = sorted(name for name in now.keys() | self._seen.keys() if now.get(name) != self._seen.get(name))
        self._seen = now
        return found


def _stamps(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for name in files:
            if name.endswith(".py"):
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # removed while we looked
                yield str(path.relative_to(root)), (status.st_mtime_ns, status.st_size)
