"""Groups read off names, and splits that never have one group, one file or one content on both sides (F9)."""

import random
from dataclasses import replace

import pytest
from sklearn.model_selection import train_test_split

from nlzoo.core.errors import NlzooError, UsageError, VideoError
from nlzoo.videos import splits
from nlzoo.videos.items import Item
from nlzoo.videos.splits import Rule

NAMES = {  # how clips of recording r are called, and what must keep them together
    "v_{c}_g{r:02}_c{n:02}": Rule("ucf"),
    "yt{r}abc_{n:06}_{m:06}": Rule("times"),
    "day{r}/{n}x{m}": Rule("folder"),
    "{n}_{r}_{c}": Rule("field", 2),
    "tape{c}x{r}x{n}": Rule("stem"),
}


def tree(rng):
    """`(items, rule, recording of each item, content of each path)` of one random folder."""
    pattern, rule = rng.choice(list(NAMES.items()))
    items, recordings = [], []
    shots = iter(rng.sample(range(1000, 9999), 400))
    for c in range(rng.randint(2, 5)):
        for r in range(rng.randint(4, 9)):
            for n in rng.sample(range(100), rng.randint(2, 4)):
                shot = n if "tape" in pattern else next(shots)
                items.append(Item(f"class{c}/" + pattern.format(c=c, r=r, n=shot, m=shot + 7) + ".mp4", (f"class{c}",)))
                recordings.append((r, c) if "tape" in pattern else r)
    contents = {i.path: rng.randrange(10**6) for i in items}
    for path in rng.sample(sorted(contents), rng.randint(0, 3)):
        contents[path] = contents[items[rng.randrange(len(items))].path]
    return items, rule, recordings, contents


def sides(keys, items):
    both = {part: {k for k, i in zip(keys, items) if i.split == part} for part in (splits.TRAIN, splits.VAL)}
    assert both[splits.TRAIN] and both[splits.VAL]
    return both[splits.TRAIN] & both[splits.VAL]


def test_nothing_is_on_both_sides_of_random_folders(seed):
    nothing_is_on_both_sides(300, seed)


@pytest.mark.torture
def test_nothing_is_on_both_sides_of_a_thousand_random_folders(seed):
    nothing_is_on_both_sides(1000, seed)


def nothing_is_on_both_sides(folders, seed):
    rng, summary, leaking, refused = random.Random(seed), set(), 0, 0
    for n in range(folders):
        items, rule, recordings, contents = tree(rng)
        grouped, by = splits.grouped(items, 1, lambda paths, c=contents: {p: str(c[p]) for p in paths})
        assert by == rule
        summary.add(by)
        try:
            result, _ = splits.split(grouped, rng.choice(["0.2", "0.3", "1/3", "2/4"]), n, by)
        except NlzooError:  # copies had tied too many together
            refused += 1
            continue
        assert not splits.straddling(result)
        for keys in (recordings, [contents[i.path] for i in items], [i.group for i in result]):
            assert not sides(keys, result)
        held = set(train_test_split([i.path for i in items], test_size=0.25, random_state=n)[1])
        by_file = [replace(i, split=splits.VAL if i.path in held else splits.TRAIN) for i in items]
        leaking += bool(sides(recordings, by_file))
    assert summary == set(NAMES.values()) and refused < 0.1 * folders
    assert leaking > 0.85 * folders  # the control: file by file nearly every folder leaks


@pytest.mark.parametrize(
    "paths, labels, groups",
    [
        (["v_Dive_g01_c01.avi", "v_Dive_g01_c02.avi", "v_Row_g02_c01.avi"], "ddr", ["g01", "g01", "g02"]),
        (["abc_-1_000010_000020.mp4", "abc_-1_000030_000040.mp4"], "xy", ["abc_-1", "abc_-1"]),
        (["0_1_4", "43_8_4", "44_8_4", "4_1_0", "41_8_0"], "44400", ["1", "8", "8", "1", "8"]),
        (
            ["film a_wave_0", "film a_wave_1", "film b_wave_0", "film b_wave_1", "film c_run_0", "film d_run_2"],
            "wwwwrr",
            None,
        ),
        (["x1.mp4", "y7.mp4", "z3.mp4"], "aab", ["x1", "y7", "z3"]),
        (["s1/x.mp4", "s1/y.mp4", "s2/x.mp4", "s1/z.mp4", "s2/q.mp4"], "aaabb", ["s1", "s1", "s2", "s1", "s2"]),
        (
            ["one/x.mp4", "one/y.mp4", "two/x.mp4", "two/q.mp4"],
            "aabb",
            ["x", "y", "x", "q"],
        ),  # a folder a class says nothing of recordings
    ],
)
def test_groups_are_read_off_the_names(paths, labels, groups):
    keys, rule = splits.group_keys(paths, list(labels))
    if groups is None:
        assert keys[0] == keys[1] != keys[2] == keys[3]
    else:
        assert keys == groups
    assert rule


def named(*groups, labels="uv"):
    return [Item(f"{c}/x_{g}_{c}.mp4", (c,), group=str(g)) for c in labels for g in groups]


def test_the_column_group_counts_and_parts_of_one_file_stay_together():
    items = [
        Item("a.mp4", ("u",), start=0, end=1),
        Item("a.mp4", ("v",), start=5, end=6),
        Item("b.mp4", ("u",), "same"),
        Item("c.mp4", ("v",), "same"),
        Item("d.mp4", ("u",)),
        Item("e.mp4", ("v",)),
    ]
    grouped, rule = splits.grouped(items, 0, lambda paths: {})
    groups = [i.group for i in grouped]
    assert rule == Rule("column") and groups[0] == groups[1] and groups[2] == groups[3] and len(set(groups)) == 4


