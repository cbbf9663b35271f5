"""The registry, and the contract that every entry of its folders keeps."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import jepa
from jepa import representation
from jepa.registry import available, build, nearest
from jepa.types import Encoder, Objective, Quantizer

FOLDERS = {"encoders": "Encoder", "quantizers": "Quantizer", "objectives": "Objective", "data": "Source"}
ENTRIES = [(folder, name) for folder in FOLDERS for name in available(folder)]


def signature(folder: str, name: str) -> inspect.Signature:
    return inspect.signature(importlib.import_module(f"jepa.{folder}.{name}").build)


def options(folder: str, name: str) -> list[inspect.Parameter]:
    return [p for p in signature(folder, name).parameters.values() if p.kind is p.KEYWORD_ONLY]


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A registry folder `jepa.zoo` on disk with the entries `ape` and `asp`, and a private module."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "_feed.py").write_text("def build(*, grams): return grams\n")
    (folder / "ape.py").write_text("def build(parent, *, age, height=2.0): return parent, age, height\n")
    (folder / "asp.py").write_text("def build(*, length=1): return length\n")
    monkeypatch.setattr(jepa, "__path__", [*jepa.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield folder
    for module in [m for m in sys.modules if m.startswith("jepa.zoo")]:
        del sys.modules[module]


# --- the registry ---------------------------------------------------------------------------------------------------


def test_a_file_is_all_an_entry_takes(zoo):
    assert available("zoo") == ["ape", "asp"]
    (zoo / "yak.py").write_text("def build(*, coat): return coat\n")
    importlib.invalidate_caches()
    assert available("zoo") == ["ape", "asp", "yak"]
    assert build("zoo", "yak", coat="brown") == "brown"


def test_build_passes_parts_and_options_and_leaves_defaults_to_the_signature(zoo):
    assert build("zoo", "ape", "eve", age=3) == ("eve", 3, 2.0)
    assert build("zoo", "ape", "eve", height=1.5, age=3) == ("eve", 3, 1.5)


def test_build_names_an_unknown_option_and_what_it_takes(zoo):
    with pytest.raises(ValueError, match=r"zoo/ape does not take \['wings'\]; it takes \['age', 'height'\]"):
        build("zoo", "ape", "eve", age=3, wings=2)


def test_a_part_is_not_an_option(zoo):
    with pytest.raises(ValueError, match=r"does not take \['parent'\]"):
        build("zoo", "ape", parent="eve", age=3)


def test_build_names_a_missing_option(zoo):
    with pytest.raises(ValueError, match=r"zoo/ape needs \['age'\]"):
        build("zoo", "ape", "eve", height=1.0)


def test_build_does_not_open_a_private_module(zoo):
    with pytest.raises(ValueError, match="there is no zoo/_feed"):
        build("zoo", "_feed", grams=1)


def test_nearest_points_at_the_closest_name():
    known = {"sigreg", "relational", "prediction"}
    assert nearest("sigrex", known) == "did you mean 'sigreg'?"
    assert nearest("predicton", known) == "did you mean 'prediction'?"


def test_nearest_lists_every_name_in_order_when_none_is_close():
    assert nearest("qqq", iter(["relational", "prediction"])) == "known: prediction, relational"


# --- the entries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_entry_states_what_it_builds(folder, name):
    module = importlib.import_module(f"jepa.{folder}.{name}")
    assert module.__doc__, f"{folder}/{name} does not say what it is"
    assert module.build.__doc__, f"{folder}/{name} does not document its options"
    assert signature(folder, name).return_annotation == FOLDERS[folder]


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_entry_takes_parts_by_position_and_options_by_keyword(folder, name):
    parameters = signature(folder, name).parameters.values()
    # There is nothing to choose about having no quantizer.
    assert options(folder, name) or name == "identity", "without keyword-only options it cannot be configured"
    for p in parameters:
        assert p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY), f"{p.name} would hide a misspelt option"
        assert p.annotation is not p.empty, f"{p.name} has no type"
        # A default of a part would be a second place that decides how a run is wired.
        assert p.kind is p.KEYWORD_ONLY or p.default is p.empty, f"part {p.name} has a default"


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_defaults_are_values_a_config_can_hold(folder, name):
    def plain(value):
        return isinstance(value, (bool, int, float, str, type(None))) or (
            isinstance(value, tuple) and all(plain(v) for v in value)
        )

    assert [p.name for p in options(folder, name) if p.default is not p.empty and not plain(p.default)] == []


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_a_misspelt_option_is_refused_before_anything_is_built(folder, name):
    with pytest.raises(ValueError) as error:
        build(folder, name, no_such_option=1)
    message = str(error.value)
    assert "no_such_option" in message
    for p in options(folder, name):
        assert repr(p.name) in message


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_a_required_option_is_asked_for(folder, name):
    required = [p.name for p in options(folder, name) if p.default is p.empty]
    if required:
        with pytest.raises(ValueError) as error:
            build(folder, name)
        assert all(repr(option) in str(error.value) for option in required)


@pytest.mark.parametrize(("folder", "name"), ENTRIES)
def test_a_misspelt_name_is_answered_with_the_nearest(folder, name):
    with pytest.raises(ValueError, match=f"there is no {folder}/{name}x: did you mean '{name}'"):
        build(folder, f"{name}x")


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if available(folder)])
def test_a_strange_name_is_answered_with_the_list(folder):
    with pytest.raises(ValueError) as error:
        build(folder, "0000")
    assert ", ".join(available(folder)) in str(error.value)


@pytest.mark.parametrize("name", available("encoders"))
def test_encoder_is_built_from_its_defaults(name):
    encoder = build("encoders", name)
    assert isinstance(encoder, Encoder)
    assert callable(encoder.init) and callable(encoder.apply)


@pytest.mark.parametrize("name", available("quantizers"))
def test_quantizer_is_built_from_its_defaults_and_has_no_parts(name):
    quantizer = build("quantizers", name)
    assert isinstance(quantizer, Quantizer)
    assert all(callable(f) for f in quantizer[:-1])
    assert all(type(level) is int and level >= 2 for level in quantizer.levels)
    assert list(signature("quantizers", name).parameters.values()) == options("quantizers", name)


@pytest.mark.parametrize("name", available("objectives"))
def test_objective_is_built_from_its_defaults_on_every_encoder_and_quantizer(name):
    for encoder, quantizer in itertools.product(available("encoders"), available("quantizers")):
        parts = build("encoders", encoder), build("quantizers", quantizer)
        objective = build("objectives", name, representation.build(*parts))
        assert isinstance(objective, Objective)
        functions = (value for name, value in objective._asdict().items() if name not in ("terms", "levels", "world"))
        assert all(callable(f) for f in functions) and objective.levels == parts[1].levels
        assert objective.terms and set(objective.terms.values()) <= {"latent", "external", "regulariser"}


# --- the harness ----------------------------------------------------------------------------------------------------


def test_accidental_broadcasting_is_an_error_here():
    with pytest.raises(ValueError, match="rank"):
        jnp.ones(3) + jnp.ones((3, 1))


def test_the_library_is_the_one_beside_these_tests():
    root = Path(__file__).resolve().parents[1]
    assert Path(available.__globals__["__file__"]).is_relative_to(root)
