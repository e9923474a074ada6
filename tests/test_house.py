"""The house plan, held: imports point down, each outside library has one door, and docs/cli.md is the app's."""

import ast
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
DOORS = {
    "timm": {"networks.inflate", "networks.model", "apps.portable.usage_timm"},
    "av": {
        *("videos.video", "videos.encode", "videos.sound"),
        *(f"apps.portable.{name}" for name in ("usage_onnx", "video_nlzoo")),
    },
    "onnx": {"apps.onnx_graph"},
    "onnxruntime": {"apps.onnx_graph", "apps.portable.usage_onnx"},
    "transformers": {
        f"apps.portable.{name}" for name in ("modeling_nlzoo", "video_processing_nlzoo", "usage_transformers")
    },
    "decord": {"videos.video"},
    "PIL": {"videos.frame_folder", "apps.portable.usage_timm"},
    "huggingface_hub": {
        *("apps.hub", "apps.hub_card", "apps.leaks"),
        *("networks.download", "networks.hub_client", "networks.hub_dataset"),
    },
    "rich": {"cli.console"},
    "typer": {
        "cli.arguments",
        *(
            f"cli.{name}"
            for name in (
                "app",
                "answers",
                "fusion",
                "hub",
                "machine",
                "networks",
                "options",
                "processes",
                "training",
                "videos",
            )
        ),
    },
    "torchvision": {"networks.vision"},
    "sklearn": {"apps.check", "training.linear", "training.learning_curve", "training.metrics", "videos.splits"},
    "scipy": {"training.metrics"},
    "accelerate": {"training.engine"},
    "matplotlib": {"apps.pictures", "apps.charts"},
    "pyarrow": {"core.tables"},
    "cv2": {"videos.flow"},
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
    imports = {module(file): set(imported(file)) for file in files}
    users = {library: {name for name in imports if library in imports[name]} for library in DOORS}
    assert all(users[library] <= doors for library, doors in DOORS.items()), users
    assert users["timm"] and users["av"] and users["huggingface_hub"]


def ruff(*words):
    done = subprocess.run([sys.executable, "-m", "ruff", *words], cwd=REPO, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr


def test_the_code_is_formatted_and_clean():
    """No line over 120 columns, no function of a complexity over 15: the settings are in pyproject.toml."""
    assert ruff("format", "--check", "nlzoo", "tests")[0] == 0
    code, report = ruff("check", "nlzoo", "tests")
    assert code == 0, report


def test_the_settings_would_see_it(tmp_path):
    """Negative control: long lines, and functions with many branches, are what ruff is set to find."""
    branches = "".join(f"    if x == {n}:\n        return {n}\n" for n in range(16))
    (tmp_path / "long.py").write_text(f"x = '{'a' * 120}'\n\n\ndef f(x):\n{branches}")
    code, report = ruff("check", "--config", "pyproject.toml", "--output-format", "concise", str(tmp_path / "long.py"))
    assert code == 1 and "E501" in report and "C901" in report


def test_every_function_is_annotated():
    bare = []
    for file in sorted((REPO / "nlzoo").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = node.args
                named = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
                arguments = [a for a in named if a and a.arg not in ("self", "cls")]
                if not all(a.annotation for a in arguments) or not (node.returns or node.name == "__init__"):
                    bare.append(f"{module(file)}.{node.name}")
    assert not bare


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
    """Fix with: python -m typer nlzoo.cli.app utils docs --name nlzoo --output docs/cli.md"""
    assert (REPO / "docs" / "cli.md").read_text().strip() == reference().strip()


def test_no_two_test_files_share_a_name():
    """pytest imports them by their name alone."""
    names = [file.name for file in (REPO / "tests").rglob("*.py")]
    assert len(names) > 40 and sorted(names) == sorted(set(names))


def test_the_docs_name_tests_that_there_are():
    pages = [*(REPO / "docs").glob("*.md"), REPO / "README.md"]
    paths = {path for page in pages for path in re.findall(r"\btests/[\w/]+\.py", page.read_text())}
    names = {name for page in pages for name in re.findall(r"\btest_\w+\.py", page.read_text())}
    assert len(paths) > 5 and len(names) > 10
    assert not [path for path in paths if not (REPO / path).is_file()]
    assert not names - {file.name for file in (REPO / "tests").rglob("*.py")}


def test_the_top_level_is_fixed():
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, text=True, capture_output=True)
    if listed.returncode == 0:
        top = {name.split("/")[0] for name in listed.stdout.splitlines()}
        allowed = {"pyproject.toml", "nlzoo", "weights", "tests", "docs", "README.md", "LICENSE"}
        assert not {n for n in top if not n.startswith(".")} - allowed
