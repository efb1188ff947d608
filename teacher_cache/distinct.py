"""Which different images are asked for.

Every file named by its content, by all ranks of a build together.
"""

import errno
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.console import track
from shared.errors import UserError
from shared.imaging.contained import AnyReference
from shared.imaging.keys import content_keys
from shared.targets.segment.layout import KEY_BYTES
from teacher_cache.containers.faults import reason_of
from teacher_cache.ranks import Ranks

ALONE = Ranks(0, 1, 0)


class Distinct(NamedTuple):
    """Images by content: the first reference of each key, in order; the repeated ones.

    Files that cannot be opened.
    """

    by_key: dict[bytes, AnyReference]
    repeated: list[tuple[AnyReference, bytes]]
    unopened: list[tuple[AnyReference, str]]


def distinct_images(
    references: Iterable[AnyReference], workers: int, ranks: Ranks = ALONE
) -> Distinct:
    """Name every image by its content key.

    The key comes from the side index where the file has not changed since.

    Ranks that meet read a share of the files each and tell the others.

    Raises
    ------
    UserError
        The ranks do not ask for the same images.
    """
    wanted = list(dict.fromkeys(references))
    _check_same(wanted, ranks)
    rows = ranks.sum(_rows_of(wanted, workers, ranks))
    found = Distinct({}, [], [])
    for reference, row in zip(wanted, rows, strict=True):
        key, code = row[:KEY_BYTES].tobytes(), int(row[KEY_BYTES])
        if code:
            found.unopened.append((reference, f"the file cannot be read: {reason_of(code)}"))
        elif found.by_key.setdefault(key, reference) != reference:
            found.repeated.append((reference, key))
    return found


def _check_same(wanted: list[AnyReference], ranks: Ranks) -> None:
    """Hold the ranks to one list: with two, a key would go to another's image."""
    if not ranks.meets:
        return
    digest = hashlib.sha256()
    for one in wanted:
        digest.update(f"{one}\0".encode("utf-8", "surrogateescape"))
    words = np.frombuffer(digest.digest(), np.uint32).astype(np.int64)
    if (ranks.sum(words) != ranks.world * words).any():
        raise UserError(
            "the ranks do not see the same images, perhaps because files came or went while they "
            "were listed: start "
            "the build again"
        )


def _rows_of(wanted: list[AnyReference], workers: int, ranks: Ranks) -> NDArray[np.uint8]:
    """Key and error number of each file of this rank's share, (files, 33).

    Zeros for the others'.
    """
    rows = np.zeros((len(wanted), KEY_BYTES + 1), dtype=np.uint8)
    share = range(ranks.rank, len(wanted), ranks.world) if ranks.meets else range(len(wanted))
    keys = content_keys([wanted[place] for place in share], workers)
    for place, (_, key) in zip(share, track(keys, len(share), "hashing", "files"), strict=True):
        if isinstance(key, bytes):
            rows[place, :KEY_BYTES] = np.frombuffer(key, np.uint8)
        else:
            rows[place, KEY_BYTES] = key.errno or errno.EIO
    return rows
