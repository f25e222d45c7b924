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


def test_a_torchvision_that_does_not_fit_is_a_sentence(run_python, tmp_path):
    """As pip leaves it beside another torch: transformers imports it, and its operators are not there."""
    for name, text in {
        "torchvision/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')",
        "torchvision-0.15.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.15.0\n",
    }.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\nfrom hf_ddpm import HFDDPMPipeline\n"
    ended = run_python(code, check=False, fresh=True)
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the installed torchvision does not fit the installed torch (operator")
    assert last.endswith("or run pip uninstall torchvision, because hf_ddpm does not need it")
