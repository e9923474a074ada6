"""Which frames and pixels of a video a network sees: clips, views of a test, augmentation in training. Torch-free."""

import dataclasses
import re
from dataclasses import dataclass

from .bounds import between, boolean, number, one_of
from .changes import WORDS, parse_changes
from .errors import UsageError


@dataclass(frozen=True)
class Stream:
    """What is looked at of a video, each number a byte; `mean` and `std` are of bytes / 255, one for each channel."""

    words: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


STREAMS = {
    "rgb": Stream("frames", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    # byte 128 is no movement; the deviation is the mean of ImageNet's three, as in TSN
    "flow": Stream("frames of optical flow (DIS)", (128 / 255,) * 2, (0.226,) * 2),
    "flow-tvl1": Stream("frames of optical flow (TV-L1)", (128 / 255,) * 2, (0.226,) * 2),
    "audio": Stream("log-mel patches of 0.96 s of sound", (0.35,), (0.2,)),  # of music and speech, about
}


@dataclass(frozen=True)
class ClipSpec:
    """What a network sees of a video: `frames` frames of `size` x `size` pixels, of one of the `STREAMS`."""

    frames: int = 8  # T
    stride: int | None = None  # source frames from one to the next; None: spread over the whole video
    size: int = 224  # H = W of the crop, pixels
    mean: tuple[float, ...] = STREAMS["rgb"].mean  # of each channel in [0, 1], subtracted
    std: tuple[float, ...] = STREAMS["rgb"].std  # of each channel in [0, 1], divided by
    fps: float | None = None  # stride counts frames of the video played at this rate; None: its own frames
    clips: int = 1  # of a video, evenly in time, whose scores are averaged where a test asks for no other views
    stream: str = "rgb"  # of `STREAMS`: what the frames are of

    def __post_init__(self) -> None:
        one_of(self.stream, STREAMS, "stream")
        between(self.frames, 1, 1024, "frames")
        between(self.size, 16, 2048, "size")
        between(self.clips, 1, 100, "clips per video")
        if self.stride is not None:
            between(self.stride, 1, 1024, "stride")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(isinstance(v, float) and 0 <= v <= 10 for v in values):
                count = {1: "one number", 2: "two numbers", 3: "three numbers"}[self.channels]
                raise UsageError(f"{name} must be {count} from 0 to 10; it is {values!r}")
        if min(self.std) <= 0:
            raise UsageError(f"std must be above 0; it is {self.std!r}")
        if self.fps is not None:
            number(self.fps, 1, 1000, "fps")
            if self.stride is None:
                raise UsageError(
                    f"fps {self.fps:g} needs a stride: frames spread over the whole video have no rate",
                    "give --stride too, or omit --fps",
                )

    @property
    def channels(self) -> int:
        """Of each frame: 3 of RGB, 2 of flow (x, y), 1 of sound."""
        return len(STREAMS[self.stream].mean)

    def of_stream(self, stream: str) -> "ClipSpec":
        """The same frames, of another stream."""
        return dataclasses.replace(self, stream=stream, mean=STREAMS[stream].mean, std=STREAMS[stream].std)

    @property
    def views(self) -> "ViewSpec":
        """What a test shows of each video where no other views are asked for."""
        return ViewSpec(self.clips)

    def __str__(self) -> str:
        step = f"every {self.stride}" if self.stride else "spread over the video"
        step += f" at {self.fps:g} fps" if self.fps else ""
        several = f", {self.clips} clips a video" if self.clips > 1 else ""
        return f"{self.frames} {STREAMS[self.stream].words} {step}, {self.size}x{self.size}{several}"


@dataclass(frozen=True)
class ViewSpec:
    """The views of a video in a test: clips x crops. Its prediction is the mean over all views."""

    num_clips: int = 1  # evenly in time; with 2 or more, the last one ends where the video does
    # 1: the whole frame, squeezed to a square; 3: squares at both ends and in the middle of the longer side;
    # full: the whole frame in its own shape
    crops: int | str = 1
    order: str = "true"  # of a clip's frames; shuffled, or one: the middle one in place of all (controls)

    def __post_init__(self) -> None:
        between(self.num_clips, 1, 100, "clips per video")
        one_of(self.crops, (1, 3, "full"), "crops per clip")
        one_of(self.order, ("true", "shuffled", "one"), "order of the frames")

    @property
    def num_views(self) -> int:
        """Views of each video."""
        return self.num_clips * (3 if self.crops == 3 else 1)

    def __str__(self) -> str:
        return f"{self.num_clips}x{self.crops}"


CROPS = ("area", "jitter")


@dataclass(frozen=True)
class Augment:
    """What training changes in a clip, each time anew (docs/augmentation.md); the defaults are the preset `light`."""

    # area: a rectangle of at least min_area of the frame; jitter: a square of 70-88 % of the short side (paper)
    crop: str = "area"
    min_area: float = 0.5
    flip: bool = True  # mirrored half the time
    colour: float = 0.0  # brightness, contrast and saturation each times 1 - colour to 1 + colour
    randaugment: int = 0  # magnitude of two operations out of 14; 0: none
    erase: float = 0.0  # probability that a rectangle becomes grey
    mixup: float = 0.0  # alpha of Beta(alpha, alpha) that clips are blended by; 0: never
    cutmix: float = 0.0  # the same for the area that is cut from another clip; with both on, each half the time
    repeats: int = 1  # views of each video in a step, decoded at once
    # half the time a frame lies somewhere in one with sides up to this share longer, edges repeated; then it is cut
    zoom_out: float = 0.0

    def __post_init__(self) -> None:
        one_of(self.crop, CROPS, "crop")
        number(self.min_area, 0.05, 1, "min_area")
        boolean(self.flip, "flip")
        number(self.zoom_out, 0, 2, "zoom_out")
        number(self.colour, 0, 1, "colour")
        between(self.randaugment, 0, 30, "randaugment")
        number(self.erase, 0, 1, "erase")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha != 0:
                number(alpha, 0.01, 10, f"{name}, where it is not 0,")
        between(self.repeats, 1, 16, "repeats")

    def __str__(self) -> str:
        """`light` and what differs from it, as `parse_augment` reads it."""
        light = dataclasses.asdict(AUGMENTS["light"])
        changes = {key: value for key, value in dataclasses.asdict(self).items() if value != light[key]}
        return ",".join(["light", *(f"{key}={WORDS.get(str(value), value)}" for key, value in changes.items())])


AUGMENTS = {
    "light": Augment(),
    "few": Augment(colour=0.4, zoom_out=0.5),
    "paper": Augment(crop="jitter"),
    "medium": Augment(colour=0.4, erase=0.25),
    "strong": Augment(min_area=0.3, randaugment=7, erase=0.25, mixup=0.8, cutmix=1.0, repeats=2),
}
MANY_CLIPS = 5000  # from here on `medium`; below it `few`, which was measured (docs/training.md)


def default_augment(training_clips: int) -> tuple[str, str]:
    """`(preset, reason in words)` for a set of that many training clips."""
    if training_clips < MANY_CLIPS:
        return "few", f"under {MANY_CLIPS:,} training clips"
    return "medium", f"{MANY_CLIPS:,} training clips or more"


def for_stream(augment: Augment, stream: str) -> Augment:
    """`augment` without what means nothing for a stream.

    Flow and sound have no colours, a rotated picture has another flow, and sound is not mirrored or zoomed.
    """
    if stream == "rgb":
        return augment
    augment = dataclasses.replace(augment, colour=0.0, randaugment=0)
    return dataclasses.replace(augment, flip=False, zoom_out=0.0) if stream == "audio" else augment


def parse_augment(text: str, usual: str = "light") -> Augment:
    """`medium`, `flip=no,colour=0.2` (changes to `usual`) or `strong,flip=no,mixup=0`; spaces and case do not matter.

    Raises `UsageError` for an unknown preset or key, naming all of them, and for a value out of bounds.
    """
    first, values = parse_changes("--augment", text, usual, AUGMENTS, Augment, "strong,flip=no,mixup=0")
    return dataclasses.replace(AUGMENTS[first], **values)


def parse_views(text: str) -> ViewSpec:
    """`10x3`, `10xfull`: clips x crops; spaces and case do not matter. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d{1,3})\s*x\s*(\d|full)\s*", text.lower())
    if match is None:
        raise UsageError(f"--views {text!r} is not clips x crops", "for example 1x1, 10x1, 10x3 or 10xfull")
    clips, crops = match.groups()
    return ViewSpec(int(clips), crops if crops == "full" else int(crops))
