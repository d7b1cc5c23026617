"""Who is read and written next, and in which pages: the decisions of an engine, without its model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.runtime.fair_queue import FairQueue
from octavo.runtime.pages import NO_TEXT, PagePool, page_digest
from octavo.runtime.requests import Listener, Request, Score


@dataclass(eq=False)
class Draft:
    """A request that is being answered, and where it stands.

    `tokens` are the prompt and what is written so far; the keys and values of the first `cached` of them are in
    `pages`, of which those that are full are named by `digests`.
    """

    request: Request
    listener: Listener
    arrival: int
    tokens: list[int]
    cached: int = 0
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    @property
    def written(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def unread(self) -> int:
        """Tokens to be read before the next can be written; the newest is read in the step that writes on."""
        return len(self.tokens) - 1 - self.cached

    @property
    def unscored(self) -> bool:
        """Whether its prompt must still be read for the scores, known or not."""
        return self.request.scores_prompt and len(self.scores) < len(self.request.prompt) - 1


class Scheduler:
    """Drafts that wait, those whose text is being read, and those that are written on.

    At most `rows` are read and written at a time. Whoever waits is admitted in its turn and never overtaken by a
    smaller one. With `reuse`, pages that another draft has read are shared.
    """

    def __init__(self, rows: int, page_size: int, pool: PagePool, reuse: bool) -> None:
        self.rows = rows
        self.page_size = page_size
        self.pool = pool
        self.reuse = reuse
        self.waiting: FairQueue[Draft] = FairQueue()
        self.set_back: list[Draft] = []  # they had to make room, and are the first to go on
        self.reading: list[Draft] = []
        self.writing: list[Draft] = []  # in the order of the decoder's rows
        self.tokens_reused = 0

    @property
    def busy(self) -> int:
        return len(self.reading) + len(self.writing)

    def add(self, draft: Draft) -> None:
        self.waiting.push(draft.request.client, draft)

    def admit(self) -> None:
        """Give pages to those who wait, as long as there are rows and pages for the next of them.

        A page is left for each draft under way, so that a newcomer does not at once drive one out.
        """
        while self.busy < self.rows and (self.set_back or self.waiting):
            draft = self.set_back[0] if self.set_back else self.waiting.peek()
            self._skip_known(draft)
            lacking = -(-len(draft.tokens) // self.page_size) - len(draft.pages)
            if lacking > self.pool.free - self.busy:
                self.let_go(draft)
                return
            draft.pages += [self.pool.take() for _ in range(lacking)]
            if self.set_back:
                self.set_back.pop(0)
            else:
                self.waiting.pop()
            self.reading.append(draft)

    def next_chunks(self, budget: int) -> list[tuple[Draft, int]]:
        """How many tokens of which drafts are read next: equal shares of `budget`, so none waits for a long one.

        Where two are about to read the same page, the later one waits for the earlier one's.
        """
        being_read: set[bytes] = set()
        readers = []
        for draft in self.reading:
            self._skip_known(draft)
            digest = self._next_digest(draft)
            if digest is None or digest not in being_read:
                readers.append(draft)
            if digest is not None:
                being_read.add(digest)
        shares = equal_shares([draft.unread for draft in readers], budget)
        return [(draft, share) for draft, share in zip(readers, shares, strict=True) if share]

    def note_cached(self, draft: Draft, count: int) -> None:
        """The next `count` positions of a draft are in its pages now."""
        draft.cached += count
        while self.reuse and len(draft.digests) < draft.cached // self.page_size:
            page = draft.pages[len(draft.digests)]
            draft.digests.append(self._digest(draft, len(draft.digests)))
            self.pool.remember(page, draft.digests[-1])

    def lacks_page(self, draft: Draft) -> bool:
        """Whether the newest token of a draft has no slot yet."""
        return draft.cached == len(draft.pages) * self.page_size

    def youngest(self) -> Draft:
        """The draft that has to make room when pages run out."""
        return max(self.reading + self.writing, key=lambda draft: draft.arrival)

    def send_back(self, draft: Draft) -> None:
        """A draft that made room waits again, before all others that arrived later; its text is kept."""
        self.let_go(draft)
        self.set_back.append(draft)
        self.set_back.sort(key=lambda waiting: waiting.arrival)

    def let_go(self, draft: Draft) -> None:
        """Free the pages of a draft."""
        self.pool.release(draft.pages)
        draft.cached, draft.pages, draft.digests = 0, [], []

    def _skip_known(self, draft: Draft) -> None:
        """Take over pages that another draft has read meanwhile."""
        while (digest := self._next_digest(draft)) is not None and (page := self.pool.find(digest)) is not None:
            own = draft.pages[len(draft.digests) : len(draft.digests) + 1]
            self.pool.release(own)
            draft.pages[len(draft.digests) : len(draft.digests) + 1] = [page]
            draft.digests.append(digest)
            draft.cached += self.page_size
            self.tokens_reused += self.page_size

    def _next_digest(self, draft: Draft) -> bytes | None:
        """The name of the page that a draft reads next, if it will be full and could be shared."""
        begins_page = draft.cached == len(draft.digests) * self.page_size
        if not self.reuse or draft.unscored or not begins_page or draft.unread < self.page_size:
            return None
        return self._digest(draft, len(draft.digests))

    def _digest(self, draft: Draft, place: int) -> bytes:
        tokens = draft.tokens[place * self.page_size : (place + 1) * self.page_size]
        return page_digest(draft.digests[place - 1] if place else NO_TEXT, tokens)


def equal_shares(wanted: Sequence[int], budget: int) -> list[int]:
    """What each gets of a budget: as much as it wants, or as much as the others that want more than they get."""
    shares = [0] * len(wanted)
    left = len(wanted)
    for place in sorted(range(len(wanted)), key=wanted.__getitem__):
        shares[place] = min(wanted[place], budget // left)
        budget -= shares[place]
        left -= 1
    return shares
