from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.chat.stop_texts import StopTexts
from gptoss_mlx.harmony.parse import Content

TEXT = st.text("ab#", max_size=30)


@given(st.lists(TEXT, max_size=8), st.lists(st.text("ab#", min_size=1, max_size=5), max_size=3))
def test_the_first_stop_text_ends_the_answer_however_it_arrives(pieces, texts):
    stop, shown = StopTexts(texts), ""
    for piece in pieces:
        shown += "".join(event.text for event in stop.feed(Content(piece)))
        assert not any(text in shown for text in texts)
        if stop.found is not None:
            break
    shown += "".join(event.text for event in stop.rest())
    whole = "".join(pieces)
    ends = [whole.find(text) for text in texts if text in whole]
    if ends:
        assert shown == whole[: min(ends)]
        assert whole.startswith(stop.found, min(ends))
    else:
        assert (shown, stop.found) == (whole, None)


def test_what_cannot_become_a_stop_text_is_shown_at_once():
    stop = StopTexts(["END"])
    assert [event.text for event in stop.feed(Content("to the E"))] == ["to the "]
    assert [event.text for event in stop.feed(Content("ast"))] == ["East"]


def test_a_message_whose_first_piece_is_held_back_begins_with_the_next():
    stop = StopTexts(["END"])
    assert list(stop.feed(Content("EN", True))) == []
    shown = [*stop.feed(Content("TER", False)), *stop.feed(Content("E", False)), *stop.feed(Content("ND", True))]
    assert [(event.text, event.begins) for event in (*shown, *stop.rest())] == [
        ("ENTER", True),
        ("E", False),
        ("ND", True),
    ]
