"""Wrong and extreme values at every door: Config, each public function, train.py, evaluate.py. One sentence, or a right result."""
from __future__ import annotations

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch
from conftest import SMALL, take
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scripts import refused

import evaluate
import train
import vae_helpers as vae

NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 31, 1000, 2 ** 31 - 1, 2 ** 31, 2 ** 62, -2 ** 63, 10 ** 30, 10 ** 400, 0.0, -0.0, 0.5, 1.0, 1e-300, 1e300, -1e30,
                           math.nan, math.inf, -math.inf, True, False])
JUNK = st.one_of(NUMBERS, st.none(), st.text(max_size=5), st.binary(max_size=3), st.lists(st.integers(-3, 3), max_size=3), st.sampled_from([
    {}, object(), Ellipsis, 1j, np.float32(2), np.int64(3), np.zeros(3), print, int, (1, 2), (2, 1), (math.nan, 1), (-math.inf, math.inf), range(3)]))
SHAPES = [(), (0,), (1,), (4,), (3, 4), (0, 4), (4, 4), (16, 4), (3, 32, 32), (1, 32, 32), (0, 3, 32, 32), (2, 3, 32, 32), (2, 1, 32, 32), (2, 3, 31, 32),
          (2, 2, 32, 32), (1, 1, 3, 32, 32), (4, 7)]
TENSORS = st.builds(lambda shape, kind, value: torch.full(shape, value).to(kind), st.sampled_from(SHAPES), st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool, torch.complex64]), st.sampled_from([0.0, 0.5, 1.0, 2.0, 300.0, -1.0, math.nan, math.inf]))


def finite(result) -> bool:
    """Whether everything in a result that is a number is a finite one."""
    if isinstance(result, torch.Tensor):
        return bool(result.isfinite().all())
    if isinstance(result, dict):
        return all(map(finite, result.values()))
    if isinstance(result, (tuple, list)):
        return all(map(finite, result))
    return not isinstance(result, float) or math.isfinite(result)


# ── Config ──────────────────────────────────────────────────────────────────────────────────────

@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(vae.Config)]), JUNK, min_size=1, max_size=3))
def test_a_config_is_refused_in_one_sentence_or_can_be_built_and_named(choices):
    try:
        config = vae.Config(**{"dataset": "shapes", "width": 8, **choices})
        assert config.run_name and dataclasses.replace(config) == config
        if config.width * 2 ** config.depth < 300 and config.image_size < 100 and config.latent_dim < 1000 and (config.codebook or 0) < 1000:
            assert finite(list(vae.build_model(config).state_dict().values()))
    except vae.VAEError as err:
        assert "\n" not in str(err) and len(str(err)) < 400


@pytest.mark.parametrize("choices, says", [({"arch": "fc", "depth": 99999}, "depth must be a whole number from 1 to 31"), ({"dataset": []}, "dataset must be one of"),
                                           ({"channels": True}, "channels"), ({"epochs": True}, "epochs"), ({"lr": 10 ** 400}, "lr"), ({"data_dir": 3, "dataset": "folder"}, "data_dir"),
                                           ({"image_size": 10 ** 9}, "image_size"), ({"beta": "1"}, "beta"), ({"width": 10 ** 30}, "width")])
def test_values_that_used_to_end_in_a_traceback_are_refused(choices, says):
    with pytest.raises(vae.VAEError, match=says):
        vae.Config(**choices)


@pytest.mark.parametrize("choices", [{"latent_dim": 2 ** 31 - 1}, {"arch": "fc", "width": 2 ** 31 - 1}, {"width": 2 ** 30}, {"model": "vq_vae", "codebook": 2 ** 31 - 1}])
def test_a_model_that_no_memory_can_hold_is_refused_before_it_is_made(choices):
    with pytest.raises(vae.VAEError, match="GiB of memory"):
        vae.build_model(vae.Config(dataset="shapes", **choices))


def test_images_that_no_memory_can_hold_are_refused_before_they_are_drawn(monkeypatch):
    monkeypatch.setattr(vae, "draw_shapes", None)
    with pytest.raises(vae.VAEError, match="GiB of memory"):
        vae.load_dataset("shapes", image_size=4096, max_images=600_000)


# ── Every public function ───────────────────────────────────────────────────────────────────────

