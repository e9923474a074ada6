"""The files below a folder, each real file once."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..core import archives
from ..core.files import VIDEO_EXTENSIONS
from ..core.skipped import Skipped
from . import frame_folder, items

_IGNORED_FOLDERS = {"__MACOSX", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class Tree:
    """What is below a folder; paths are relative to it, with "/" between parts."""

    videos: list[str] = field(default_factory=list)  # files and folders of frames, sorted
    frames: dict[str, int] = field(default_factory=dict)  # those of them that are folders → pictures in it
    others: Counter[tuple[str, str]] = field(default_factory=Counter)  # (folder, ending) → files that are no videos
    folders: set[str] = field(default_factory=set)
    closed: list[Skipped] = field(default_factory=list)  # folders that could not be read
    links: list[Skipped] = field(default_factory=list)  # links without an ending that give nothing

    def endings(self, levels: int = 0) -> dict[str, Counter[str]]:
        """Folder, `levels` deep → how many files that are no videos have each ending, in it and below it."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for (folder, ending), count in self.others.items():
            counts["/".join(folder.split("/")[:levels])][ending] += count
        return counts


def walk(root: Path) -> Tree:
    """What is below `root`. Links are followed (in archives none is), loops never; a real place goes before a link.

    A video is a file with the ending of one, or a folder below `root` with numbered pictures and without such files;
    not one of optical flow. Hidden files and second links to a file count as others. Hidden folders are not entered.
    """
    walk = _Walk(root)
    while walk.folders or walk.links:
        if walk.folders:
            walk.enter(*walk.folders.pop())
        else:
            walk.follow_links()
    walk.tree.videos.sort()
    return walk.tree


class _Walk:
    """A walk that is under way: what was found, and what is still to be entered or followed."""

    def __init__(self, root: Path) -> None:
        self.tree = Tree()
        self.entered: set[str] = set()  # real paths
        self.files: set[str] = set()
        self.folders: list[tuple[str, str]] = [("", archives.realpath(root))]  # (path, real or linked path)
        self.links: list[tuple[str, str]] = []

    def enter(self, path: str, real: str) -> None:
        if real in self.entered:
            self.tree.links.append(Skipped(path, items.LINK, "is a link to a folder that is read elsewhere"))
            return
        self.entered.add(real)
        self.tree.folders.add(path)
        try:
            with archives.scandir(real) as opened:
                entries = list(opened)
        except OSError as error:
            entries = []
            self.tree.closed.append(Skipped(path, items.CLOSED, f"is a folder that cannot be read: {error.strerror}"))
        frames = self._is_video(path, real, entries)
        for entry in entries:
            if frames and frame_folder.is_picture(entry.name):
                continue
            inside, place = f"{path}/{entry.name}" if path else entry.name, os.path.join(real, entry.name)
            if entry.is_symlink():
                self.links.append((inside, place))
            else:
                self._add(inside, place, entry.is_dir(follow_symlinks=False))

    def _is_video(self, path: str, real: str, entries: list[archives.Entry | os.DirEntry]) -> bool:
        """Whether a folder below the root is a video; it is taken in then."""
        if not path or frame_folder.is_flow(path.rpartition("/")[2]):
            return False
        names = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
        if not frame_folder.holds_frames(real, names):
            return False
        self.tree.videos.append(path)
        self.tree.frames[path] = sum(map(frame_folder.is_picture, names))
        return True

    def follow_links(self) -> None:
        for inside, link in sorted(self.links, reverse=True):  # the last that is put on the pile is taken first
            target = os.path.realpath(link)
            if not os.path.exists(target) and not os.path.splitext(inside)[1]:
                packed = archives.is_member(link)
                reason = "is a link in an archive, which is not followed" if packed else "is a link to nothing"
                self.tree.links.append(Skipped(inside, items.LINK, reason))
            self._add(inside, target, os.path.isdir(target))
        self.links.clear()

    def _add(self, path: str, real: str, is_folder: bool) -> None:
        folder, _, name = path.rpartition("/")
        ending = os.path.splitext(name)[1].lower()
        if is_folder:
            if not _hidden(path):
                self.folders.append((path, real))
        elif not _is_video_file(real, ending) or _hidden(path) or real in self.files:
            self.tree.others[folder, ending] += 1
        else:
            self.files.add(real)
            self.tree.videos.append(path)


def _is_video_file(real: str, ending: str) -> bool:
    return ending in VIDEO_EXTENSIONS or (ending == frame_folder.ANIMATED and frame_folder.is_animation(real))


def _hidden(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".") or name in _IGNORED_FOLDERS
