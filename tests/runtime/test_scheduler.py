"""The decisions of an engine, without a model: turns, shares, room."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.runtime.fair_queue import FairQueue
from octavo.runtime.pages import PagePool
from octavo.runtime.requests import Request
from octavo.runtime.scheduler import Draft, Scheduler, equal_shares


def draft(arrival, length, client=""):
    prompt = tuple(range(arrival * 1000, arrival * 1000 + length))
    return Draft(Request(prompt, client=client), print, arrival, list(prompt))


def scheduler(rows=4, pages=10, page_size=4, reuse=True):
    return Scheduler(rows, page_size, PagePool(1, pages), reuse)


def test_clients_take_turns_in_a_queue():
    queue = FairQueue()
    for client, item in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]:
        queue.push(client, item)
    queue.remove("c", 5)
    assert len(queue) == 5 and set(queue) == {1, 2, 3, 4, 6}
    taken = []
    while queue:
        assert queue.peek() not in taken
        taken.append(queue.pop())
    assert taken == [1, 4, 2, 6, 3]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 100))
def test_shares_are_equal_and_none_is_wasted(wanted, budget):
    shares = equal_shares(wanted, budget)
    assert sum(shares) == min(sum(wanted), budget)
    largest = max(shares, default=0)
    for share, want in zip(shares, wanted, strict=True):
        assert share <= want and (share == want or share >= largest - 1)


def test_shares_written_out():
    assert equal_shares([100, 3, 100], 21) == [9, 3, 9]
    assert equal_shares([5], 16) == [5] and equal_shares([], 16) == [] and equal_shares([4, 4], 1) == [0, 1]


def test_nobody_is_overtaken_by_a_smaller_one():
    plan = scheduler(pages=10)
    for each in (draft(1, 20), draft(2, 24), draft(3, 1)):
        plan.add(each)
    plan.admit()
    assert [each.arrival for each in plan.reading] == [1] and len(plan.waiting) == 2
    assert plan.pool.free == 5
    plan.let_go(plan.reading.pop())
    plan.admit()
    assert [each.arrival for each in plan.reading] == [2, 3]


def test_whoever_made_room_goes_on_first():
    plan = scheduler(rows=2)
    drafts = [draft(number, 4) for number in range(1, 5)]
    for each in drafts:
        plan.add(each)
    plan.admit()
    assert plan.youngest() is drafts[1]
    for each in (drafts[1], drafts[0]):
        plan.reading.remove(each)
        plan.send_back(each)
    assert plan.pool.free == 10
    plan.admit()
    assert plan.reading == drafts[:2]


def test_full_pages_are_shared_and_what_is_read_by_another_is_waited_for():
    plan = scheduler()
    one, two = draft(1, 11), draft(1, 11)
    plan.add(one)
    plan.add(two)
    plan.admit()
    assert plan.next_chunks(100) == [(one, 10)]
    plan.note_cached(one, 10)
    assert plan.next_chunks(100) == [(two, 2)]  # two full pages are there; the third is each one's own
    assert two.cached == 8 and two.pages[:2] == one.pages[:2] and two.pages[2] != one.pages[2]
    assert plan.tokens_reused == 8 and plan.pool.free == 10 - 4


def test_without_reuse_nothing_is_shared():
    plan = scheduler(reuse=False)
    one, two = draft(1, 11), draft(1, 11)
    plan.add(one)
    plan.add(two)
    plan.admit()
    assert plan.next_chunks(100) == [(one, 10), (two, 10)]
    plan.note_cached(one, 10)
    plan.add(draft(1, 11))
    plan.admit()
    assert plan.tokens_reused == 0 and set(one.pages).isdisjoint(two.pages)


def test_a_prompt_that_is_scored_is_read_even_if_it_is_known():
    plan = scheduler()
    one, two = draft(1, 9), draft(1, 9)
    two = Draft(Request(two.request.prompt, top_logprobs=0, scores_prompt=True), print, 2, two.tokens)
    plan.add(one)
    plan.admit()
    plan.note_cached(one, 8)
    plan.add(two)
    plan.admit()
    assert two.cached == 0 and plan.next_chunks(100) == [(two, 8)]