CHECKED = {name: f for module in (vae, evaluate) for name, f in vars(module).items()
           if inspect.isfunction(f) and hasattr(f, "__wrapped__") and f.__module__ == module.__name__ and not name.startswith("_")}
GENERATOR = torch.Generator().manual_seed(0)
Z, IMAGE, PIXELS = torch.randn(16, 4, generator=GENERATOR), torch.rand(3, 32, 32, generator=GENERATOR), torch.rand(4, 3, 32, 32, generator=GENERATOR)
VALID = {   # an argument that is right, by its name
    "n": 3, "k": 2, "components": 2, "decoded_at_once": 2, "latents": 2, "latent_dim": 4, "columns": 2, "num": 3, "num_interpolations": 3, "seed": 0, "parameters": 1000,
    "method": "spherical", "likelihood": "bernoulli", "z_range": None, "radius": None, "temperature": 1.0, "scale": 2.0, "epsilon": 0.01, "image_size": 8,
    "images": (PIXELS * 255).byte(), "tuning": (PIXELS * 255).byte(), "corners": PIXELS, "x_hat": PIXELS, "image_a": IMAGE, "image_b": IMAGE.flip(0), "x": PIXELS,
    "x_raw": PIXELS, "mean": PIXELS, "mu": Z, "logvar": -Z, "a": Z, "b": Z.flip(0), "z": Z, "z_a": Z, "z_b": Z.flip(0), "path": PIXELS, "real": Z, "fake": Z.flip(0),
    "t": torch.tensor(0.3), "labels": None, "has_attribute": torch.arange(16) % 2 == 0, "factors": torch.ones(3, 7, dtype=torch.long), "dims": [0, 2], "values": [-1.0, 1.0],
    "title": "a title", "names": ("a", "b"), "decode": lambda z: z.sigmoid(), "features": lambda x: x, "generator": None, "name": "shapes"}
SPECIAL = {"traverse": {"z": Z[0]}}
LEFT_OUT = {"fit", "train_run", "load_or_train", "save_checkpoint", "read_record", "load_checkpoint", "load_dataset", "config_for", "picture_sets", "plot_classes",
            "plot_attributes", "plot_manifold", "image_features", "plot_reconstructions", "plot_samples", "save_strip",
            *(f"explore_{what}" for what in ("interpolation", "region", "dimensions", "models"))}   # whose arguments are checked below, or need more than one value


def arguments(function, model):
    """Right arguments for all that it must be told, and for those options that the table of checks knows."""
    known = VALID | {"model": model, "config": model.config, "density": vae.fit_density(Z, 2), "data": None} | SPECIAL.get(function.__name__, {})
    return {name: known[name] for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD and (
        p.default is p.empty or name in vae.ARGUMENTS and name in known and known[name] is not None)}


@pytest.mark.parametrize("name", sorted(CHECKED.keys() - LEFT_OUT - {"condition_names"}))
def test_a_wrong_argument_of_a_function_is_refused_in_one_sentence_or_the_result_is_right(name, model):
    function = CHECKED[name]
    right = arguments(function, model)
    plain = function(**right)
    assert finite(plain) or name == "forward_passes"

    @settings(max_examples=60)
    @given(st.sampled_from(sorted(right.keys() & (vae.ARGUMENTS.keys() | {"dims", "values"}))), st.one_of(JUNK, TENSORS))
    def check(argument, wrong):
        if isinstance(wrong, (int, float)) and argument in vae.ARGUMENTS and vae.ARGUMENTS[argument][0](wrong) and wrong > 1000:
            return   # right, and takes as long or as much memory as was asked for
        try:
            result = function(**right | {argument: wrong})
            result = list(result) if inspect.isgenerator(result) else result
        except vae.VAEError as err:
            assert "\n" not in str(err) and len(str(err)) < 600
        else:
            assert finite(result) or name == "step_unevenness", f"{argument} = {wrong!r} gave {result}"

    check()


