"""Builds networks: the only module beside `inflate` that imports timm, and the one place that knows how.

A network is timm's own `ResNet` object with 3-D leaves (see `inflate.py`) and its `ModelSpec` as attribute `spec`.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core.errors import HubError, UsageError, WeightsError
from ..core.lazy import partly
from ..core.model_spec import (
    FRAMES,
    Inflation,
    Member,
    ModelSpec,
    Named,
    NonLocal,
    SequenceHead,
    parse_nl,
    refuse_other_kinds,
)
from ..core.text import nearest, printable
from ..core.view_spec import ClipSpec
from . import googlenet, vision, zoo
from .foreign import Weights, misfit, read_weights
from .frame_network import FrameNetwork
from .fused import FusedNetwork
from .inflate import LAYER, TemporalMaxPool, depths, inflate_, insert_nonlocal_, stem
from .network import Network
from .sequence import SequenceNetwork, build_head
from .twin import twin

MAX_OUTPUTS = 100_000  # as in a ModelSpec


def import_timm() -> ModuleType:
    """timm, which imports torchvision; so that one is repaired first where it must be."""
    vision.import_torchvision()
    import timm

    return timm


def _import_resnets() -> tuple[ModuleType, ModuleType]:
    """timm's `(factory, registry)`, with its ResNets alone where the rest of timm has not been imported."""
    vision.import_torchvision()
    partly("timm", __version__=metadata.version("timm"))
    partly("timm.models")
    import timm.models._factory
    import timm.models._registry
    import timm.models.resnet

    return timm.models._factory, timm.models._registry


class _Undrawn(TorchFunctionMode):
    """Draws no numbers, which weights from a file would replace: half of what making a network takes.

    On the meta device there are none, but torch would import its compiler to draw normal ones.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        drawn = func in (torch.Tensor.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
        return (*args, *(kwargs or {}).values())[0] if drawn else func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are made here are on the meta device: they have names and shapes, and no numbers."""
    with torch.device("meta"), _Undrawn():
        yield


def plain_resnet(backbone: str, channels: int = 3) -> Network:
    """timm's 2-D ResNet of that name, randomly initialised; `resnet50.a1_in1k` and `resnet50` are the same network.

    Or torchvision's GoogLeNet, in the stages of one. `channels`: of the pictures that it takes. Raises `UsageError` for
    a name that timm does not know or that is not one of its ResNets.
    """
    if googlenet.is_googlenet(backbone):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return cast(Network, googlenet.build(channels))
    name, arguments = architecture(backbone)
    factory, _ = _import_resnets()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the same head in every process; no GPU is touched
        return factory.create_model(name, pretrained=False, in_chans=channels, **arguments)


def architecture(backbone: str) -> tuple[str, dict[str, Any]]:
    """timm's name and arguments. Raises `UsageError`, with names that come near."""
    _, registry = _import_resnets()
    name = backbone.partition(".")[0]
    known_as, arguments = zoo.EMBEDDED.get(name, (name, {}))
    known = registry.list_models(module="resnet")
    if googlenet.is_googlenet(backbone):
        raise UsageError("GoogLeNet is torchvision's; timm has none", "export it to onnx, torch or transformers")
    if known_as not in known:
        raise UsageError(
            f"{backbone!r} is not a ResNet that timm {metadata.version('timm')} knows",
            _what_backbone_was_meant(backbone, [*known, *zoo.EMBEDDED, googlenet.NAME]),
        )
    return known_as, arguments


def load_timm(folder: Path) -> Network:
    """timm's own 2-D network of a folder that holds its `config.json` and `model.safetensors`, in eval mode."""
    return import_timm().create_model(f"local-dir:{folder}", pretrained=True).eval()


