"""Recipes as data and what they mean in torch, each against a computation of its own."""

import copy
import dataclasses
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlzoo.core import model_spec, recipe_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import layers, model
from nlzoo.training import recipe

R18 = {"res2": 2, "res3": 2, "res4": 2, "res5": 2}
BN = nn.modules.batchnorm._BatchNorm


def network(backbone="tiny", nl="res3:1,res4@0,1", depths=R18, frames=4, size=32, pools="none", alive=True):
    """With all BN, blocks' too, away from where they start, so that nothing is silent."""
    net = model.build(
        model_spec.ModelSpec(
            backbone,
            model_spec.Inflation(pools=pools),
            model_spec.parse_nl(nl, depths),
            view_spec.ClipSpec(frames, None, size),
            num_outputs=5,
        )
    )
    for m in net.modules():
        if alive and isinstance(m, BN):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.2, 0.2)
    return net


def step(net, how, optimizer, clips, target):
    optimizer.zero_grad()
    out = recipe.loss(net(clips), target, how)
    with recipe.recomputing(net):
        out.backward()
    optimizer.step()


def random_recipe(draw):
    values = {
        "optimizer": draw.choice(recipe_spec.OPTIMIZERS),
        "lr": draw.uniform(1e-5, 1),
        "weight_decay": draw.uniform(0, 1),
        "ema": draw.choice([0.0, 0.999]),
        "epochs": draw.randrange(1, 300),
        "batch": draw.randrange(2, 300),
        "accumulate": draw.randrange(1, 3),
        "compile": draw.random() < 0.5,
        "bn": draw.choice(["train", "frozen"]),
        "freeze": draw.choice(recipe_spec.FREEZES),
        "layer_decay": draw.uniform(0.1, 1),
        "balance": draw.choice(recipe_spec.BALANCES),
        "precision": draw.choice(recipe_spec.PRECISIONS),
        "schedule": draw.choice(["cosine", "constant"]),
        "milestones": tuple(sorted(draw.uniform(0.01, 0.9) for _ in range(draw.randrange(4)))),
    }
    return recipe_spec.Recipe(
        **{k: values[k] for k in draw.sample(sorted(values), draw.randrange(len(values)))} | {"batch": values["batch"]}
    )


# -- as data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, lr, batch, steps, drops, clips, bn, precise",
    [
        ("paper", 0.01, 64, 400_000, (150_000, 300_000), 235_000, "train", 200),
        ("paper-long", 0.0025, 16, 400_000, (150_000, 300_000), 235_000, "frozen", 0),
        ("charades", 0.00125, 8, 200_000, (75_000, 150_000), 7_985, "frozen", 0),
    ],
)
def test_the_papers_recipes_by_their_iterations(name, lr, batch, steps, drops, clips, bn, precise):
    how = recipe_spec.RECIPES[name]
    assert (how.optimizer, how.lr, how.batch, how.weight_decay, how.dropout, how.bn, how.precise_bn) == (
        "sgd",
        lr,
        batch,
        1e-4,
        0.5,
        bn,
        precise,
    )
    assert how.warm_up == how.label_smoothing == how.clip_norm == how.ema == 0 and how.layer_decay == 1
    assert how.epochs * clips / how.batch == pytest.approx(steps, rel=0.02)
    for n, expected in (
        (0, 1),
        (drops[0] - 1, 1),
        (drops[0], 0.1),
        (drops[1] - 1, 0.1),
        (drops[1], 0.01),
        (steps - 1, 0.01),
    ):
        assert recipe.rate_factor(how, n, steps) == pytest.approx(expected)


def test_the_rate_of_small_warms_up_and_falls_as_half_a_cosine(seed):
    small = recipe_spec.RECIPES["small"]
    for steps in (1, 3, 7, 180, random.Random(seed).randrange(20, 5000)):
        warm = max(1, round(0.1 * steps))
        for n in range(steps):
            expected = (n + 1) / warm if n < warm else 0.5 + 0.5 * math.cos(math.pi * (n - warm) / max(1, steps - warm))
            assert recipe.rate_factor(small, n, steps) == pytest.approx(expected, abs=1e-12)
    assert recipe.rate_factor(dataclasses.replace(small, warm_up=0.0), 0, 10) == 1
    flat = dataclasses.replace(small, schedule="constant")
    assert [recipe.rate_factor(flat, n, 20) for n in range(4)] == [0.5, 1, 1, 1]


