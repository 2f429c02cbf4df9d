"""Which cards `CUDA_VISIBLE_DEVICES` leaves, and in which order: CUDA's own rules, without CUDA.

Used by `gpus.py`. The rules (CUDA programming guide, environment variables; MIG user guide, device enumeration):
entries are indices, UUIDs or beginnings of UUIDs; the first invalid entry ends the list; a repeated entry hides
everything; a process sees either one MIG slice or whole cards, never both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Card(Generic[T]):
    """One physical card in PCI order.

    Attributes:
        uuid: Its UUID, `GPU-…`.
        whole: The device it is as a whole; None in MIG mode.
        slices: In MIG mode, each slice's names (UUIDs, the newer form and the older) with its device.
    """

    uuid: str
    whole: T | None
    slices: list[tuple[tuple[str, ...], T]]

    def device(self) -> T | None:
        """Return what CUDA makes of the card: itself, or in MIG mode its first slice, if any."""
        if self.whole is not None:
            return self.whole
        return self.slices[0][1] if self.slices else None


def select_visible(cards: list[Card[T]], variable: str | None) -> tuple[list[T], str]:
    """Apply `CUDA_VISIBLE_DEVICES`.

    Args:
        cards: All cards in PCI order.
        variable: The variable's value; None if it is not set.

    Returns:
        The devices in CUDA's order, and a note that says what was hidden by mistake or wholly; empty otherwise.
    """
    if variable is None:
        return _one_slice_or_whole_cards(cards, list(range(len(cards))), [])
    if not variable.strip():
        return [], "CUDA_VISIBLE_DEVICES is empty, which hides every GPU"
    shown = f"CUDA_VISIBLE_DEVICES={variable}"
    entries = [entry.strip() for entry in variable.split(",")]
    kind = _kind(entries[0])
    chosen: list[int] = []
    slices: list[tuple[int, T]] = []
    note = ""
    for entry in entries:
        place: int | tuple[int, T] | None = None
        if _kind(entry) == kind:
            place = _find_slice(cards, entry) if kind == "MIG" else _find_card(cards, entry)
        if place is None:
            if entry.startswith("-"):
                note = f"{shown} hides every GPU" if not chosen and not slices else ""
            else:
                note = f"{shown}: {entry!r} does not name one GPU here; CUDA ignores it and all entries after it"
            break
        if place in chosen or place in slices:
            return [], f"{shown} names a GPU twice, for which CUDA hides every GPU"
        if isinstance(place, int):
            chosen.append(place)
        else:
            slices.append(place)
    visible, mig_note = _one_slice_or_whole_cards(cards, chosen, [device for _, device in slices])
    return visible, "; ".join(part for part in (note, mig_note) if part)


def _kind(entry: str) -> str:
    return entry[:3] if entry.startswith(("GPU-", "MIG-")) else "index"


def _find_card(cards: list[Card[T]], entry: str) -> int | None:
    """Return the place of the card that an index or the beginning of a UUID names; None if none or several do."""
    if entry.startswith("GPU-"):
        matches = [place for place, card in enumerate(cards) if card.uuid.startswith(entry)]
        return matches[0] if len(matches) == 1 else None
    number = re.match(r"\+?\d+", entry)  # CUDA reads the leading digits and overlooks what follows
    place = int(number.group()) if number else -1
    return place if 0 <= place < len(cards) else None


def _find_slice(cards: list[Card[T]], entry: str) -> tuple[int, T] | None:
    """Return the MIG slice (numbered over all cards) that a beginning of a UUID names; None if none or several do."""
    everything = [part for card in cards for part in card.slices]
    matches = [
        (place, device)
        for place, (names, device) in enumerate(everything)
        if any(name == entry if "/" in entry else name.startswith(entry) for name in names)
    ]
    return matches[0] if len(matches) == 1 else None


def _one_slice_or_whole_cards(cards: list[Card[T]], chosen: list[int], slices: list[T]) -> tuple[list[T], str]:
    """Keep only the first MIG slice if there is any: CUDA shows a process no second one and no whole card beside it."""
    parts = [*slices, *(card.slices[0][1] for card in (cards[place] for place in chosen) if card.slices)]
    whole = [device for place in chosen if (device := cards[place].whole) is not None]
    if not parts:
        return whole, ""
    num_slices = len(slices) or sum(len(cards[place].slices) for place in chosen)
    if num_slices == 1 and not whole:
        return parts[:1], ""
    return parts[:1], "a process sees one MIG slice only: the first"