def _what_backbone_was_meant(name: str, known: Collection[str]) -> str:
    """The hint for a name that is no backbone: it may be of a repository, short (r50), or of a whole network."""
    if re.match(r"(nl\d+-)?(c2d|i3d)\b", name.lower()):
        return "a network is named nl5-i3d-r50-8x8: blocks, kind, depth, frames x stride; nlzoo import fetches others"
    plain = re.sub(r"^r(?=\d+$)", "resnet", name.lower().rpartition("/")[2].partition(".")[0])
    near = [plain] if plain in known else nearest(plain, known, 4)
    return f"did you mean: {', '.join(near or ['resnet18', 'resnet50', 'resnet101'])}"


@dataclass(frozen=True)
class _Origin:
    """Where the weights of a 2-D network are, and what is known of them."""

    file: Path
    name: str  # tag included where timm resolved one
    source: str
    licence: str
    clip: ClipSpec  # mean and std as it was trained


@dataclass(frozen=True)
class Backbone(_Origin):
    """A 2-D network with its trained weights and what is known of them."""

    net: Network
    notes: tuple[str, ...] = ()  # what was taken off its file on the way


def load_backbone(name: str, weights: Path | None, fetch: Callable[[str], Path], command: str = "") -> Backbone:
    """The 2-D network `name` in float32, eval mode, with weights from a file, the package (`tiny`), or the Hub.

    `fetch(repo)` gives the weights file of a repository on the Hub. `command` is what a hint repeats with --weights.
    Raises `UsageError` for an unknown name, `WeightsError` for a file that does not fit or cannot be had.
    """
    if not googlenet.is_googlenet(name):
        architecture(name)
    origin = _origin(name, weights, fetch, command)
    net, notes = _load_plain(name, origin.file)
    return Backbone(**vars(origin), net=net, notes=notes if weights else ())


def _origin(name: str, weights: Path | None, fetch: Callable[[str], Path], command: str) -> _Origin:
    """As for `load_backbone`, of any network that timm knows."""
    if googlenet.is_googlenet(name):
        return _origin_of_googlenet(name, weights, fetch)
    if name in zoo.EMBEDDED and not weights:
        return _Origin(zoo.shipped(f"{name}/model.safetensors"), name, f"nlzoo/{name}", "apache-2.0", ClipSpec())
    known = None if name in zoo.EMBEDDED else _pretrained_config(name)
    clip = ClipSpec(mean=tuple(map(float, known.mean)), std=tuple(map(float, known.std))) if known else ClipSpec()
    if weights:
        return _Origin(weights, name, f"file {weights.name}", "", clip)
    if not known or not known.hf_hub_id:
        hint = f"{command} --weights FILE" if command else "give them with --weights FILE"
        raise WeightsError(f"timm has no pretrained weights for {name}", hint)
    tagged = f"{name.partition('.')[0]}.{known.tag}" if known.tag else name
    repo = f"{known.hf_hub_id}{tagged}" if known.hf_hub_id.endswith("/") else known.hf_hub_id
    command = command or f"nlzoo inflate {tagged}"
    try:
        file = fetch(repo)
    except HubError as error:
        raise WeightsError(
            f"the weights of {tagged} are not in the cache here and could not be fetched: {error.message}",
            f"fetch model.safetensors of {repo} on a machine with a network, then: "
            f"{command} --weights model.safetensors",
        ) from error
    return _Origin(file, tagged, repo, known.license or "", clip)


def _origin_of_googlenet(name: str, weights: Path | None, fetch: Callable[[str], Path]) -> _Origin:
    if name not in (googlenet.NAME, f"{googlenet.NAME}.{googlenet.TAG}"):
        raise UsageError(f"torchvision has no weights {name!r}", f"its one tag: {googlenet.TAG}")
    if weights:
        return _Origin(weights, name, f"file {weights.name}", "", googlenet.CLIP)
    file = fetch(googlenet.SOURCE)
    return _Origin(file, f"{googlenet.NAME}.{googlenet.TAG}", googlenet.SOURCE, "bsd-3-clause", googlenet.CLIP)


