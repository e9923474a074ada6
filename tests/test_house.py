"""The house plan, held: imports point down, each outside library has one door, and docs/cli.md is the app's."""

import ast
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
DOORS = {
    "timm": {"networks.inflate", "networks.model"},
    "av": {"videos.video", "videos.encode"},
    "decord": {"videos.video"},
    "huggingface_hub": {"apps.hub", "apps.hub_card", "apps.leaks", "networks.download", "networks.hub_client"},
    "rich": {"cli.console"},
    "typer": {
        f"cli.{name}" for name in ("app", "answers", "hub", "machine", "networks", "options", "training", "videos")
    },
    "torchvision": {"networks.vision"},
    "sklearn": {"apps.check", "training.metrics", "training.probe", "videos.splits"},
    "scipy": {"training.metrics"},
    "accelerate": {"training.engine"},
    "matplotlib": {"apps.pictures", "apps.charts"},
    "pyarrow": {"core.tables"},
    "gradio": {"apps.serve"},
    "jinja2": {"apps.report"},
}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def module(file):
    return ".".join(file.relative_to(REPO / "nlzoo").with_suffix("").parts)


def test_each_library_has_its_door():
    files = sorted((REPO / "nlzoo").rglob("*.py"))
    assert len(files) > 15
    users = {library: {module(f) for f in files if library in imported(f)} for library in DOORS}
    assert all(users[library] <= doors for library, doors in DOORS.items()), users
    assert users["timm"] and users["av"] and users["huggingface_hub"]


def test_imports_point_down():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml", "--no-cache"],
        cwd=REPO,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 kept, 0 broken" in done.stdout


def reference() -> str:
    """The command reference as Typer writes it from the app."""
    done = subprocess.run(
        [sys.executable, "-m", "typer", "nlzoo.cli.app", "utils", "docs", "--name", "nlzoo"],
        cwd=REPO,
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout


def test_the_command_reference_is_the_apps():
    """Mend with: python -m typer nlzoo.cli.app utils docs --name nlzoo --output docs/cli.md"""
    assert (REPO / "docs" / "cli.md").read_text().strip() == reference().strip()


def test_the_top_level_is_fixed():
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, text=True, capture_output=True)
    if listed.returncode == 0:
        top = {name.split("/")[0] for name in listed.stdout.splitlines()}
        allowed = {"pyproject.toml", "nlzoo", "weights", "tests", "docs", "README.md", "LICENSE"}
        assert not {n for n in top if not n.startswith(".")} - allowed
