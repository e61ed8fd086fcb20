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


def tree_of(names: list[str], path: str) -> Tree:
    """Return the tree of the parameters below a path; names that no file can have (`.` and `..`, too long) are left out."""
    top = path.strip("/")
    tree = Tree()
    for name in names:
        place = name.strip("/")
        if top:
            if not place.startswith(top + "/"):
                continue
            place = place[len(top) + 1 :]
        parts = place.split("/")
        if all(part not in ("", ".", "..") and len(part) <= 255 for part in parts):
            tree.files[place] = name
            for depth in range(len(parts)):
                tree.folders.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for place in [place for place in tree.files if place in tree.folders]:
        tree.files[f"{place}/{VALUE_NAME}"] = tree.files.pop(place)
        tree.folders[place].add(VALUE_NAME)
    return tree
