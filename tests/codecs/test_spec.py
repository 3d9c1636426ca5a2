"""The text of a reducer, taken apart: methods, options, recipes and files."""

import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.spec import MethodSpec, file_names, is_recipe, parse_spec
from har_edge.errors import ConfigError


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("none", [("none",)]),
        ("paa:5 + q8", [("paa", "5"), ("q8",)]),
        ("pca:chest.npz+zlib:9", [("pca", "chest.npz"), ("zlib", "9")]),
        ("ae:a-1.tflite:b_2.tflite", [("ae", "a-1.tflite", "b_2.tflite")]),
        ("q8:1e+20:0+zlib", [("q8", "1e+20", "0"), ("zlib",)]),
    ],
)
def test_parts(spec, parts):
    assert parse_spec(spec) == tuple(MethodSpec(method, tuple(options)) for method, *options in parts)
    assert "+".join(map(str, parse_spec(spec))) == spec.replace(" ", "")


@pytest.mark.parametrize("spec", ["", "+", "paa:", "pca:../x.npz", "pca:a/b.npz", "paa::5", "q8 q8", "paa:5++q8"])
def test_what_is_no_specification_is_refused(spec):
    with pytest.raises(ConfigError, match=r"is no method or option, expected METHOD\[:OPTION...\]"):
        parse_spec(spec)


@pytest.mark.parametrize("spec", ["pca:16", "ae:8", "cae:8+zlib", "paa:5+bottleneck:4"])
def test_recipes_are_yet_to_be_fitted(spec):
    assert is_recipe(spec) and file_names(spec) == ()
    with pytest.raises(ConfigError, match=r"is a recipe that is yet to be fitted; train with it"):
        make_reducer(spec, 250, 9)


def test_fitted_methods_name_files():
    spec = "ae:enc.tflite:dec.tflite+zlib:9"
    assert not is_recipe(spec) and file_names(spec) == ("enc.tflite", "dec.tflite")
    assert file_names("pca:a.npz+pca:a.npz") == ("a.npz",)
    assert not is_recipe("paa:5+q8:1:0") and file_names("paa:5+q8:1:0") == ()


def test_a_large_scale_survives_its_text():
    reducer = make_reducer("q8:1e20:0", 4, 2)
    assert reducer.spec == "q8:1e+20:0" == make_reducer(reducer.spec, 4, 2).spec
