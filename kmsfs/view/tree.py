"""Names of parameters as a tree of files and directories."""

from dataclasses import dataclass, field

VALUE_NAME = "@value"
"""The file that shows the value of a parameter that has others below it; no parameter's name has an @ in it."""


@dataclass(slots=True)
class Tree:
    """Paths without a leading slash; the root is the empty one."""

    folders: dict[str, set[str]] = field(default_factory=lambda: {"": set()})
    """Names in each directory."""
    files: dict[str, str] = field(default_factory=dict)
    """The parameter that each file shows."""

    def apply(self, verb: str, path: str, name: str = "") -> None:
        """Add or remove a file (`create`, `unlink`) or a directory (`mkdir`, `rmdir`); anything else changes no name."""
        folder, _, last = path.rpartition("/")
        if verb in ("create", "mkdir"):
            self.folders.setdefault(folder, set()).add(last)
            if verb == "create":
                self.files[path] = name
            else:
                self.folders[path] = set()
        elif verb in ("unlink", "rmdir"):
            self.folders.get(folder, set()).discard(last)
            self.files.pop(path, None)
            if verb == "rmdir":
                self.folders.pop(path, None)


def place_of(name: str, path: str) -> str | None:
    """Return where a parameter is shown below a path, or None if it is not: elsewhere, or with names that no file can have."""
    top, place = path.strip("/"), name.strip("/")
    if top:
        if not place.startswith(top + "/"):
            return None
        place = place[len(top) + 1 :]
    good = all(part not in ("", ".", "..") and len(part) <= 255 for part in place.split("/"))
    return place if good else None


def tree_of(names: list[str], path: str) -> Tree:
    """Return the tree of the parameters below a path; names that no file can have (`.` and `..`, too long) are left out."""
    tree = Tree()
    for name in names:
        place = place_of(name, path)
        if place is not None:
            parts = place.split("/")
            tree.files[place] = name
            for depth in range(len(parts)):
                tree.folders.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for place in [place for place in tree.files if place in tree.folders]:
        tree.files[f"{place}/{VALUE_NAME}"] = tree.files.pop(place)
        tree.folders[place].add(VALUE_NAME)
    return tree
