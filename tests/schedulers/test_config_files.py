"""A scheduler's config by itself, from whom it may be: it opens or is refused in one sentence."""

import json

import pytest

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.config_files import MOST_BETAS, read_config

FILE = "scheduler_config.json"
JUNK = ["x", [], [7], {}, 0, -1, 2.5, True, None]


@pytest.fixture
def folder(tmp_path):
    HFDDPMScheduler(10).save_pretrained(tmp_path)
    return tmp_path


def test_whatever_stands_in_a_config_it_opens_or_is_a_sentence(folder):
    good = json.loads((folder / FILE).read_text())
    for name in [*good, "_use_default_values"]:
        for value in JUNK:
            (folder / FILE).write_text(json.dumps(good | {name: value}))
            try:
                HFDDPMScheduler.from_pretrained(folder)
            except (ValueError, OSError) as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": ' * 10**5 + b"1" + b"}" * 10**5, "has 100000 lists and objects, but at most 10000 are allowed"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "cannot be read as JSON"),
        (b'{"a": ' * 400 + b"1" + b"}" * 400, "nests lists and objects more than 16 levels deep"),
        (b'{"a": [' + b"0.1, " * (2**23) + b"0.1]}", f"has 41943052 bytes, but at most {MOST_BETAS} are allowed"),
        (b"[1]", "does not contain a JSON object"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b'{"num_train_timesteps": 1000000000000}', None),
    ],
    ids=["giant nest", "deeper than Python", "deep", "long", "a list", "no text", "steps"],
)
def test_config_bombs(text, said, folder):
    (folder / FILE).write_bytes(text)
    sentence = f"{folder / FILE} {said}" if said else "num_train_timesteps=1000000000000 must be at most 1000000"
    with pytest.raises(ValueError, match=f"^{sentence}"):
        HFDDPMScheduler.from_pretrained(folder)


def test_a_config_is_read_within_bounds(folder):
    file = folder / FILE
    assert read_config(file, 2**20, "it")["num_train_timesteps"] == 10
    with pytest.raises(ValueError, match=r"^it has \d+ bytes, but at most 10 are allowed$"):
        read_config(file, 10, "it")
