"""Names of the detection architectures that ultralytics can build, by family and size.

A test holds the table against the installed version, so that it need not be imported to check a name.
"""

from __future__ import annotations

# Family to sizes, smallest first.
FAMILIES = {
    "yolov5": "nsmlx",
    "yolov6": "nsmlx",
    "yolov8": "nsmlx",
    "yolov9": "tsmce",
    "yolov10": "nsmblx",
    "yolo11": "nsmlx",
    "yolo12": "nsmlx",
    "yolo26": "nsmlx",
}
# Heads with a further level for small (p2) or large (p6) objects.
VARIANTS = {"yolov8": ("-p2", "-p6"), "yolo26": ("-p2", "-p6")}

NAMES = tuple(
    f"{family}{size}{variant}"
    for family, sizes in FAMILIES.items()
    for variant in ("", *VARIANTS.get(family, ()))
    for size in sizes
)


def split(name: str) -> tuple[str, str, str] | None:
    """Return family, size and variant of a known architecture, or None."""
    for family, sizes in FAMILIES.items():
        rest = name.removeprefix(family)
        if rest != name and rest[:1] and rest[0] in sizes and rest[1:] in ("", *VARIANTS.get(family, ())):
            return family, rest[0], rest[1:]
    return None


def step(name: str, steps: int) -> str:
    """Return the architecture `steps` sizes larger (smaller if negative) in the family; its ends stay where they are.

    A name that is not in the table is returned as it is.
    """
    parts = split(name)
    if parts is None:
        return name
    family, size, variant = parts
    sizes = FAMILIES[family]
    position = min(max(sizes.index(size) + steps, 0), len(sizes) - 1)
    return f"{family}{sizes[position]}{variant}"


def summary() -> str:
    """Return all families with their sizes in one line."""
    return ", ".join(f"{family}{{{','.join(sizes)}}}" for family, sizes in FAMILIES.items())