def test_words_become_recipes_and_the_rate_follows_the_batch_and_frozen_bn():
    parse = recipe_spec.parse_recipe
    assert parse("paper,epochs=20,batch=8") == dataclasses.replace(
        recipe_spec.RECIPES["paper"], epochs=20, batch=8, lr=0.01 / 8
    )
    assert parse(" Small, batch = 16 ") == dataclasses.replace(recipe_spec.Recipe(), batch=16, lr=1e-3)
    assert parse("paper,batch=8,lr=0.02").lr == 0.02 and parse("paper,epochs=3").lr == 0.01
    mine = dataclasses.replace(recipe_spec.RECIPES["paper"], epochs=7)
    assert (
        parse("layer_decay=0.7", mine)
        == parse("auto,layer_decay=0.7", mine)
        == dataclasses.replace(mine, layer_decay=0.7)
    )
    assert parse("auto", mine) == mine and parse("auto") == recipe_spec.RECIPES["small"]
    frozen = parse("small,bn=frozen")  # a fifth of AdamW's; of SGD's, which the paper has for it, nothing
    assert frozen.lr == pytest.approx(1e-4) and parse("bn=frozen,batch=16").lr == pytest.approx(2e-4)
    assert parse("bn=train", frozen).lr == pytest.approx(5e-4) and parse("epochs=3", frozen).lr == frozen.lr
    assert parse("small,bn=frozen,lr=0.001").lr == 0.001 and parse("paper,bn=frozen").lr == 0.01
    assert parse("small,bn=sync").lr == recipe_spec.RECIPES["small"].lr
    assert parse("small,schedule=step,milestones=0.5/0.75").milestones == (0.5, 0.75)
    assert parse("small,compile=yes,checkpointing=no").compile is True


def test_a_recipe_reads_back_what_it_prints(seed):
    draw = random.Random(seed)
    seen = {str(how): how for how in [*recipe_spec.RECIPES.values(), *(random_recipe(draw) for _ in range(300))]}
    assert len(seen) > 250 and str(recipe_spec.RECIPES["charades"]) == "charades"
    for text, how in seen.items():
        assert recipe_spec.parse_recipe(text) == how, text
        summary = json.loads(json.dumps(dataclasses.asdict(how)))  # as config.json has it
        assert recipe_spec.Recipe(**summary | {"milestones": tuple(summary["milestones"])}) == how


@pytest.mark.parametrize(
    "text, words",
    [
        ("papers", "no preset 'papers'"),
        ("", "no preset ''"),
        ("paper,speed=3", "'speed=3' was not understood"),
        ("paper,fast", "'fast' was not understood"),
        ("paper,lr=1,lr=2", "lr is given twice"),
        ("paper,lr=fast", "lr must be a number"),
        ("paper,epochs=1.5", "epochs must be a whole number"),
        ("paper,compile=1", "compile must be yes or no"),
        ("paper,milestones=a/b", "shares of the run"),
        ("small,schedule=step", "needs milestones"),
        ("paper,milestones=0.7/0.3", "must rise"),
        ("paper,milestones=0.5/1", "a milestone is 1.0"),
        ("paper,milestones=none", "needs milestones"),
        ("paper,lr=0", "lr is 0"),
        ("paper,lr=nan", "lr is nan"),
        ("paper,lr=inf", "lr is inf"),
        ("paper,batch=0", "batch is 0"),
        ("paper,epochs=0", "epochs is 0"),
        ("paper,optimizer=lion", "optimizer is 'lion'"),
        ("paper,bn=off", "bn is 'off'"),
        ("paper,batch=4,accumulate=5", "accumulate, in a batch of 4, is 5"),
        ("paper,ema=1", "ema is 1"),
        ("paper,layer_decay=0", "layer_decay is 0"),
        ("paper,unfreeze=1", "unfreeze is 1"),
        ("paper,dropout=1", "dropout is 1"),
        ("charades,balance=sampler", "one label a video"),
        ("small,loss=bce", "one label a video"),
        ("paper,precision=int8", "precision is 'int8'"),
    ],
)
def test_recipes_that_cannot_be_are_refused_in_words(text, words):
    with pytest.raises(UsageError, match=words) as caught:
        recipe_spec.parse_recipe(text)
    assert caught.value.exit_code == 2


def test_the_loss_follows_the_labels():
    small = recipe_spec.RECIPES["small"]
    assert recipe_spec.for_labels(small, False) is small
    assert recipe_spec.for_labels(small, True) == dataclasses.replace(small, loss="bce", label_smoothing=0.0)
    assert recipe_spec.for_labels(recipe_spec.RECIPES["charades"], False).loss == "ce"
    with pytest.raises(UsageError, match="one label a video"):
        recipe_spec.for_labels(dataclasses.replace(small, balance="loss"), True)


