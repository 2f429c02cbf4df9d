"""A validation split for a set that has none: deterministic, by content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def choose_validation(hashes: Sequence[str], fraction: float, seed: int) -> list[bool]:
    """Choose which images become validation images.

    Each content is ranked by a hash of itself and the seed, and the lowest ranks are taken. So the choice depends
    neither on names nor on order, copies of one picture stay together, and added images move only few of the others.

    Args:
        hashes: Content hash of each image.
        fraction: Share of images, in (0, 1); at least one content goes to each side where there are two.
        seed: Another seed gives another split.

    Returns:
        For each image whether it is a validation image.
    """
    copies = Counter(hashes)
    ranked = sorted(copies, key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
    wanted = max(1, round(fraction * len(hashes)))
    chosen: set[str] = set()
    count = 0
    for content in ranked[:-1]:
        if count >= wanted:
            break
        chosen.add(content)
        count += copies[content]
    return [content in chosen for content in hashes]
