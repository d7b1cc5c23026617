"""Which pages of a cache are whose; full pages are remembered by their text, so that it is read only once.

Page numbers only: the keys and values themselves lie in a `KVCache`.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

NO_TEXT = b""  # what stands before the first page


def page_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """A name for a full page: its tokens and, through the name of the page `before`, all that precede them.

    16 bytes of BLAKE2b: two texts that share a name cannot be made.
    """
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class PagePool:
    """The pages `first`, `first + 1`, …, each held by the sequences that read it, or free.

    A free page that is remembered keeps its contents until it is needed for something else; the one that was
    released longest ago goes first.
    """

    def __init__(self, first: int, count: int) -> None:
        self.count = count
        self._unused = list(range(first + count - 1, first - 1, -1))
        self._holders: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered, held by none, oldest first

    @property
    def free(self) -> int:
        """Pages that `take` can still give."""
        return len(self._unused) + len(self._idle)

    def take(self) -> int:
        """A page of one's own, its contents undefined; only where `free` is not 0."""
        if self._unused:
            page = self._unused.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._digest_of.pop(page)]
        self._holders[page] = 1
        return page

    def find(self, digest: bytes) -> int | None:
        """The page that is remembered under a name, held from now on by one more; None if there is none."""
        page = self._page_of.get(digest)
        if page is not None:
            self._idle.pop(page, None)
            self._holders[page] = self._holders.get(page, 0) + 1
        return page

    def remember(self, page: int, digest: bytes) -> None:
        """Name a full page, which nobody may write to any more; of two pages with one name the first keeps it."""
        if digest not in self._page_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def release(self, pages: Iterable[int]) -> None:
        """Let go of the pages of a sequence, given in order; its last are the first to be forgotten."""
        for page in reversed(list(pages)):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._digest_of:
                self._idle[page] = None
            else:
                self._unused.append(page)