def _pretrained_config(name: str) -> Any:
    """timm's record of a name's weights: Hub repository, tag, mean and std, licence; None for an untrained net."""
    _, registry = _import_resnets()
    try:
        return registry.get_pretrained_cfg(name)
    except RuntimeError:
        plain, _, tag = name.partition(".")
        tags = [n.partition(".")[2] for n in registry.list_pretrained(f"{plain}.*")]
        raise UsageError(f"timm has no weights tagged {tag!r} for {plain}", f"its tags: {', '.join(tags)}") from None


def _load_plain(name: str, file: Path) -> tuple[Network, tuple[str, ...]]:
    """`(network, notes)`: the 2-D network `name` with a file's weights, in eval mode; its head takes the file's size.

    Strict but for BN's step counter. Nothing is allocated before names and shapes fit.
    """
    with shapes_only():
        blueprint = plain_resnet(name)
        weights = read_weights(file).without_prefix(dict(blueprint.named_children()))
        names = {key: key for key in weights.shapes}
        if googlenet.is_googlenet(name):
            names = googlenet.our_names(names)
        given = {ours: weights.shapes[theirs] for ours, theirs in names.items()}
        head = given.get("fc.weight", ())
        if len(head) == 2 and head[1] == blueprint.fc.in_features and 1 <= head[0] <= MAX_OUTPUTS:
            blueprint.fc = nn.Linear(head[1], head[0], bias="fc.bias" in given)
    own = blueprint.state_dict()
    if differences := misfit(own, given):
        raise WeightsError(f"{file} does not fit {name}: {differences}", _advice(own, given))
    tensors = weights.load(names, own)
    with _Undrawn():
        net = plain_resnet(name)
    net.fc = blueprint.fc.to_empty(device="cpu")
    net.load_state_dict(tensors, strict=False)
    return net.eval(), weights.notes