@pytest.mark.parametrize("name", sorted(CHECKED))
def test_every_argument_of_a_kind_that_the_table_knows_is_checked(name, model):
    """At the door, before anything else is looked at: an object that is nothing."""
    function = CHECKED[name]
    parameters = [p for p in inspect.signature(function).parameters if p in vae.ARGUMENTS]
    assert parameters
    for parameter in parameters:
        others = {p: None for p in inspect.signature(function).parameters if p != parameter and inspect.signature(function).parameters[p].kind is not inspect.Parameter.VAR_KEYWORD}
        earlier = parameters[:parameters.index(parameter)]
        right = VALID | {"model": model, "config": model.config, "density": vae.fit_density(Z, 2)}
        if any(right.get(p) is None and inspect.signature(function).parameters[p].default is inspect.Parameter.empty for p in earlier):
            continue   # data
        with pytest.raises(vae.VAEError, match=f"{name}: {parameter} must be "):
            function(**others | {p: right.get(p) for p in earlier} | {parameter: object()})


def test_every_public_function_that_takes_such_an_argument_is_checked():
    """What only models and the loop call is not: it gets what was checked."""
    inner = {"code_nats", "compile_pays", "penalty", "calibrate", "grid_sizes", "code_grid", "conv_encoder", "conv_decoder", "fc_encoder", "fc_decoder", "count_parameters",
             "write_record", "need_memory", "own_run", "plot_scatter", "standard_error", "write_json", "display_interpolated_images", "draw_sheet", "checked", "shown", "whole_number", "real_number"}
    public = {name for name, f in vars(vae).items() if inspect.isfunction(f) and f.__module__ == "vae_helpers" and not name.startswith("_")
              and any(p in vae.ARGUMENTS for p in inspect.signature(f).parameters)}
    assert public - CHECKED.keys() - inner == set()


@pytest.mark.parametrize("call", [
    lambda m: vae.decode_images(m, torch.zeros(2, 5)), lambda m: vae.encode_images(m, torch.zeros(2, 3, 32, 31)), lambda m: vae.encode_images(m, torch.full((2, 3, 32, 32), 1.1)),
    lambda m: vae.decode_images(m, torch.full((2, 4), math.nan)), lambda m: vae.mmd(Z[:1], Z), lambda m: vae.frechet_distance(Z[:1], Z), lambda m: vae.frechet_distance(Z, Z[:, :3]),
    lambda m: vae.kl_nats(Z, Z[:, :1]), lambda m: vae.reconstruction_nats(PIXELS, PIXELS[:1], "bernoulli"), lambda m: vae.reconstruction_nats(PIXELS, PIXELS, "laplace"),
    lambda m: vae.discretised_logistic_nats(PIXELS, PIXELS, 1.0), lambda m: vae.picture_metrics(PIXELS, PIXELS[:1]), lambda m: vae.interpolate_corners(m, PIXELS[:3]),
    lambda m: vae.traverse(m, Z[0], [4], [0.0]), lambda m: vae.traverse(m, Z[0], [-1], [0.0]), lambda m: vae.attribute_direction(Z, torch.ones(3)),
    lambda m: vae.sample_latents(3, 4, z_range=(2, -2)), lambda m: vae.sample_latents(3, 4, radius=math.nan), lambda m: vae.draw_shapes(torch.full((1, 7), 10)),
    lambda m: vae.fit_density(Z, 17), lambda m: evaluate.gaussian_gap(Z[:1]), lambda m: vae.step_lengths(PIXELS[:1]), lambda m: vae.load_dataset(["shapes"]),
    lambda m: vae.load_dataset("shapes", image_size=0), lambda m: vae.load_dataset("shapes", max_images=-1), lambda m: vae.load_checkpoint(None),
    lambda m: vae.load_dataset("folder", data_dir=7), lambda m: vae.image_grid(PIXELS[:, :2]), lambda m: vae.perceptual_path_length(None, None, Z, Z, "cubic")])
def test_these_are_refused(call, model):
    with pytest.raises(vae.VAEError) as caught:
        call(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.zeros(2, 4), torch.tensor([0.5, 0.5]), torch.tensor([0]), torch.full((2, 3), math.nan), [0, 1]], ids=repr)
def test_labels_that_a_conditional_model_does_not_know_are_refused(labels):
    model = vae.build_model(vae.Config(dataset="shapes", model="cvae", conditions=3, width=8, latent_dim=4))
    with pytest.raises(vae.VAEError):
        vae.encode_images(model, PIXELS[:2], labels)


