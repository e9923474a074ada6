"""`nlzoo bench`, and what `finetune --tuned` makes of it."""

import json

import pytest
import torch

from nlzoo.apps import draw
from nlzoo.core import model_spec, recipe_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import checkpoint, model
from nlzoo.training import plan, tuning
from nlzoo.training.engine import Engine
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import scanning

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    monkeypatch.setattr(tuning, "LEAST", 1)
    monkeypatch.setattr(tuning, "BATCH", 2)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def net():
    made, _ = model.inflate("tiny", None, model.Inflation(), "res3:1", lambda repo: pytest.fail("no network"), 2)
    clip = view_spec.ClipSpec(2, None, 16)
    made.spec = model.dataclasses.replace(made.spec, clip=clip)
    return model.set_head(made, draw.DEMO)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    draw.write_videos(folder, draw.DEMO, 4, 0, 8, (32, 40))
    return folder


def test_it_measures_every_setting_and_keeps_the_fastest(net, videos, cache):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    done = tuning.bench(net, CPU, videos)
    assert [(m.setting.precision, m.setting.clips) for m in done.settings] == [
        ("fp32", 2),
        ("bf16", 2),
        ("fp32", 4),
        ("bf16", 4),
    ]
    assert all(m.clips_a_second > 0 and not m.problem for m in done.settings)
    assert done.best == max(done.settings, key=lambda m: m.clips_a_second)
    assert done.workers and all(rate > 0 for rate in done.workers.values())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    exact, half, *_ = done.settings
    assert exact.loss != half.loss and abs(exact.loss - half.loss) < 0.05  # by rounding alone
    recipe, workers = tuning.tuned(recipe_spec.Recipe(), 99, CPU, ())
    assert (recipe.precision, recipe.compile) == (done.best.setting.precision, False)
    assert workers == done.best_workers


def test_a_setting_with_another_loss_is_never_chosen(net, cache, monkeypatch):
    monkeypatch.setitem(tuning.ALLOWED, "bf16", 0.0)
    done = tuning.bench(net, CPU)
    assert [bool(m.problem) for m in done.settings] == [False, True, False, True]
    assert all("where float32 has" in m.problem for m in done.settings if m.problem)
    assert done.best.setting.precision == "fp32"


def test_what_does_not_fit_is_said_and_not_chosen(net, cache, monkeypatch):
    timed = tuning._timed

    def short_of_memory(net, setting, device, exact):
        if setting.clips > 2:
            raise RuntimeError("CUDA error: out of memory")
        return timed(net, setting, device, exact)

    monkeypatch.setattr(tuning, "_timed", short_of_memory)
    done = tuning.bench(net, CPU)
    assert [m.problem for m in done.settings] == ["", "", *["does not fit into memory"] * 2]
    assert done.best.setting.clips == 2
    monkeypatch.setattr(tuning, "BATCH", 4)
    with pytest.raises(UsageError, match="^no setting can train it on cpu: does not fit into memory$"):
        tuning.bench(net, CPU)


def test_tuned_before_anything_was_measured_is_refused(cache):
    with pytest.raises(UsageError, match="^--tuned: nothing was measured on cpu"):
        tuning.tuned(recipe_spec.Recipe(), 1, CPU, ())
    cache.mkdir()
    for damaged in ("", "[]", "{", json.dumps({"cpu": 3})):
        (cache / "tuned.json").write_text(damaged)
        with pytest.raises(UsageError, match="nothing was measured"):
            tuning.tuned(recipe_spec.Recipe(), 1, CPU, ())


def test_a_run_uses_it_but_for_what_was_given(net, videos, cache):
    tuning._keep(
        tuning.Bench(tuning._name(CPU), (), {}, tuning.Measured(tuning.Setting("bf16", False, 4), 9.0, 0.0, 0, 1.0), 3)
    )
    dataset = scanning.split(scanning.scan(videos), "0.25", 0)

    def planned(**options):
        config, decisions = plan.plan(dataset, "v", "m", FinetuneOptions(**options), Engine(CPU))
        return config, {d.code: (d.value, d.reason) for d in decisions}

    config, decisions = planned(tuned=True)
    assert (config.recipe.precision, config.workers) == ("bf16", 3)
    assert decisions["precision"] == ("bf16", "measured by nlzoo bench")
    config, _ = planned(tuned=True, recipe="small,precision=fp32")
    assert (config.recipe.precision, config.workers) == ("fp32", 3)
    config, decisions = planned()
    assert config.recipe.precision != "bf16" and "tuned" not in decisions


@pytest.mark.parametrize("arch, stream", [("frames", "rgb"), ("frames", "audio"), ("c2d", "audio"), ("i3d", "flow")])
def test_it_measures_whatever_can_be_fine_tuned(arch, stream, cache, nlzoo, tmp_path):
    made = model.build(model_spec.ModelSpec("tiny", model_spec.Inflation(arch), clip=view_spec.ClipSpec(2, None, 16)))
    checkpoint.save_model(tmp_path / "weights" / "small", model.set_stream(made, stream))
    code, out, err = nlzoo("bench", "small", "--device", "cpu", "--size", "32", "--json")
    assert code == 0, err
    assert all(each["clips_a_second"] > 0 and not each["problem"] for each in json.loads(out)["settings"])


def test_several_models_are_refused(net, cache, nlzoo, tmp_path):
    member = model_spec.Member(1.0, net.spec)
    spec = model_spec.ModelSpec(
        "fused", model_spec.Inflation("fused"), classes=net.spec.classes, num_outputs=4, members=(member, member)
    )
    checkpoint.save_model(tmp_path / "weights" / "both", model.build(spec))
    code, _, err = nlzoo("bench", "both", "--device", "cpu")
    assert code == 2 and "this model cannot be measured in training: it is 2 fused models" in err


def test_the_command(net, videos, cache, nlzoo, tmp_path, monkeypatch):
    code, _, err = nlzoo("bench")
    assert code == 2 and "there is no model in weights/ to measure" in err
    checkpoint.save_model(tmp_path / "weights" / "small", net)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_measure", lambda *rest: pytest.fail("told after the work"))
        for wrong, said in ((("nope",), "there is no model 'nope' here"), (("small", "nowhere"), "nowhere")):
            code, _, err = nlzoo("bench", *wrong)
            assert code in (2, 3) and said in err
        code, _, err = nlzoo("finetune", videos, "--tuned", "--device", "cpu")
        assert code == 2 and "nothing was measured" in err and "grouped by" not in err
    code, out, _ = nlzoo("bench", "small", videos, "--device", "cpu", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["line"].startswith("nlzoo finetune VIDEOS --recipe auto,precision=")
    assert len(figures["settings"]) == 4 and figures["workers"]