def _advice(own: dict[str, torch.Tensor], given: dict[str, tuple[int, ...]]) -> str:
    """What to do about a file that does not fit: the backbone may be another, the file lack a head, or hold more."""
    prefixes = _prefixes(given)
    if "conv1.weight" not in given and prefixes:
        prefix = printable(min(prefixes, key=len)[:60])
        return f"its network seems to lie under '{prefix}': save that part alone, without this prefix"
    body = {key for key in own if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
    odd = [key for key in given if key.endswith("num_batches_tracked") and given[key]]
    if odd:
        return f"{printable(odd[0][:60])} counts BatchNorm's steps: one number, or leave it out"
    if all(given.get(key) == own[key].shape for key in body):
        if given.keys() - own.keys():
            return "the backbone fits; save the file again without the unknown tensors"
        return "the backbone fits, but its head does not: fc.weight is (outputs, channels), fc.bias (outputs,)"
    return "name the backbone that the file was made for; 2-D weights in timm's or torchvision's keys fit"


def _prefixes(names: Iterable[str]) -> list[str]:
    """What stands before the name of a first convolution that is not a residual block's."""
    inside = [name.removesuffix("conv1.weight") for name in names if name.endswith(".conv1.weight")]
    return [p for p in inside if p.count(".") < 3 and p.partition(".")[0] not in LAYER.values()]


def build(spec: ModelSpec) -> Network:
    """The network of `spec`, randomly initialised, in eval mode: `(B, C, T, H, W)` to `(B, num_outputs)` logits."""
    if spec.inflation.arch == FRAMES:
        return _on_frames(spec)
    if spec.members:
        return fuse([build(member.model) for member in spec.members], spec)
    net = inflate_(plain_resnet(spec.backbone, spec.clip.channels), spec.inflation)
    insert_nonlocal_(net, spec.non_local)
    if net.fc.out_features != spec.num_outputs:
        net.fc = nn.Linear(net.fc.in_features, spec.num_outputs)
    net.spec = spec
    return net.eval()


# --- any 2-D network, on single frames


def _image_net(name: str, channels: int = 3) -> Any:
    """timm's 2-D network of any kind without its classifier, `(N, channels, H, W)` to `(N, C)`, randomly initialised.

    Images of any size, as far as it can be told so. Raises `UsageError` for a name that timm does not know.
    """
    factory, registry = _import_resnets()
    plain = name.partition(".")[0]
    if plain in (*zoo.EMBEDDED, *registry.list_models(module="resnet")):
        known_as, arguments = architecture(name)
    elif import_timm().is_model(plain):
        known_as, arguments = plain, {}
    else:
        raise UsageError(
            f"timm {metadata.version('timm')} knows no network {name!r}",
            _what_backbone_was_meant(name, zoo.image_networks()),
        )
    arguments = arguments | {"num_classes": 0} | ({"in_chans": channels} if channels != 3 else {})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:  # of transformers, which have a position for each patch of one size
            return factory.create_model(known_as, **arguments, dynamic_img_size=True)
        except TypeError:
            return factory.create_model(known_as, **arguments)


def _on_frames(spec: ModelSpec) -> Network:
    image_net = _image_net(spec.backbone, spec.clip.channels)
    channels = getattr(image_net, "head_hidden_size", None) or image_net.num_features
    net = cast(Network, FrameNetwork(image_net, channels, spec.num_outputs))
    net.spec = spec
    return net.eval()


def load_on_frames(name: str, weights: Path | None, fetch: Callable[[str], Path], command: str) -> Network:
    """timm's 2-D network `name` on the frames of a clip, in eval mode; its head is new, for 1000 outputs.

    As for `load_backbone`: weights from a file in timm's keys, whose classifier is left out, the package, or the Hub.
    """
    with shapes_only():
        blueprint = _image_net(name)
    origin = _origin(name, weights, fetch, command)
    read = read_weights(origin.file).without_prefix(dict(blueprint.named_children()))
    own = blueprint.state_dict()
    given = _without_classifier(read, blueprint)
    if differences := misfit(own, {key: read.shapes[key] for key in given}):
        raise WeightsError(f"{origin.file} does not fit {name}: {differences}", "weights in timm's own keys fit")
    clip = dataclasses.replace(origin.clip, size=blueprint.pretrained_cfg["input_size"][-1])
    spec = ModelSpec(origin.name, Inflation(FRAMES), clip=clip, source=origin.source, licence=origin.licence)
    net = _on_frames(spec)
    net.get_submodule("backbone").load_state_dict(read.load({key: key for key in given}, own), strict=False)
    return net


def _without_classifier(read: Weights, blueprint: Any) -> list[str]:
    """Names of a file's tensors but those of its classifiers, which the network that is made for features lacks."""
    named = blueprint.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([named] if isinstance(named, str) else named))
    own = blueprint.state_dict()
    parts = {key.partition(".")[0] for key in own}
    return [
        key
        for key in read.entries
        if key in own or (key.partition(".")[0] in parts and not key.startswith(heads))  # a part of its own, or odd
    ]


def join(arch: str, members: Sequence[tuple[Network, float]], head: SequenceHead | None = None) -> Network:
    """Networks for the same classes as one (`FUSED`, `SEQUENCE`), with weights in proportion to those given."""
    total = sum(weight for _, weight in members)
    specs = [net.spec for net, _ in members]
    first = max(specs, key=lambda spec: (spec.clip.stream == "rgb", not spec.head))  # the first of the best
    spec = ModelSpec(
        arch,
        Inflation(arch),
        clip=first.clip,  # that people are shown
        classes=first.classes,
        num_outputs=first.num_outputs,
        multi_label=first.multi_label,
        source="; ".join(dict.fromkeys(spec.source for spec in specs if spec.source))[:1000],
        licence=", ".join(dict.fromkeys(spec.licence for spec in specs if spec.licence))[:1000],
        members=tuple(Member(weight / total, net.spec) for net, weight in members),
        head=head,
    )
    return fuse([net for net, _ in members], spec)