def test_every_class_is_on_both_sides_and_seeds_differ():
    items = named(*range(8), labels="uvw")
    results = [splits.split(items, "0.25", s, Rule("video"))[0] for s in range(5)]
    for result in results:
        for part in (splits.TRAIN, splits.VAL):
            assert {i.labels for i in result if i.split == part} == {("u",), ("v",), ("w",)}
        assert sum(i.split == splits.VAL for i in result) == 6
    assert len({tuple(i.split for i in r) for r in results}) > 1
    assert splits.split(items, "0.25", 3, Rule("video")) == splits.split(items, "0.25", 3, Rule("video"))


def test_folds_share_the_groups_out(seed):
    items = named(*range(11), labels="uvw")
    held = [
        {i.group for i in splits.split(items, f"{k}/5", seed, Rule("video"))[0] if i.split == splits.VAL}
        for k in range(1, 6)
    ]
    assert sorted(g for h in held for g in h) == sorted({i.group for i in items})


def test_named_groups_and_bad_val():
    items = named(0, 1, 2, 3)
    assert {i.group for i in splits.split(items, "1,3", 0, Rule("video"))[0] if i.split == splits.VAL} == {"1", "3"}
    for val, words in (
        ("9,1", "no group '9'"),
        ("0", "no share"),
        ("-0.5", "no share"),
        ("3/9", "4 groups"),
        ("0/2", "4 groups"),
        ("6/5", "groups"),
    ):
        if val == "0":
            continue  # the name of a group here
        with pytest.raises(UsageError, match=words):
            splits.split(items, val, 0, Rule("video"))
    with pytest.raises(VideoError, match="no clip is left to train on: all are for validation"):
        splits.split(items, "0,1,2,3", 0, Rule("video"))
    with pytest.raises(VideoError, match="one recording"):
        splits.split(named(7), "0.3", 0, Rule("video"))


def test_what_is_given_is_kept_and_tests_are_left_out():
    items = [
        Item("a", ("u",), split="train"),
        Item("b", ("v",)),
        Item("c", ("u",), split="val"),
        Item("d", ("v",), split="test"),
    ]
    result, by = splits.split(items, "0.5", 0, Rule("video"))
    assert [i.split for i in result] == ["train", "train", "val", "test"] and by == Rule("given")
    result, _ = splits.split(
        [replace(i, split="test" if n % 4 == 0 else "") for n, i in enumerate(named(*range(8)))], "0.25", 0, "x"
    )
    assert sum(i.split == "test" for i in result) == 4 and not any(i.split == "" for i in result)


def test_several_labels_are_all_balanced(seed):
    rng = random.Random(seed)
    items = [Item(f"{n}.mp4", tuple(sorted(rng.sample("abcde", rng.randint(0, 3)))), group=str(n)) for n in range(80)]
    result, _ = splits.split(items, "0.25", seed, Rule("video"))
    for label in "abcde":
        total, held = (
            sum(label in i.labels for i in result if i.split in parts) for parts in (("train", "val"), ("val",))
        )
        assert 0 < held < 0.6 * total


def grouped(*sizes, labels="uv"):
    """A group for each of `sizes`, that many videos of each class in it."""
    return [
        Item(f"{c}/{g}_{n}.mp4", (c,), group=f"g{g}")
        for g, size in enumerate(sizes)
        for c in labels
        for n in range(size)
    ]


@pytest.mark.parametrize(
    "sizes, share, held",
    [
        ((10, 10), "0.25", 20),  # one of two recordings: no nearer
        ((4, 1, 1, 1, 1, 2), "0.2", 4),  # never the large one
        ((3, 3, 3, 3), "0.25", 6),
        ((1, 1, 1), "0.25", 2),
        ((8, 2, 2, 2, 2), "0.5", 16),
    ],
)
def test_the_share_is_of_videos(sizes, share, held, seed):
    for n in range(20):
        result, rule = splits.split(grouped(*sizes), share, seed % 10**6 + n, Rule("column"))
        assert sum(i.split == splits.VAL for i in result) == held
        asked = float(share) * len(result)
        assert bool(splits.doubts(result, share, rule)) == (abs(held - asked) > max(1, asked / 5))


def test_what_is_doubtful_of_a_split(seed):
    result, rule = splits.split(grouped(10, 10), "0.25", seed, Rule("column"))
    assert splits.doubts(result, "0.25", rule) == [
        "20 of 40 videos are for validation (50%), not the 25% that --val asks for: whole groups "
        "(grouped by the column group) go to one side, and every class keeps some to train on"
    ]
    given = [replace(i, split=splits.VAL if n % 2 else splits.TRAIN) for n, i in enumerate(grouped(2, 2))]
    result, rule = splits.split(given, "0.25", seed, Rule("column"))
    assert splits.doubts(result, "0.25", rule) == [
        "2 groups of clips are on both sides of the split that was given: its figures will flatter"
    ]
    alone = [*given, *(Item(f"{n}.mp4", (f"only{n}",), f"g{n}", splits.TRAIN) for n in range(4))]
    assert splits.doubts(alone, "0.25", rule)[1:] == [
        "4 classes have no video to validate on: 'only0', 'only1', 'only2' and 1 more; the figures leave that out"
    ]


def test_groups_whose_names_hold_commas_can_be_named():
    items = named("one, two", 3, 4)
    for val in ('"one, two"', "one, two"):
        held = {i.group for i in splits.split(items, val, 0, Rule("column"))[0] if i.split == splits.VAL}
        assert held == {"one, two"}
    held = {i.group for i in splits.split(items, '3,"one, two"', 0, Rule("column"))[0] if i.split == splits.VAL}
    assert held == {"3", "one, two"}
