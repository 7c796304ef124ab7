"""The link's state over histories of answers and failures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.connectivity import LinkHealth, LinkState

FAULTS = [LinkState.NOT_CONNECTED, LinkState.NO_ANSWER, LinkState.NO_GATE]
WORDS = st.lists(st.sampled_from([LinkState.UP, *FAULTS]))


@given(words=WORDS, failures=st.integers(1, 4), successes=st.integers(1, 4))
def test_it_turns_after_as_many_in_a_row_as_it_takes(words: list[LinkState], failures: int, successes: int) -> None:
    link = LinkHealth(failures, successes)
    assert link.state is LinkState.UNKNOWN
    expected = None
    for place, word in enumerate(words):
        if word is LinkState.UP:
            link.answered()
        else:
            link.failed(word)
        # From the history alone: the newest run of one kind that was long enough, or the very first word.
        kinds = [said is LinkState.UP for said in words[: place + 1]]
        run = next((n for n, kind in enumerate(reversed(kinds)) if kind is not kinds[-1]), len(kinds))
        if expected is None or run >= (successes if kinds[-1] else failures):
            expected = kinds[-1]
        assert link.is_up is expected
    if words and not link.is_up and words[-1] is not LinkState.UP:
        assert link.state is words[-1]


def test_it_remembers_since_when() -> None:
    link = LinkHealth(2, 1)
    link.answered()
    since = link.since
    link.failed(LinkState.NO_ANSWER)
    link.answered()
    assert (link.state, link.since) == (LinkState.UP, since)
    link.failed(LinkState.NO_ANSWER)
    link.failed(LinkState.NO_ANSWER)
    assert link.since > since
    assert link.last_answer_at is not None