def fuse(members: Sequence[Network], spec: ModelSpec) -> Network:
    """The networks of `spec.members` as one, in eval mode; the head of a sequence is randomly initialised."""
    joined = FusedNetwork(members)
    if spec.head:
        order = [number for _, numbers in spec.shared_clips() for number in numbers]
        widths = [members[number].fc.in_features for number in order]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            joined = SequenceNetwork(members, build_head(spec.head, widths), sum(widths), spec.num_outputs)
    net = cast(Network, joined)
    net.spec = spec
    return net.eval()


def frame_depths(net: Network) -> dict[str, int]:
    """`{parameter: how deep its block lies, from 0}` of the backbone of a network on single frames, as timm has it.

    Raises `UsageError` for one of which timm does not know it.
    """
    from timm.models import group_parameters

    backbone: Any = net.get_submodule("backbone")
    if not hasattr(backbone, "group_matcher"):
        raise UsageError(
            f"layer_decay is not for {net.spec.backbone}: timm does not say which of its layers is the deeper",
            "leave layer_decay at 1",
        )
    depths = group_parameters(backbone, backbone.group_matcher(), reverse=True)
    return {f"backbone.{name}": depth for name, depth in depths.items()}


def undecayed(net: Network) -> set[str]:
    """Parameters of a network on single frames that are no kernels though they have several axes, as timm has it."""
    backbone: Any = net.get_submodule("backbone")
    names = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    return {f"backbone.{name}" for name in names}


def fitting_size(net: Network, size: int | None, usual: int) -> int:
    """Side of its clip, pixels: `size` where it was asked for, its own where it was trained on videos, else `usual`.

    A network on single frames that cannot compute `usual` gets the size it was made for. Raises `UsageError` where it
    cannot compute `size`.
    """
    own = net.spec.clip.size
    chosen = size or (own if net.spec.classes else usual)
    if net.spec.inflation.arch != FRAMES or takes_size(net, chosen):
        return chosen
    if size:
        raise UsageError(f"{net.spec.backbone} cannot compute frames of {size} pixels", f"its own size: --size {own}")
    return own


def takes_size(net: Network, size: int) -> bool:
    """Whether a network on single frames can compute frames of `size` pixels; transformers may not."""
    try:
        with torch.inference_mode():
            image = torch.zeros(1, net.spec.clip.channels, size, size, device=net.fc.weight.device)
            return bool(net.get_submodule("backbone")(image).numel())
    except (AssertionError, RuntimeError, ValueError):
        return False


def set_head(net: Network, classes: tuple[str, ...], multi_label: bool = False) -> Network:
    """A new last layer for `classes`, in place: weights 0, so that every class starts equally likely; returns `net`.

    `multi_label`: a video may have several of them. timm's `reset_classifier` would rebuild the 2-D pool too.
    """
    old = net.fc.weight
    net.fc = nn.Linear(net.fc.in_features, len(classes), device=old.device, dtype=old.dtype)
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    net.spec = dataclasses.replace(
        net.spec, classes=tuple(classes), num_outputs=len(classes), multi_label=multi_label, threshold=None, prior=()
    )
    return net


@torch.no_grad()
def set_stream(net: Network, stream: str) -> Network:
    """Makes a network of RGB one of another stream, in place; returns `net`. One of that stream already stays.

    The first kernel of flow is, for x and y each, the mean of RGB's over the colours (TSN: cross-modality
    initialisation); of sound it is their sum, which sees a grey picture as RGB's sees it. Raises `UsageError` for a
    network of another stream.
    """
    old = net.spec.clip
    if stream == old.stream:
        return net
    if old.stream != "rgb":
        raise UsageError(
            f"the model is of {old.stream}, and cannot be made one of {stream}", "start from a network of RGB: --from"
        )
    clip = old.of_stream(stream)
    if net.spec.inflation.arch == FRAMES:
        _set_channels_of_frames(net, clip)
    else:
        conv = stem(net)
        conv.weight = nn.Parameter(_of_colours(conv.weight, clip))
        conv.in_channels = clip.channels
    net.spec = dataclasses.replace(net.spec, clip=clip)
    return net


