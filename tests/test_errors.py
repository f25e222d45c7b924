"""What is quoted of other libraries stays readable and keeps its beginning."""

import pytest

from hf_ddpm.errors import quoted


@pytest.mark.parametrize("text", ["", "short", "x" * 296, "two\n  lines\tand tabs"])
def test_what_is_short_is_whole_and_on_one_line(text):
    assert quoted(text) == " ".join(text.split())


def test_what_is_long_is_cut_between_words_and_says_so():
    found = quoted("word " * 100)
    assert len(found) <= 300 and found.endswith("word ...")


@pytest.mark.parametrize("before", ["", "cannot open "])
def test_one_long_word_keeps_its_beginning(before):
    """Such as a path, which a cut between words would lose whole."""
    assert quoted(f"{before}/folder/{'x' * 400} now") == f"{before}/folder/".ljust(296, "x") + " ..."
