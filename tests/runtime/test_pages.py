"""Pages are held by whoever reads them, found by their text, and never given twice."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.runtime.pages import NO_TEXT, PagePool, page_digest


def test_pages_are_taken_and_come_back():
    pool = PagePool(1, 3)
    assert sorted(pool.take() for _ in range(3)) == [1, 2, 3] and pool.free == 0
    pool.release([2, 3])
    assert pool.free == 2 and {pool.take(), pool.take()} == {2, 3}


def test_a_page_is_found_by_its_text_until_it_is_needed():
    pool = PagePool(1, 2)
    page = pool.take()
    pool.remember(page, b"once")
    assert pool.find(b"once") == page and pool.find(b"upon") is None
    pool.release([page])
    assert pool.free == 1  # one holder is left
    pool.release([page])
    assert pool.free == 2 and pool.find(b"once") == page
    pool.release([page])
    assert {pool.take(), pool.take()} == {1, 2}  # the one that knows nothing goes first
    assert pool.find(b"once") is None


def test_what_was_released_longest_ago_is_forgotten_first_and_the_end_before_the_beginning():
    pool = PagePool(1, 4)
    first, second = [pool.take(), pool.take()], [pool.take(), pool.take()]
    for page, name in zip(first + second, (b"a", b"ab", b"x", b"xy"), strict=True):
        pool.remember(page, name)
    pool.release(first)
    pool.release(second)
    assert [pool.take() for _ in range(4)] == [first[1], first[0], second[1], second[0]]


def test_of_two_pages_with_one_name_the_first_keeps_it():
    pool = PagePool(1, 2)
    one, two = pool.take(), pool.take()
    pool.remember(one, b"once")
    pool.remember(two, b"once")
    pool.release([two])
    assert pool.free == 1 and pool.find(b"once") == one


def test_a_name_tells_tokens_and_what_stands_before():
    names = {
        page_digest(before, tokens)
        for before in (NO_TEXT, page_digest(NO_TEXT, [1]), page_digest(NO_TEXT, [2]))
        for tokens in ([1, 2], [2, 1], [12], [1, 2, 0], [1 << 40, 2])
    }
    assert len(names) == 15 and all(len(name) == 16 for name in names)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["take", "find", "release"])), max_size=60))
def test_no_page_is_two_peoples_unless_they_share_its_text(moves):
    pool, held = PagePool(5, 4), []
    contents = {}
    for place, move in moves:
        name = str(place).encode()
        if move == "take" and pool.free:
            page = pool.take()
            assert page not in held and 5 <= page < 9
            contents.pop(page, None)
            held.append(page)
            if name not in contents.values():
                pool.remember(page, name)
                contents[page] = name
        elif move == "find":
            page = pool.find(name)
            assert page == next((each for each, text in contents.items() if text == name), None)
            held += [] if page is None else [page]
        elif move == "release" and place < len(held):
            pool.release([held.pop(place)])
        assert pool.free == 4 - len(set(held))