def _of_colours(kernel: torch.Tensor, clip: ClipSpec) -> torch.Tensor:
    """A kernel `(O, channels of the clip, …)` of one that sees RGB, `(O, 3, …)`."""
    colours = kernel.mean(1, keepdim=True) if clip.stream != "audio" else kernel.sum(1, keepdim=True)
    return colours.repeat(1, clip.channels, *[1] * (kernel.ndim - 2))


def _set_channels_of_frames(net: Network, clip: ClipSpec) -> None:
    """Gives a network on single frames first kernels for the clip's channels, in place. Raises `UsageError`."""
    values = net.get_submodule("backbone").state_dict()
    try:
        image_net = _image_net(net.spec.backbone, clip.channels)
        own = image_net.state_dict()
        colours = [key for key, value in values.items() if own[key].shape != value.shape]
        image_net.load_state_dict(values | {key: _of_colours(values[key], clip) for key in colours})
    except (TypeError, KeyError, RuntimeError):
        raise UsageError(
            f"{net.spec.backbone} takes frames of three colours alone, and none of {clip.stream}",
            "use another network for this stream",
        ) from None
    net.backbone = image_net.to(net.fc.weight).train(net.training)


def moving_average(net: Network, decay: float) -> nn.Module:
    """timm's moving average of weights and BN statistics; its `module` starts as a copy of `net` in eval mode.

    `update(net, step=n)` after the n-th optimiser step, from 1: the first copies, then the decay rises from 0.37 as
    1 - n^(-2/3), up to `decay`, so that a short run does not keep the weights it started from. All its state is that of
    `module`: its state dict and n restore it bit for bit.
    """
    _import_resnets()
    from timm.utils import ModelEmaV3

    return ModelEmaV3(net, decay=decay, use_warmup=True)


def add_blocks(net: Network, nl: str) -> Network:
    """New non-local blocks in a trained network without any, in place: it starts as what it was; returns `net`.

    Raises `UsageError` where it has blocks, and for a placement that cannot be.
    """
    refuse_other_kinds(net.spec, "have non-local blocks")
    if net.spec.non_local:
        raise UsageError("--nl adds blocks to a network without any; this one has some", "omit --nl to train them on")
    _, nl = _as_of(net.spec.backbone, net.spec.inflation, nl)
    placement = parse_nl(nl, depths(net))
    _insert_seeded_(net, placement)
    net.spec = dataclasses.replace(net.spec, non_local=placement)
    return net


def _insert_seeded_(net: Network, placement: tuple[NonLocal, ...]) -> None:
    """The same blocks from the same command."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        insert_nonlocal_(net, placement)


@dataclass(frozen=True)
class Checks:
    """What was computed on the built network, on random input.

    Relative errors are max |a - b| / max |b| of the logits.
    """

    nonlocal_identical: bool | None  # output with and without blocks, eval and train mode, bit for bit; None: no blocks
    still_clip_error: float  # one image repeated, against the 2-D network on that image
    moving_clip_error: float | None  # T different images, against the mean of the 2-D logits; None: not centre
    pools_change: float | None  # what the temporal pools, left out above, do to the moving clip's logits
    notes: tuple[str, ...] = ()  # how the names in the weights file were read

    def summary(self) -> dict:
        """Only what was computed."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, ())}


