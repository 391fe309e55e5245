"""Text that goes to a terminal: without what would steer it or hide in it."""

from gptoss_mlx.chat.visible import with_all_visible
from gptoss_mlx.terminal.safe_text import call_text, shortened, without_controls


def test_control_characters_become_marks():
    assert without_controls("a\x1b[2Jb\x07\u202ec\td\r\n\x9b\ud800") == "a\ufffd[2Jb\ufffd\ufffdc\td\n\ufffd\ufffd"


def test_nothing_hides_in_a_call():
    assert with_all_visible("a\u200b\u00adb\ufeff\U000e0041\u3164\u115f\ufe0f\u2066\u00a0\u2800\x1b\ud800") == (
        r"a\u200b\xadb\ufeff\U000e0041\u3164\u115f\ufe0f\u2066\xa0\u2800\x1b\ud800"
    )
    assert with_all_visible("na\u00efve \U0001f600\r\n\tx") == "na\u00efve \U0001f600\n\tx"
    assert call_text("python", "a = 1 #\rb = 2") == "python:\n    a = 1 #\\r\n    b = 2"


def test_a_long_result_is_counted():
    assert shortened("one\n", 10) == "one"
    assert shortened("\n".join("abcdefghijkl"), 10) == "a\nb\nc\nd\n... 8 more lines"
    assert shortened("0123456789\n01234567890", 10) == "0123456789\n012345 ..."
