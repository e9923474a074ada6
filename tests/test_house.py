"""The house plan, held: imports point down, each outside library has one door, and docs/cli.md is the app's."""

import ast
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
DOORS = {
    "timm": {"inflate", "model"}, "av": {"video", "encode"}, "decord": {"video"}, "huggingface_hub": {"hub"},
    "rich": {"cli", "console"}, "typer": {"cli"}, "torchvision": {"vision"}, "sklearn": {"check", "metrics", "probe", "splits"},
    "scipy": {"metrics"}, "accelerate": {"engine"}, "matplotlib": {"pictures", "charts"}, "pyarrow": {"tables"}, "gradio": {"serve"}, "jinja2": {"report"},
}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_each_library_has_its_door():
    files = sorted((REPO / "nlzoo").glob("*.py"))
    assert len(files) > 15
    users = {library: {f.stem for f in files if library in imported(f)} for library in DOORS}
    assert all(users[library] <= doors for library, doors in DOORS.items()), users
    assert users["timm"] and users["av"] and users["huggingface_hub"]


def test_imports_point_down():
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml", "--no-cache"], cwd=REPO,
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def reference() -> str:
    """The command reference as Typer writes it from the app."""
    done = subprocess.run([sys.executable, "-m", "typer", "nlzoo.cli", "utils", "docs", "--name", "nlzoo"], cwd=REPO, text=True,
                          capture_output=True, check=True)
    return done.stdout


def test_the_command_reference_is_the_apps():
    """Mend with: python -m typer nlzoo.cli utils docs --name nlzoo --output docs/cli.md"""
    assert (REPO / "docs" / "cli.md").read_text().strip() == reference().strip()


def test_the_top_level_is_fixed():
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, text=True, capture_output=True)
    if listed.returncode == 0:
        top = {name.split("/")[0] for name in listed.stdout.splitlines()}
        allowed = {"pyproject.toml", "nlzoo", "weights", "tests", "docs", "README.md", "LICENSE"}
        assert not {n for n in top if not n.startswith(".")} - allowed