def inflate(
    name: str,
    weights: Path | None,
    inflation: Inflation,
    nl: str,
    fetch: Callable[[str], Path],
    frames: int = 8,
    stride: int | None = None,
    command: str = "",
    **kind: Any,
) -> tuple[Network, Checks]:
    """2-D backbone to 3-D network with non-local blocks of `kind` (form, span, …), and the checks computed on the way.

    `frames` and `stride` are those of the clips that it is meant for; `fetch` and `command` as for `load_backbone`.
    A name or placement that cannot be is refused before any weights are fetched, with a `UsageError`; raises
    `WeightsError` for weights that cannot be had.
    """
    if inflation.arch == FRAMES:
        raise UsageError("--arch frames is no inflation", f"nlzoo probe {name} VIDEOS takes the 2-D network as it is")
    if inflation.init == "imported":
        raise UsageError("--init imported is for networks that were trained in 3-D", "nlzoo import FILE makes those")
    inflation, nl = _as_of(name, inflation, nl)
    with shapes_only():
        placement = parse_nl(nl, depths(inflate_(plain_resnet(name), inflation)), **kind)
    backbone = load_backbone(name, weights, fetch, command)
    net = inflate_(copy.deepcopy(backbone.net), inflation)
    before = twin(net)
    _insert_seeded_(net, placement)
    clip = dataclasses.replace(backbone.clip, frames=frames, stride=stride)
    net.spec = ModelSpec(
        backbone.name, inflation, placement, clip, (), net.fc.out_features, backbone.source, backbone.licence
    )
    return net, dataclasses.replace(check(backbone.net, before, net), notes=backbone.notes)


def _as_of(backbone: str, inflation: Inflation, nl: str) -> tuple[Inflation, str]:
    """Both in the words of all networks: GoogLeNet has 3x3x3 kernels alone, and its modules have names."""
    if not googlenet.is_googlenet(backbone):
        return inflation, nl
    if inflation.arch == "i3d":
        inflation = dataclasses.replace(inflation, arch="i3d-333")
    return inflation, googlenet.stage_blocks(nl)


@torch.no_grad()
def check(flat: nn.Module, before: nn.Module, net: Network, frames: int = 8, size: int = 64) -> Checks:
    """Compares the 2-D network, the inflated one and the one with blocks on random clips (`frames`, `size`, `size`)."""
    inflation = net.spec.inflation
    moving = torch.randn(2, 3, frames, size, size)
    still = moving[:, :, :1].expand(-1, -1, frames, -1, -1)
    logits = before(moving)
    identical = None
    if net.spec.non_local:
        identical = torch.equal(net(moving), logits) and _same_bits_in_training(before, net, moving)
    by_frame = torch.stack([flat(moving[:, :, t]) for t in range(frames)]).mean(0)
    centre = inflation.init == "centre"
    pooled = inflation.pools != "none"
    unpooled = _without_time_strides(before)(moving) if centre and pooled else logits
    return Checks(
        nonlocal_identical=identical,
        still_clip_error=relative_error(before(still), flat(still[:, :, 0])),
        moving_clip_error=relative_error(unpooled, by_frame) if centre else None,
        pools_change=relative_error(logits, by_frame) if centre and pooled else None,
    )


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|"""
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))


def _same_bits_in_training(before: nn.Module, net: nn.Module, clip: torch.Tensor) -> bool:
    """On copies, since a pass in train mode moves BN's running statistics."""
    return torch.equal(copy.deepcopy(before).train()(clip), copy.deepcopy(net).train()(clip))


def _without_time_strides(net: nn.Module) -> nn.Module:
    """A copy that pools and strides in space only."""
    net = twin(net)
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, *module.stride[1:])
        elif isinstance(module, nn.MaxPool3d):
            module.kernel_size = _one_frame(module.kernel_size, 1)
            module.stride = _one_frame(module.stride, 1)
            module.padding = _one_frame(module.padding, 0)
        elif isinstance(module, TemporalMaxPool):
            module.kernel = 1
    return net


def _one_frame(sizes: Any, first: int) -> tuple[int, int, int]:
    return first, sizes[1], sizes[2]


def blueprint(named: Named, classes: int, **kind: Any) -> Network:
    """The network that a name means, on the meta device: everything but weights."""
    with shapes_only():
        return build(named.spec(depths(plain_resnet(named.backbone)), classes, **kind))