@pytest.mark.parametrize(("batch", "device"), [(None, "cpu"), (None, "cuda"), (3, "cpu"), (64, "cuda")])
@pytest.mark.parametrize(("fast", "fewest"), [(False, 540), (True, 1080)])
def test_a_small_set_is_trained_for_so_many_steps_at_least(batch, device, fast, fewest):
    for clips in range(1, 5000, 7):
        recipe, decisions = recipe_spec.auto_recipe(clips, 5, batch, device, True, False, fast=fast)
        steps = -(-clips // recipe.batch)
        if recipe.passes > 1:
            assert 0.92 * fewest <= recipe.epochs * recipe.passes * steps <= 1.08 * fewest
        else:
            assert recipe.epochs * steps >= fewest
        assert f"about {fewest:,} steps" in next(d.reason for d in decisions if d.code == "passes")


@pytest.mark.parametrize(
    "clips, batch, device, fresh, long, expected, words",
    [
        (
            35,
            None,
            "cpu",
            True,
            False,
            "small,passes=3,probe=baseline,ema=0.98",
            [
                "passes: 3 (over the clips in an epoch, for about 540 steps at least)",
                "baseline: linear probe (which fine-tuning must beat, for at most 1,000 training clips)",
                "batch: 4 (on cpu)",
                "BatchNorm: trainable (",
                "precision: auto (bf16 where the device has it)",
                "35 training clips of 5 classes, under 50,000",
            ],
        ),
        (
            35,
            None,
            "cuda",
            True,
            False,
            "small,batch=16,epochs=30,passes=6,probe=baseline,ema=0.98",
            ["epochs: 30 (for 35 training clips on cuda)", "learning rate: 0.001 (0.0005 for 4 clips a step"],
        ),
        (
            35,
            9,
            "cpu",
            False,
            False,
            "small,batch=9,epochs=19,passes=7,probe=baseline,ema=0.98",
            ["learning rate: 0.00075", "by the square root of the batch"],
        ),
        (20_000, None, "cuda", True, False, "small,batch=16,epochs=5,ema=0.98", ["epochs: 5 (", "ema: 0.98 ("]),
        (49_999, None, "cpu", True, True, "small,epochs=5,ema=0.98", []),
        (
            50_000,
            None,
            "cuda",
            True,
            False,
            "paper,batch=16,epochs=5",
            ["learning rate: 0.0025 (0.01 for 64 clips a step, in proportion", "not under 50,000"],
        ),
        (50_000, 32, "cuda", True, True, "paper,batch=32,epochs=5", ["BatchNorm: trainable ("]),
        (50_000, 8, "cuda", False, True, "paper-long,batch=8,epochs=5", ["BatchNorm: frozen ("]),
        (
            400,
            None,
            "cuda",
            False,
            True,
            "small,batch=16,epochs=30,bn=frozen,probe=baseline,ema=0.98",
            ["BatchNorm: frozen (long clips", "by the square root of the batch, 0.2 of it with frozen BN"],
        ),
    ],
)
def test_what_is_chosen_where_nothing_was_asked(clips, batch, device, fresh, long, expected, words):
    chosen, decisions = recipe_spec.auto_recipe(clips, 5, batch, device, fresh, long)
    assert chosen == recipe_spec.parse_recipe(expected)
    lines = list(map(str, decisions))
    assert all(any(w in line for line in lines) for w in words), lines
    codes = ["recipe", "epochs", "batch", "lr", "bn", "precision"]
    codes += ["passes", "ema"] * (clips < 50_000) + ["baseline"] * (chosen.probe == "baseline")
    assert [d.code for d in decisions] == codes
    values = {d.code: d.value for d in decisions if d.code in ("epochs", "passes", "batch", "lr", "bn", "ema")}
    assert values == {name: getattr(chosen, name) for name in values}
    several, decisions = recipe_spec.auto_recipe(clips, 5, batch, device, fresh, long, multi_label=True)
    assert several == recipe_spec.for_labels(chosen, True)
    assert str(decisions[-1]) == "loss: bce (a video may have several labels)"
    trained, decisions = recipe_spec.auto_recipe(clips, 5, batch, device, fresh, long, new_head=False)
    assert trained == dataclasses.replace(chosen, probe="none") and "baseline" not in [d.code for d in decisions]


# -- rates ------------------------------------------------------------------------------------------------------------


def by_name(net, groups):
    names = {id(p): n for n, p in net.named_parameters()}
    return {names[id(p)]: (g["base"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_adamw_has_a_rate_for_each_kernel_and_sgd_one_for_all():
    net = network()
    small, paper = (by_name(net, recipe.parameter_groups(net, recipe_spec.RECIPES[n])) for n in ("small", "paper"))
    assert len(small) == len(paper) == len(list(net.parameters()))
    for name, p in net.named_parameters():
        decay = 0 if p.ndim == 1 else 1
        flat = p.detach().double().numpy().sum(2) if p.ndim == 5 else None
        rate = 3 if name.startswith("fc") else 1 if p.ndim == 1 or ".nl" in name else math.sqrt((flat**2).mean()) / 0.14
        assert small[name] == (pytest.approx(5e-4 * rate, rel=1e-5), 0.05 * decay)
        assert paper[name] == (0.01, 1e-4 * decay)
    ways = [recipe.optimizer(net, recipe_spec.RECIPES[n]) for n in ("small", "paper")]
    assert isinstance(ways[0], torch.optim.AdamW) and isinstance(ways[1], torch.optim.SGD)
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in ways[1].param_groups)


@pytest.mark.parametrize(
    "kind, how", [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.AdamW, {"weight_decay": 0.1})]
)
def test_an_uncompiled_optimiser_takes_torchs_steps_bit_for_bit_also_from_its_state(kind, how, seed):
    start = torch.randn(7, 5)
    theirs, ours = ([nn.Parameter(start.clone())] for _ in range(2))
    a, b = kind(theirs, lr=0.1, **how), recipe.uncompiled(kind)(ours, lr=0.1, **how)
    for _ in range(5):
        gradient = torch.randn(7, 5)
        theirs[0].grad, ours[0].grad = gradient.clone(), gradient.clone()
        a.step(), b.step()
        assert torch.equal(theirs[0], ours[0])
        again = recipe.uncompiled(kind)(ours, lr=0.3, **how)
        again.load_state_dict(b.state_dict())
        b = again
    b.zero_grad()
    assert ours[0].grad is None and a.state_dict()["param_groups"] == b.state_dict()["param_groups"]
    ours[0].square().sum().backward()
    b.step()  # no step is itself differentiated
    assert ours[0].is_leaf and not torch.equal(theirs[0], ours[0])


def test_layer_decay_is_timms_table_where_there_are_no_blocks():
    model.import_timm()
    from timm.optim import param_groups_layer_decay

    for name in ("resnet18", "resnet50"):
        flat = model.plain_resnet(name)
        theirs = {
            n: g["lr_scale"]
            for g in param_groups_layer_decay(flat, layer_decay=0.7)
            for p in g["params"]
            for n, q in flat.named_parameters()
            if q is p
        }
        ours = recipe.layer_rates(flat, 0.7)
        assert theirs.keys() == ours.keys() and all(ours[n] == pytest.approx(theirs[n]) for n in ours)


@pytest.mark.parametrize(
    "name, depths, nl, expected",
    [
        (
            "resnet18",
            R18,
            "res3@0,res4:2",
            {
                "conv1.weight": 9,
                "bn1.bias": 9,
                "layer1.0": 8,
                "layer1.1": 7,
                "layer2.0": 6,
                "layer2.nl0": 6,
                "layer2.1": 5,
                "layer3.0": 4,
                "layer3.nl0": 4,
                "layer3.1": 3,
                "layer3.nl1": 3,
                "layer4.0": 2,
                "layer4.1": 1,
                "fc": 0,
            },
        ),
        (
            "resnet50",
            {"res2": 3, "res3": 4, "res4": 6, "res5": 3},
            "5",
            {
                "conv1.weight": 17,
                "layer1.0": 16,
                "layer1.2": 14,
                "layer2.0": 13,
                "layer2.1": 12,
                "layer2.nl1": 12,
                "layer2.nl3": 10,
                "layer3.0": 9,
                "layer3.nl3": 6,
                "layer3.5": 4,
                "layer3.nl5": 4,
                "layer4.0": 3,
                "layer4.2": 1,
                "fc.weight": 0,
            },
        ),
    ],
)
def test_layer_decay_by_residual_depth_and_a_block_with_the_one_before_it(name, depths, nl, expected):
    with torch.device("meta"):
        net = network(name, nl, depths, pools="8x8", alive=False)
    rates = recipe.layer_rates(net, 0.5)
    assert len(rates) == len(list(net.parameters()))
    for prefix, distance in expected.items():
        own = [rate for n, rate in rates.items() if (n + ".").startswith(prefix + ".")]
        assert own and set(own) == {0.5**distance}, prefix
    plain, decayed = (
        {
            n: r
            for n, (r, _) in by_name(
                net, recipe.parameter_groups(net, dataclasses.replace(recipe_spec.RECIPES["paper"], layer_decay=d))
            ).items()
        }
        for d in (1.0, 0.5)
    )
    assert all(decayed[n] == pytest.approx(plain[n] * rates[n]) for n in plain)
    assert set(recipe.layer_rates(net, 1.0).values()) == {1.0}


def test_the_range_test_takes_the_steepest_fall_below_a_tenth_of_where_it_blows_up(seed):
    draw = np.random.default_rng(seed)
    rates = np.geomspace(1e-6, 10, 141)  # 20 a decade
    for best in (1e-4, 1e-3, 1e-2):  # half of the fall at `best`, blown up from 30 times that on
        curve = 2 - 1.5 / (1 + (best / rates) ** 1.5) + (rates / (100 * best)) ** 4 + draw.normal(0, 0.01, len(rates))
        assert best / 3 < recipe.range_test(curve.tolist(), rates.tolist()) < best * 10
    blown = np.where(
        rates < 1e-3, 2 - np.log10(rates / 1e-6) ** 3 / 27, np.nan
    )  # falls ever faster until it is NaN at 1e-3
    assert recipe.range_test(blown.tolist(), rates.tolist()) == pytest.approx(1e-4, rel=0.15)
    with pytest.raises(UsageError, match="fell at no rate"):
        recipe.range_test((2 + rates / 100).tolist(), rates.tolist())
    with pytest.raises(UsageError, match="blew up after 3 steps"):
        recipe.range_test([2.0, 2.0, 2.0, math.inf, *[2.0] * 20], rates[:24].tolist())


# -- what trains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper-long", "small,bn=frozen"])
def test_frozen_bn_keeps_every_bit_while_the_blocks_own_learns(preset, seed):
    how = dataclasses.replace(recipe_spec.parse_recipe(preset), lr=0.01)
    net = network()
    for block in (m for m in net.modules() if isinstance(m, layers.NonLocalBlock)):
        nn.init.zeros_(block.bn.weight)  # fresh
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = recipe.optimizer(net, how)
    for _ in range(3):
        net.eval()
        recipe.train_mode_(net, how)
        assert net.training and net.layer3.nl1.bn.training and not net.layer3[0].bn1.training
        step(net, how, optimizer, torch.randn(4, 3, 4, 32, 32), torch.randint(5, (4,)))
    norms = {name for name, m in net.named_modules() if isinstance(m, BN)}
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in moved if k.rpartition(".")[0] in norms and ".nl" not in k}
    own = {
        f"{n}.{k}"
        for n in norms
        if ".nl" in n
        for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert len(own) == 15 and own <= moved and {"conv1.weight", "layer4.1.conv2.weight", "fc.weight"} <= moved
    net.train()  # the negative control: alone it does not keep the statistics
    net(torch.randn(4, 3, 4, 32, 32))
    assert not torch.equal(net.bn1.running_mean, before["bn1.running_mean"])


def test_stages_of_unfreezing(seed):
    net = network()
    how = dataclasses.replace(recipe_spec.RECIPES["small"], unfreeze=0.25)
    assert recipe.staged(net, how, 0.0) and not recipe.staged(net, how, 0.2)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        n for n, _ in net.named_parameters() if ".nl" in n or n.startswith("fc.")
    }
    before = copy.deepcopy(net.state_dict())
    recipe.train_mode_(net, how)
    step(net, how, recipe.optimizer(net, how), torch.randn(3, 3, 4, 32, 32), torch.tensor([0, 1, 2]))
    moved = {n for n, _ in net.named_parameters() if not torch.equal(net.state_dict()[n], before[n])}
    shifts = {
        n for n in before if n.endswith("phi.bias")
    }  # add the same to all keys' logits: the softmax takes no notice
    assert moved - shifts == {n for n, _ in net.named_parameters() if ".nl" in n or n.startswith("fc.")} - shifts
    assert (
        recipe.staged(net, how, 0.25)
        and all(p.requires_grad for p in net.parameters())
        and not recipe.staged(net, how, 0.9)
    )
    frozen = dataclasses.replace(how, bn="frozen")
    assert recipe.staged(net, frozen, 0.1) and recipe.staged(net, frozen, 1.0)
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {
        f"{n}.{k}" for n, m in net.named_modules() if isinstance(m, BN) and ".nl" not in n for k in ("weight", "bias")
    }
    assert not recipe.staged(network(), recipe_spec.RECIPES["small"], 0.0)  # nothing is asked for, nothing changes


@pytest.mark.parametrize(
    "freeze, trains, bn",
    [("res2", ("layer2", "layer3", "layer4"), "frozen"), ("res4", ("layer4",), "train"), ("backbone", (), "train")],
)
def test_frozen_stages_keep_every_bit_and_all_else_trains(freeze, trains, bn):
    torch.manual_seed(0)
    net, how = network(), dataclasses.replace(recipe_spec.RECIPES["small"], freeze=freeze, bn=bn, lr=0.01)
    recipe.train_mode_(net, how)
    assert recipe.staged(net, how, 0.0) and not recipe.staged(net, how, 1.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = recipe.optimizer(net, how)
    for _ in range(2):
        recipe.train_mode_(net, how)
        step(net, how, optimizer, torch.randn(4, 3, 4, 32, 32), torch.randint(5, (4,)))
    recipe.precise_bn_(net, [torch.randn(4, 3, 4, 32, 32)], torch.device("cpu"), bn, freeze)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    learning = {k for k in before if ".nl" in k or k.startswith(("fc.", *trains))}
    if bn == "frozen":
        norms = {name for name, m in net.named_modules() if isinstance(m, BN) and ".nl" not in name}
        learning -= {k for k in before if k.rpartition(".")[0] in norms}
    # a phi's bias adds the same to all logits; its weight stays where fresh neighbours give it no gradient
    assert moved <= learning and not {k for k in learning - moved if "phi" not in k}
    assert all(p.requires_grad == (n in learning) for n, p in net.named_parameters())
    clip, all_ = view_spec.ClipSpec(4, None, 32), dataclasses.replace(how, freeze="none")
    assert recipe.memory_estimate(net, clip, 4, how) < recipe.memory_estimate(net, clip, 4, all_)


def test_precise_bn_is_the_statistics_of_all_the_data(seed):
    net = network().double()  # float32's own errors grow from layer to layer, with so few clips by a thousand
    net.drop_rate = 0.5
    data = [torch.randn(n, 3, 4, 32, 32, dtype=torch.float64) * 2 + 1 for n in (4, 4, 3, 1)]
    wide, seen = copy.deepcopy(net).eval(), {}
    for name, m in wide.named_modules():
        if isinstance(m, BN):
            m.train().register_forward_pre_hook(
                lambda _, x, name=name: seen.setdefault(name, []).append(x[0].transpose(0, 1).flatten(1))
            )
    with torch.no_grad():
        for part in data:
            wide(part)
    counts, generator = net.bn1.num_batches_tracked.clone(), torch.get_rng_state()
    before = copy.deepcopy(net.state_dict())
    recipe.precise_bn_(net.train(), iter(data), torch.device("cpu"))
    assert len(seen) == sum(isinstance(m, BN) for m in net.modules()) > 20 and not any(
        m.training for m in net.modules()
    )
    for name, parts in seen.items():
        m, numbers = net.get_submodule(name), torch.cat(parts, 1)
        torch.testing.assert_close(m.running_mean, numbers.mean(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(m.running_var, numbers.var(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(net.bn1.num_batches_tracked, counts) and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items() if "running" not in n)
    recipe.precise_bn_(net, data[:1], torch.device("cpu"))  # of one batch it is what torch would keep with momentum 1
    again = copy.deepcopy(net).train()
    again.bn1.momentum = 1.0
    again(data[0])
    torch.testing.assert_close(net.bn1.running_var, again.bn1.running_var, rtol=1e-6, atol=1e-6)


def test_precise_bn_where_bn_is_frozen_is_the_blocks_alone(seed):
    net = network()
    before = copy.deepcopy(net.state_dict())
    recipe.precise_bn_(net, [torch.randn(4, 3, 4, 32, 32)], torch.device("cpu"), bn="frozen")
    moved = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n in before if ".nl" in n and "running" in n} and len(moved) == 6
    with pytest.raises(ValueError, match="no batch"):
        recipe.precise_bn_(net, [], torch.device("cpu"))


def test_the_moving_average_is_its_recursion_and_restores_bit_for_bit(seed):
    net, how = network(), recipe_spec.Recipe(lr=1e-2)
    average = model.moving_average(net, 0.8)
    own = {k: v.double().clone() for k, v in net.state_dict().items()}
    recipe.train_mode_(net, how)
    optimizer, kept = recipe.optimizer(net, how), None
    data = [(torch.randn(3, 3, 4, 32, 32), torch.randint(5, (3,))) for _ in range(12)]
    for n, (clips, target) in enumerate(data, 1):
        step(net, how, optimizer, clips, target)
        average.update(net, step=n)
        decay = min(0.8, 1 - n ** (-2 / 3)) if n > 1 else 0.0
        own = {
            k: v.double() if "num_batches" in k else decay * own[k] + (1 - decay) * v.double()
            for k, v in net.state_dict().items()
        }
        if n == 6:
            kept, later = copy.deepcopy(average.module.state_dict()), model.moving_average(network(), 0.8)
            later.module.load_state_dict(kept)
        if n > 6:
            later.update(net, step=n)
    for k, v in average.module.state_dict().items():
        torch.testing.assert_close(v.double(), own[k], rtol=1e-5, atol=1e-6)
        assert torch.equal(v, later.module.state_dict()[k])
    assert any(not torch.equal(v, kept[k]) for k, v in average.module.state_dict().items() if "running_mean" in k)
    assert not average.module.training and average.module.spec == net.spec
    assert not torch.allclose(average.module.fc.weight, net.fc.weight)


# -- loss and balance -------------------------------------------------------------------------------------------------


def test_losses_against_their_formulas(seed):
    logits, labels, several = torch.randn(7, 4), torch.randint(4, (7,)), torch.randint(2, (7, 4)).float()
    small = recipe_spec.RECIPES["small"]
    soft = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    each = -(soft * logits.double().log_softmax(1)).sum(1)
    assert recipe.loss(logits, labels, small).item() == pytest.approx(each.mean().item(), rel=1e-5)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.25])
    expected = (each * weights[labels]).mean().item()
    assert recipe.loss(logits, labels, small, weights).item() == pytest.approx(expected, rel=1e-5)
    assert recipe.loss(logits, F.one_hot(labels, 4).float(), small, weights).item() == pytest.approx(expected, rel=1e-5)
    p = logits.double().sigmoid()
    expected = -(several * p.log() + (1 - several) * (1 - p).log()).mean().item()
    assert recipe.loss(logits, several, recipe_spec.RECIPES["charades"]).item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_make_classes_equal_and_leave_the_mean_alone(seed):
    labels = np.random.default_rng(seed).choice(5, 300, p=[0.7, 0.2, 0.06, 0.04, 0]).tolist()
    weights = recipe.class_weights(labels, 5)
    sums = [sum(weights[k].item() for x in labels if x == k) for k in range(4)]
    assert sums == pytest.approx([75] * 4, rel=1e-4) and weights[4] == 0
    assert weights[labels].mean().item() == pytest.approx(1, rel=1e-5)
    assert recipe.class_weights([0, 1, 1, 0], 2).tolist() == [1, 1]


def test_a_balanced_epoch_has_every_class_equally_often(seed):
    labels = np.random.default_rng(seed).choice(4, 203, p=[0.8, 0.1, 0.06, 0.04])
    labels[:4] = range(4)
    epochs = [recipe.balanced_order(labels.tolist(), seed, epoch) for epoch in range(6)]
    for order in epochs:
        counts = np.bincount(labels[order], minlength=4)
        assert len(order) == 203 and counts.max() - counts.min() <= 1 and all(type(i) is int for i in order)
        times = np.bincount(order, minlength=203)
        for k in range(4):  # no clip is drawn twice more often than another of its class
            assert np.ptp(times[labels == k]) <= 1
    assert epochs[0] == recipe.balanced_order(labels, seed, 0) and epochs[0] != epochs[1]
    assert epochs[0] != recipe.balanced_order(labels, seed + 1, 0)
    assert len(set().union(*epochs)) > len(set(epochs[0]))  # another part of the large class in each epoch
    assert np.bincount(labels[epochs[0][:100]], minlength=4).min() > 5  # and not sorted by class
    assert sorted(recipe.balanced_order([0, 0, 1], 0, 0)) in ([0, 1, 2], [0, 2, 2], [1, 2, 2])


# -- precision and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bn", ["train", "frozen"])
def test_checkpointed_activations_change_no_bit(bn, seed):
    how = recipe_spec.Recipe(lr=1e-2, bn=bn)
    plain = network(pools="8x8")
    plain.drop_rate = 0.5
    nets = [plain, copy.deepcopy(plain), copy.deepcopy(plain)]
    for net in nets[1:]:
        recipe.checkpoint_activations_(net)
    clips, target = torch.randn(3, 3, 4, 32, 32), torch.randint(5, (3,))
    for n, net in enumerate(nets):
        recipe.train_mode_(net, how)
        momenta = [m.momentum for m in net.modules() if isinstance(m, BN)]
        optimizer = recipe.optimizer(net, how)
        for _ in range(2):
            torch.manual_seed(seed)
            if n < 2:
                step(net, how, optimizer, clips, target)
            else:  # the negative control: without `recomputing`
                optimizer.zero_grad()
                recipe.loss(net(clips), target, how).backward()
                optimizer.step()
        assert momenta == [m.momentum for m in net.modules() if isinstance(m, BN)]
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items()) and states[0].keys() == states[1].keys()
    grads = [[p.grad for p in net.parameters() if p.grad is not None] for net in nets]
    assert len(grads[0]) > 20 and all(torch.equal(a, b) for a, b in zip(*grads[:2], strict=True))
    twice = {k for k, v in states[0].items() if not torch.equal(v, states[2][k])}
    assert (
        twice and all(".nl" in k for k in twice) if bn == "frozen" else any("layer1.0.bn1.running" in k for k in twice)
    )


def test_live_bytes_are_counted_and_given_back():
    with recipe._Live() as live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del a, b
        c = torch.ones(500)
        assert live.now == 4 * 1500 and live.peak == 4 * 2000
        del view, c
    assert live.now == 0


STEP = """
import re, sys, torch
from nlzoo.core import model_spec, recipe_spec, view_spec
from nlzoo.networks import model
from nlzoo.training import recipe
torch.set_num_threads(1)

def told(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def step(net, how, optimizer, clip, batch):
    recipe.train_mode_(net, how)
    recipe.checkpoint_activations_(net, how.checkpointing)
    loss = net(torch.randn(batch, 3, clip.frames, clip.size, clip.size)).square().mean()
    optimizer.zero_grad()
    with recipe.recomputing(net):
        loss.backward()
    optimizer.step()

def made():
    blocks = model_spec.parse_nl("res4:1", dict.fromkeys(model_spec.STAGES, 2))
    return model.build(model_spec.ModelSpec("tiny", non_local=blocks, num_outputs=5))

clip, small = view_spec.ClipSpec(8, None, 112), made()
# what libraries take once
step(small, recipe_spec.Recipe(), recipe.optimizer(small, recipe_spec.Recipe()), view_spec.ClipSpec(2, None, 32), 2)
recipe.memory_estimate(small, view_spec.ClipSpec(2, None, 32), 2, recipe_spec.Recipe())
del small
for words in sys.argv[1:]:
    how, base = recipe_spec.parse_recipe(words), told("VmRSS")
    net = made()
    estimate = recipe.memory_estimate(net, clip, 4, how)
    open("/proc/self/clear_refs", "w").write("5")
    optimizer = recipe.optimizer(net, how)
    for _ in range(2):
        step(net, how, optimizer, clip, 4)
    print(estimate, told("VmHWM") - base)
    del net, optimizer
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
def test_the_memory_estimate_is_near_what_a_step_takes():
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # freed memory goes back at once
    done = subprocess.run(
        [sys.executable, "-c", STEP, "small", "paper-long,checkpointing=yes"],
        env=environment,
        text=True,
        capture_output=True,
        check=True,
    )
    pairs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    print(pairs)
    assert len(pairs) == 2 and all(
        measured > 50e6 and 0.75 < estimate / measured < 1.25 for estimate, measured in pairs
    )
    assert pairs[1][0] < pairs[0][0]


# -- long clips -------------------------------------------------------------------------------------------------------


def test_one_network_runs_clips_of_every_length(seed):
    net = network("resnet18", frames=8, alive=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    image, answers, bytes_, leaner = torch.randn(1, 3, 1, 32, 32, dtype=torch.float64), [], [], []
    for frames, stride in ((8, None), (32, 2), (128, 1)):
        assert recipe.lengthen(net, frames, stride) is net
        assert (net.spec.clip.frames, net.spec.clip.stride, net.spec.clip.size) == (frames, stride, 32)
        with torch.no_grad():
            answers.append(copy.deepcopy(net).double()(image.expand(-1, -1, frames, -1, -1)))
        clip = dataclasses.replace(net.spec.clip, size=64)
        bytes_.append(recipe.memory_estimate(net, clip, 2))
        leaner.append(recipe.memory_estimate(net, clip, 2, recipe_spec.Recipe(checkpointing=True)))
        assert bytes_[-1] > leaner[-1] > recipe.memory_estimate(net, clip, 2, training=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(
        p.grad is None for p in net.parameters()
    )
    for answer in answers[1:]:  # of a still clip every length says the same, blocks included
        torch.testing.assert_close(answer, answers[0], rtol=1e-9, atol=1e-9)
    weights = 4 * 4 * sum(p.numel() for p in net.parameters())  # gradient and AdamW's two moments beside each
    assert bytes_[0] > weights and (bytes_[2] - bytes_[1]) / (bytes_[1] - bytes_[0]) == pytest.approx(
        4, rel=0.15
    )  # linear in T


@pytest.mark.parametrize("pools", model_spec.POOLS)
def test_pools_and_the_fewest_frames(pools, seed):
    net = network(pools=pools)
    for frames in (1, 2, 3, 5, 16):
        clip = torch.randn(1, 3, frames, 32, 32)
        if pools == "authors" and frames < 3:
            with pytest.raises(RuntimeError):
                net(clip)
            with pytest.raises(UsageError, match="too few.*authors") as caught:
                recipe.lengthen(net, frames, 1)
            assert "--frames 3" in caught.value.hint
        else:
            assert recipe.lengthen(net, frames, 1)(clip).shape == (1, 5)
    with pytest.raises(UsageError, match="frames is 5000"):
        recipe.lengthen(net, 5000, 1)