# ── train.py and evaluate.py ────────────────────────────────────────────────────────────────────

class Begun(Exception):
    """The arguments were accepted, and the long part would begin."""


WORDS = st.one_of(NUMBERS.map(str), st.text(st.characters(exclude_characters="\0"), max_size=6), st.sampled_from(
    ["1e400", "1_000", "٣", " 7 ", "0x10", "1,2", "nan", "..", "/", "~", "-", "--", "=", "9" * 5000, "shapes", "folder", "conv", "fc", "vae", "cvae", "vq_vae", "wae", "ae"]))


def accepted_or_one_sentence(main, argv, capsys, monkeypatch):
    try:
        main(argv)
    except Begun:
        return
    except SystemExit as end:
        assert end.code in (0, 2)   # --help and its abbreviations
    except (vae.VAEError, OSError) as err:   # which the scripts print in one line
        assert isinstance(err, vae.DatasetUnavailable) or len(str(err).splitlines()) == 1
    capsys.readouterr()


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([f"--{f.name}" for f in dataclasses.fields(vae.Config)] + ["--preset", "--sweep", "--trials", "--prune", "--resume", "--nonsense"]), WORDS),
                min_size=1, max_size=3))
def test_whatever_train_is_told_it_trains_or_refuses_in_one_sentence(capsys, monkeypatch, tmp_path, few_shapes, pairs):
    def begin(*args, **kwargs):
        raise Begun

    door = vae.load_dataset

    def load(name, **options):
        if name == "folder":
            door(name, **options)
        return few_shapes

    with monkeypatch.context() as patch:
        patch.setenv("VAE_FAST", "1")
        patch.setattr(vae, "train_run", begin)
        patch.setattr(vae, "load_dataset", load)
        patch.setattr(train.Sweep, "run", begin)
        accepted_or_one_sentence(train.main, [word for pair in pairs for word in pair], capsys, monkeypatch)


@pytest.fixture(scope="module")
def few_shapes(all_shapes):
    return take(all_shapes, 40, 10, 10)


@pytest.fixture(scope="module")
def small_run(few_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    vae.train_run(vae.config_for(few_shapes, **SMALL, epochs=1), few_shapes, folder)
    return folder


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["--run", "--num_samples", "--num_interpolations", "--num_frechet", "--components", "--seed", "--data_dir", "--fid", "--nonsense"]), WORDS),
                min_size=1, max_size=3))
def test_whatever_evaluate_is_told_it_measures_or_refuses_in_one_sentence(capsys, monkeypatch, few_shapes, small_run, pairs):
    def begin(*args, **kwargs):
        raise Begun

    with monkeypatch.context() as patch:
        patch.setattr(vae, "load_dataset", lambda *args, **options: few_shapes)
        patch.setattr(vae, "sample_images", begin)
        accepted_or_one_sentence(evaluate.main, ["--run", str(small_run), *(word for pair in pairs for word in pair)], capsys, monkeypatch)


@pytest.mark.parametrize("arguments, says", [(["--num_samples", 10 ** 12], "num_samples"), (["--num_samples", 2 ** 31 - 1], "memory"), (["--num_interpolations", 10 ** 7], "memory"),
                                             (["--num_interpolations", 10 ** 30], "num_interpolations"), (["--num_frechet", 10 ** 30], "num_frechet")])
def test_evaluate_refuses_what_no_memory_can_hold(arguments, says, small_run, few_shapes, monkeypatch, capsys):
    monkeypatch.setattr(vae, "load_dataset", lambda *args, **options: few_shapes)
    assert says in refused(evaluate.main, ["--run", small_run, *arguments], capsys)


def test_numbers_and_arrays_of_numpy_are_numbers_too(tmp_path):
    config = vae.Config(dataset="shapes", latent_dim=np.int64(3), lr=np.float32(0.5), width=4, depth=1)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["latent_dim"] == 3 and config.lr == 0.5
    z = vae.sample_latents(np.int64(2), np.int32(3), z_range=(np.float32(-2), 2.0), seed=np.int64(1))
    assert z.shape == (2, 3)
    assert vae.traverse(vae.build_model(config).eval(), z[0], np.array([0, 2]), np.linspace(-2, 2, 5)).shape[:2] == (2, 5)
