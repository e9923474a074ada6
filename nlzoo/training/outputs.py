"""What a network says of videos, row by row as they are done: probabilities, or the features before its last layer.

Each view gets its own softmax (or sigmoids, where a video may have several labels); a row is the mean over the views of
a video (paper, section 5). Of a model that is several (`ModelSpec.members`) each member sees its own clip of the video.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import repeat

import numpy as np
import torch

from ..core.errors import UsageError
from ..core.progress import Progress, no_progress
from ..core.recipe_spec import Recipe
from ..core.skipped import Skipped
from ..core.view_spec import ClipSpec, ViewSpec
from ..networks.folding import fold_bn
from ..networks.network import Network
from ..videos import clips, loader, scanning, sound
from ..videos.items import Item
from ..videos.sweep import Sweep
from . import devices

CLIPS = 8  # in a forward pass
AUTO = Recipe()  # half precision on a GPU that is fast at it, otherwise float32

Row = tuple[int, np.ndarray | None, str]  # index of a video, its numbers, or else the reason why there are none
Forward = Callable[[Network, torch.Tensor], torch.Tensor]  # of a network and its inputs, float64 (B, N) on the CPU


def probabilities(
    net: Network,
    source: loader.Clips | loader.Loader,
    device: torch.device,
    workers: int = 0,
    recipe: Recipe = AUTO,
) -> Iterator[Row]:
    """For each video, as it is done, `(index, float64 (K,) probabilities, "")`, or `(index, None, reason)`.

    `net` is in eval mode on `device`; `recipe` says the precision. A `Loader` brings its own workers. Of several
    members it is the mean of theirs by `Member.weight`. For a video without sound a network of it gives its prior, and
    a sequence takes the features of sound as the average ones; then the reason stands beside the row.
    """
    if net.spec.head:
        yield from _of_sequence(net, source, device, workers, recipe)
        return
    if not net.spec.members:
        made = _mean_over_views(partial(_probabilities, fold_bn(net)), source, device, workers, recipe)
        yield from _with_prior(made, net.spec.prior)
        return
    weights = np.array([member.weight for member in net.spec.members])
    for index, rows, reason in by_member(net, source, device, workers, recipe):
        yield index, None if rows is None else np.average(rows, axis=0, weights=weights), reason


def by_member(
    net: Network,
    source: loader.Clips | loader.Loader,
    device: torch.device,
    workers: int = 0,
    recipe: Recipe = AUTO,
) -> Iterator[Row]:
    """As `probabilities`, float64 `(M, K)` with a row for each member of `net`."""
    order = np.argsort([number for _, numbers in net.spec.shared_clips() for number in numbers])
    for index, row, reason in _each_member(net, source, device, workers, recipe, _probabilities):
        yield index, None if row is None else row.reshape(len(order), -1)[order], reason


def features(
    net: Network,
    source: loader.Clips | loader.Loader,
    device: torch.device,
    workers: int = 0,
    recipe: Recipe = AUTO,
) -> Iterator[Row]:
    """The same with float64 `(C,)` inputs of the last layer: means over the views, frames and positions of a video.

    Those of several members stand behind one another.
    """
    if not net.spec.members:
        yield from _mean_over_views(partial(_features, fold_bn(net)), source, device, workers, recipe)
        return
    for index, row, reason in _each_member(net, source, device, workers, recipe, _features):
        yield index, row.mean(0) if row is not None and net.spec.head else row, reason


def window_features(
    net: Network,
    source: loader.Clips | loader.Loader,
    device: torch.device,
    workers: int = 0,
    recipe: Recipe = AUTO,
) -> Iterator[Row]:
    """The same of a sequence: float64 `(W, D)`, of each window of a video the features of all members, side by side."""
    yield from _each_member(net, source, device, workers, recipe, _features)


def gathered(
    rows: Iterable[Row], items: Sequence[Item], progress: Progress = no_progress
) -> tuple[dict[int, np.ndarray], list[Skipped]]:
    """The numbers of the `items` by index, in order, and those that could not be read."""
    good: dict[int, np.ndarray] = {}
    bad = []
    for done, (index, numbers, reason) in enumerate(rows, 1):
        progress(done, len(items))
        if numbers is None:
            bad.append(Skipped(items[index].path, scanning.UNREADABLE, reason))
        else:
            good[index] = numbers
    return dict(sorted(good.items())), bad


def videos_at_a_time(views: ViewSpec) -> int:
    """How many videos go through the network together."""
    return max(1, CLIPS // views.num_views)


def batches(source: loader.Clips) -> list[list[loader.Key]]:
    """The videos of `source`, as many at a time as give `CLIPS` views."""
    keys = [(-1, index) for index in range(len(source))]
    count = videos_at_a_time(source.test_views)
    return [keys[start : start + count] for start in range(0, len(keys), count)]


def _probabilities(net: Network, inputs: torch.Tensor) -> torch.Tensor:
    logits = net(inputs).cpu().double()  # on the CPU: Metal has no float64
    return logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)


def _features(net: Network, inputs: torch.Tensor) -> torch.Tensor:
    return net.forward_head(net.forward_features(inputs), pre_logits=True).cpu().double()


def _mean_over_views(
    forward: Callable[[torch.Tensor], torch.Tensor],
    source: loader.Clips | loader.Loader,
    device: torch.device,
    workers: int,
    recipe: Recipe,
    windows: int = 0,
) -> Generator[Row, None, None]:
    """The mean of `forward`'s rows over the views of each video; `CLIPS` views in a pass.

    `windows`: of a video, that lie in its views, or in its clip one after the other; each has a row `(windows, N)`.
    """
    feed = source if isinstance(source, loader.Loader) else loader.Loader(source, workers)
    clip = feed.source.clip
    in_parts = devices.InParts(lambda part: forward(clips.to_input(part.to(device), clip)), CLIPS)
    with nullcontext() if feed is source else closing(feed), closing(feed.load(batches(feed.source))) as loaded:
        yield from _rows(loaded, in_parts, device, recipe, windows)


def _rows(
    loaded: Iterator[loader.Batch], in_parts: devices.InParts, device: torch.device, recipe: Recipe, windows: int
) -> Iterator[Row]:
    for indices, pixels, bad in loaded:
        if pixels is not None:
            if windows:
                pixels = pixels.reshape(len(pixels), windows, -1, *pixels.shape[3:])
            with torch.inference_mode(), devices.autocast(recipe, device, training=False):
                rows = in_parts(pixels.flatten(0, 1)).view(*pixels.shape[:2], -1)
            yield from zip(indices, (rows if windows else rows.mean(1)).numpy(), repeat(""))
        yield from ((index, None, reason) for index, reason in bad)


def _with_prior(rows: Generator[Row, None, None], prior: Sequence[float] | np.ndarray) -> Generator[Row, None, None]:
    """The rows, with the `prior`, where there is one, for videos without sound."""
    with closing(rows):
        for index, row, reason in rows:
            yield index, np.array(prior) if len(prior) and reason == sound.NONE else row, reason


# --- a model that is several


def _each_member(
    net: Network,
    source: loader.Clips | loader.Loader,
    device: torch.device,
    workers: int,
    recipe: Recipe,
    forward: Forward,
) -> Generator[Row, None, None]:
    """What `forward` gives for the members, side by side in the order of their clips, once all have seen a video.

    Members with the same clip share it: it is decoded once. A video that one of them could not read has no row.
    """
    base = source.source if isinstance(source, loader.Loader) else source
    shared, windows = net.spec.shared_clips(), net.spec.head.windows if net.spec.head else 0
    made = []
    for place, (clip, numbers) in enumerate(shared):
        members = [net.members[number] for number in numbers]
        if members[0].spec.head:
            made.append(_whole(members[0], base, device, -(-workers // len(shared)), recipe, forward))
            continue
        feed = source if clip == base.clip and not windows else _shown(base, clip, windows)
        own = workers if feed is source else -(-workers // len(shared))
        ask = partial(_side_by_side, forward, [fold_bn(member) for member in members])
        rows = _mean_over_views(ask, feed, device, own, recipe, windows)
        made.append(_with_prior(rows, _means(net, place, windows) if windows else _priors(members, forward)))
    done: dict[int, dict[int, Row]] = {}  # by video, by clip
    with ExitStack() as stack:
        for rows in made:
            stack.enter_context(closing(rows))
        for together in zip(*made, strict=True):
            for number, row in enumerate(together):
                done.setdefault(row[0], {})[number] = row
                if len(done[row[0]]) == len(shared):
                    yield _joined(done.pop(row[0]))


def _means(net: Network, place: int, windows: int) -> np.ndarray:
    """Mean features `(W, D)` of training, of the members that share the clip at `place`."""
    _, part = net.columns()[place]
    return np.tile(net.mean[part].cpu().double(), (windows, 1))


def _priors(members: Sequence[Network], forward: Forward) -> tuple[float, ...]:
    """Those of members that share a clip, side by side, where all have one and it is what `forward` gives."""
    priors = [member.spec.prior for member in members] if forward is _probabilities else []
    return sum(priors, ()) if all(priors) else ()


def _whole(
    net: Network, source: loader.Clips, device: torch.device, workers: int, recipe: Recipe, forward: Forward
) -> Generator[Row, None, None]:
    """What a member that is a sequence gives for the videos of `source`, whose clip is another."""
    ask = probabilities if forward is _probabilities else features
    yield from ask(net, _shown(source, net.spec.clip, 0), device, workers, recipe)


def _side_by_side(forward: Forward, members: Sequence[Network], inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([forward(member, inputs) for member in members], -1)


def _joined(rows: dict[int, Row]) -> Row:
    """One row of those of each clip."""
    features = [rows[number][1] for number in range(len(rows))]
    index, reason = rows[0][0], next((reason for _, _, reason in rows.values() if reason), "")
    if any(row is None for row in features):
        return index, None, next(reason for _, row, reason in rows.values() if row is None)
    return index, np.concatenate([row for row in features if row is not None], -1), reason


def _of_sequence(
    net: Network, source: loader.Clips | loader.Loader, device: torch.device, workers: int, recipe: Recipe
) -> Iterator[Row]:
    for index, rows, reason in window_features(net, source, device, workers, recipe):
        if rows is None:
            yield index, None, reason
            continue
        with torch.inference_mode():
            logits = net.classify(torch.from_numpy(rows)[None].to(net.fc.weight))[0].cpu().double()
        yield index, (logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)).numpy(), reason


def _shown(source: loader.Clips, clip: ClipSpec, windows: int) -> loader.Clips:
    """The same videos in the clip of another member: in its own views, where `source` has those of its own clip.

    With `windows` in so many clips, evenly over the video: dense ones as views, spread ones one after the other in one.
    Raises `UsageError` for other views.
    """
    views = source.views
    if windows:
        order = views.order if views else "true"
        if views and replace(views, order="true") not in (source.clip.views, ViewSpec()):
            raise UsageError(f"this model sees {windows} windows of each video, and no other views", "omit --views")
        if clip.stride is None:
            clip, views = replace(clip, frames=windows * clip.frames), ViewSpec(order=order)
        else:
            views = ViewSpec(windows, order=order)
    elif views and replace(views, order="true") == source.clip.views:
        views = replace(clip.views, order=views.order)
    sweep = Sweep(len(source)) if source.sweep else None
    return replace(source, clip=clip, views=views, sweep=sweep)
