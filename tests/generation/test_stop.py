import itertools

import pytest

from mlx_gemma4.errors import OptionError
from mlx_gemma4.generation.stop import StopStrings


def pieces_of(text, cuts):
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["xyz"], "one two three"),
        ("aaab", ["aab"], "a"),
        ("a\n\nb", ["\n\n"], "a"),
        ("ends with tw", ["two"], "ends with tw"),
        ("first or second", ["second", "or"], "first "),
        ("stop", ["stop"], ""),
        ("plain", [], "plain"),
    ],
)
def test_every_way_to_cut_the_text_gives_the_same(text, stop, expected):
    for count in range(4):
        for cuts in itertools.combinations(range(1, len(text)), count):
            stopper = StopStrings(stop)
            said = "".join(stopper.add(piece) for piece in pieces_of(text, cuts))
            if not stopper.is_stopped:
                said += stopper.finish()
            assert said == expected, cuts


def test_nothing_comes_after_the_stop():
    stopper = StopStrings(["x"])
    assert stopper.add("abxc") == "ab"
    assert stopper.is_stopped
    assert stopper.add("more") == ""


def test_text_that_cannot_become_a_stop_is_not_held_back():
    stopper = StopStrings(["two"])
    assert stopper.add("one t") == "one "
    assert stopper.add("hree") == "three"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(OptionError, match="empty"):
        StopStrings(["ok", ""])
