"""Single frames, motion, flow and sound on drawn videos of which each tells one thing: `nlzoo compare` on all of them.

    python tests/bench/streams.py SCRATCH             # seeds 0, 1, 2; resumable; the words after SCRATCH go to compare

Four classes: a shape rises or falls, which no single frame shows (both directions show the same frames), beside a tone
that is steady or beeps, which no picture shows. Who sees frames alone guesses one in four, who sees motion or hears
sound one in two, and who does both may know all. Videos of one group share the scene, the path and the pitch.
"""

import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np

from nlzoo.apps import draw

sys.path.insert(0, str(Path(__file__).parents[1]))
from sounds import with_sound

GROUPS, FRAMES, FPS, SIZE, RATE = 30, 24, 12, (64, 80), 16_000
MOTIONS, SOUNDS = ("rise", "fall"), ("steady", "beeps")
COMPARED = "--backbone tiny --frames 8 --size 64 --seeds 3 --epochs 12 --device cpu"


def sound(kind, rng):
    """float32 `(samples,)`: a tone of some pitch and loudness under noise, whole or in beeps of an eighth."""
    time = np.arange(FRAMES * RATE // FPS) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(300, 3000) * time) * rng.uniform(0.2, 0.6)
    if kind == "beeps":
        tone *= (time * 8 + rng.uniform(0, 2)).astype(int) % 2
    return (tone + rng.normal(0, 0.03, time.shape)).astype(np.float32)


def write_videos(folder):
    """`folder/CLASS/gNN.mp4`, one of each class in a group."""
    for group, motion, kind in product(range(GROUPS), MOTIONS, SOUNDS):
        file = folder / f"{motion}-{kind}" / f"g{group:02}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        images = draw.motion_clip(motion, group, FRAMES, SIZE)
        samples = sound(kind, np.random.default_rng([group, 7]))
        with_sound(file, samples, RATE, codec="aac", images=images, fps=FPS)


def main():
    scratch, *words = sys.argv[1:]
    videos = Path(scratch) / "streams"
    if not (videos / f"{MOTIONS[-1]}-{SOUNDS[-1]}" / f"g{GROUPS - 1:02}.mp4").exists():
        write_videos(videos)
    command = [sys.executable, "-m", "nlzoo", "compare", videos.name, *COMPARED.split(), *words]
    sys.exit(subprocess.run(command, cwd=scratch).returncode)


if __name__ == "__main__":
    main()
