"""How the names of masks differ from those of their images, where all differ alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher


def common_naming(masks: list[str], images: list[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return in which ways all masks have images, each with the ends that names then have."""
    fitting: dict[tuple[str, ...], tuple[str, ...]] = {}
    known = set(images)
    for ends in dict.fromkeys([*_differences(masks[0], images), (*_ends(masks), *_ends(images))]):
        names = _without(masks, *ends[:2])
        found = [ends[2] + name + ends[3] for name in names]
        fits = known.issuperset(found) and _without(found, *ends[2:]) == names
        # One alone has something in common with almost any other.
        enough = len(masks) > 1 or not ends[2] + ends[3]
        if len(found) == len(masks) and fits and enough:
            fitting.setdefault(tuple(found), ends)
    return fitting


def _ends(names: Sequence[str]) -> tuple[str, str]:
    """Return what all names begin with and end with; no part of a number."""
    before = _beginning(names)
    after = _beginning([name[len(before) :][::-1] for name in names])[::-1]
    return before.rstrip("0123456789"), after.lstrip("0123456789")


def _beginning(names: Sequence[str]) -> str:
    """Return what all names begin with."""
    pairs = zip(min(names), max(names), strict=False)
    return "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _differences(mask: str, images: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield what stands before and after the longest part that a mask shares with each image."""
    for image in images:
        i, j, size = SequenceMatcher(None, mask, image, autojunk=False).find_longest_match()
        if size:
            yield mask[:i], mask[i + size :], image[:j], image[j + size :]


def _without(names: Iterable[str], before: str, after: str) -> list[str]:
    """Return what stands between two ends of names, up to one that has them not."""
    parts: list[str] = []
    for name in names:
        part = name[len(before) : len(name) - len(after)]
        joints = (before[-1:] + part[:1], part[-1:] + after[:1])
        cuts_number = any(len(joint) == 2 and joint.isdecimal() for joint in joints)
        if not part or cuts_number or before + part + after != name:
            break
        parts.append(part)
    return parts
