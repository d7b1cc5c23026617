"""A queue in which clients take turns: whoever asks for much waits for itself, not the others for it."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of several clients: first come, first served within a client, one in turn among clients."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._waiting.values() for item in items)

    def push(self, client: str, item: Item) -> None:
        self._waiting.setdefault(client, deque()).append(item)

    def peek(self) -> Item:
        """The item whose turn it is; only where there is one."""
        return next(iter(self._waiting.values()))[0]

    def pop(self) -> Item:
        """Take that item; its client comes last now."""
        client, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[client] = items
        return item

    def remove(self, client: str, item: Item) -> None:
        """Take out an item that waits."""
        items = self._waiting[client]
        items.remove(item)
        if not items:
            del self._waiting[client]
