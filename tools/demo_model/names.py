"""Words of the demo world, and how names are made of them.

Every name is a combination whose parts are shared: two people may be called Ada, two
others Almory, so no single token identifies anybody and a name must be read as a whole.
Nobody and nothing here is real; a likeness would be chance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def words(text: str) -> tuple[str, ...]:
    """Split a text into words."""
    return tuple(text.split())


KINDS: tuple[str, ...] = ("person", "city", "company", "landmark", "book")

FIRST_NAMES: tuple[str, ...] = words(
    """Ada Alba Anouk Arlo Benno Brisa Cora Dario Edda Elin Emil Enzo Esmé Fleur Greta Hugo
    Ines Ivo Jora Jürg Kaya Lars Lena Liv Lotte Luca Mabel Maia Milo Nadia Nils Noé Odile Orla
    Otto Petra Remy Rosa Sami Selma Tilda Tove Vera Wren Yara Zoé Zuri Søren"""
)
LAST_NAMES: tuple[str, ...] = words(
    """Almory Ashgrove Bellwin Birkholm Brévane Calder Corvane Dellamar Dunlea Eastley Fairholm
    Fenwood Garrick Halbrook Harrow Ilver Jansby Kestrel Lindqvar Lockmere Lünder Marlowe
    Merrin Moreau Norden Oakley Ordway Pellam Penrose Quarles Ravenel Rosling Sandoral Selwyn
    Stroud Tamsin Thorne Tolliver Ulmer Vandeer Verlane Waverly Westby Whitlock Wynter Yarrow
    Zeller Ångmar"""
)

CITY_STARTS: tuple[str, ...] = words(
    "Al Bel Bran Cal Dal El Fen Gal Hal Ist Kel Lor Mal Nor Or Pel Quil Ros Tal Val Wil Zel"
)
CITY_ENDS: tuple[str, ...] = words(
    "vara mere dorn haven lund mora nesse una port rida stad tova wick mör véna"
)

COMPANY_STARTS: tuple[str, ...] = words(
    """Avora Brindle Corvex Dunlo Elvita Fabrin Gildor Hexamo Jovia Kestra Lumiro Morvan Nordex
    Orbina Pavola Quorra Rendal Solvi Tervo Ulmar Vantor Wexley Zendra Öresta"""
)
COMPANY_ENDS: tuple[str, ...] = (
    "Group", "Works", "Brothers", "Partners", "Union", "House", "Labs", "Holding",
)  # fmt: skip

LANDMARK_STARTS: tuple[str, ...] = words(
    """Ardun Blythe Carrow Dorrin Elmore Finlay Gorham Hestia Irving Juniper Kirby Larkin
    Mirabel Nettle Osmer Pomona Rowan Saffron Tansy Umber Vesper Willow Yewdale Étoile"""
)
LANDMARK_ENDS: tuple[str, ...] = (
    "Tower", "Bridge", "Hall", "Gate", "Castle", "Chapel", "Arch", "Lighthouse",
)  # fmt: skip

BOOK_STARTS: tuple[str, ...] = words(
    """Quiet Silver Distant Hidden Golden Patient Wandering Crimson Gentle Frozen Second Velvet
    Borrowed Endless Paper Midnight Honest Sleeping Lonely Bright"""
)
BOOK_ENDS: tuple[str, ...] = words(
    """Lantern Orchard Harbour Mirror Garden Letter Compass Sparrow Winter Island Clock Feather
    Staircase Meadow Violet Window Ribbon Comet Journey Pearl"""
)


def _combine(starts: Sequence[str], ends: Sequence[str], pattern: str) -> list[str]:
    """Return every combination of a start and an end, in a fixed order."""
    return [pattern.format(start, end) for start in starts for end in ends]


def draw_names(kind: str, count: int, rng: random.Random) -> list[str]:
    """Draw `count` different names of a kind; raises ValueError if there are not so many."""
    pools = {
        "person": (FIRST_NAMES, LAST_NAMES, "{} {}"),
        "city": (CITY_STARTS, CITY_ENDS, "{}{}"),
        "company": (COMPANY_STARTS, COMPANY_ENDS, "{} {}"),
        "landmark": (LANDMARK_STARTS, LANDMARK_ENDS, "{} {}"),
        "book": (BOOK_STARTS, BOOK_ENDS, "The {} {}"),
    }
    return rng.sample(_combine(*pools[kind]), count)
