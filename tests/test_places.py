"""Of places the last part leaves this machine, of names on the Hub the whole."""

import pytest

from hf_ddpm.places import last_name, names_on_the_hub, without_places


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("/data/x", "x"),
        ("~/y/", "y"),
        ("/home/o'brien/my photos/", "my photos"),
        ("runs/secret/mnist", "mnist"),
        ("../secret/x", "x"),
        ("C:\\Users\\ada\\photos", "photos"),
        ("\\\\server\\share\\photos", "photos"),
        ("file:///home/ada/x.parquet", "x.parquet"),
        ("https://host/secret/x.parquet?token=1", "x.parquet"),
        ("zip://1.png::/home/ada/x.zip", "x.zip"),
        ("/home/ada/*.parquet", "*.parquet"),
        ("digits", "digits"),
    ],
)
def test_places_become_names(place, left):
    assert last_name(place) == left
    assert without_places({"data": {"source": place}}) == {"data": {"source": left}}


def test_a_place_is_known_by_its_field_and_an_absolute_one_by_itself():
    assert without_places({"a": ["/data/x", "~/y/", 3]}) == {"a": ["x", "y", 3]}
    facts = {"recipe": {"data": {"source": "a/b"}, "latents": {"vae": "c/d"}, "training": {"output_dir": "runs/e"}}}
    assert without_places(facts) == {
        "recipe": {"data": {"source": "b"}, "latents": {"vae": "d"}, "training": {"output_dir": "e"}}
    }
    assert without_places({"hub_model_id": "ada/moons", "vae": ["diffusers", "HFVAE"]}) == {
        "hub_model_id": "ada/moons",
        "vae": ["diffusers", "HFVAE"],
    }
    assert without_places({"class_names": ["/m/01g317", "~"]}) == {"class_names": ["/m/01g317", "~"]}


def test_what_was_found_on_the_hub_stays():
    assert without_places("ylecun/mnist") == "ylecun/mnist"
    facts = {"data": {"source": "ylecun/mnist", "origin": "hub", "latents": {"source": "ada/vae", "origin": "local"}}}
    facts["recipe"] = {"data": {"source": "ylecun/mnist"}, "latents": {"vae": "ada/vae"}}
    assert names_on_the_hub(facts) == {"ylecun/mnist"}
    clean = without_places(facts, names_on_the_hub(facts))
    assert clean["data"] == {**facts["data"], "latents": {"source": "vae", "origin": "local"}}
    assert clean["recipe"] == {"data": {"source": "ylecun/mnist"}, "latents": {"vae": "vae"}}
    assert without_places(facts["recipe"], names_on_the_hub(facts["recipe"]))["data"] == {
        "source": "mnist"
    }  # an old run
    assert names_on_the_hub({"source": "/home/ada/x", "origin": "hub"}) == frozenset()


def test_the_images_that_an_evaluation_tests_on_are_places():
    recipe = {"evaluation": {"test_source": "my/photos/test", "reference": "mnist-test"}, "data": {"source": "digits"}}
    clean = without_places(recipe)
    assert clean["evaluation"] == {"test_source": "test", "reference": "mnist-test"}
    found = without_places({"conditions": {"reference": {"data": {"source": "a/b/c"}}}})
    assert found == {"conditions": {"reference": {"data": {"source": "c"}}}}


def test_where_a_run_began_and_what_its_history_says_are_places():
    changed = {"evaluation.test_source": ["my/photos/a", "my/photos/b"], "optimization.lr": [1.0, 0.5]}
    recipe = {"training": {"init_from": "runs/secret/checkpoint"}, "history": [{"step": 6, "changed": changed}]}
    clean = without_places(recipe)
    assert clean["training"] == {"init_from": "checkpoint"}
    assert clean["history"][0]["changed"] == {"evaluation.test_source": ["a", "b"], "optimization.lr": [1.0, 0.5]}
