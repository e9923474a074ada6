"""Help that a person can use, and one kind of error for whatever is wrong with a command line."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from test_console import on_terminal
from typer.main import get_command

from nlzoo.cli.app import app
from nlzoo.core.model_spec import ModelSpec, parse_name
from nlzoo.networks import checkpoint, describe, model

COMMANDS = get_command(app).commands
HEAVY = ("torch", "timm", "av", "decord", "huggingface_hub", "numpy")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_each_command_whole_in_its_panel(nlzoo, monkeypatch, flag):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = nlzoo(flag)
    assert code == 0 and not err
    lines = [line.strip("│╭╮╰╯─ ") for line in out.splitlines()]
    assert len(COMMANDS) == 21
    for name, command in COMMANDS.items():
        assert f"{name:8}  {command.short_help}" in lines
    assert [panel for panel in lines if panel in {c.rich_help_panel for c in COMMANDS.values()}] == [
        "Networks",
        "Videos",
        "Training",
        "Results",
        "Hub",
        "This machine",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_every_option_and_ends_with_examples(nlzoo, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = nlzoo(name, "-h")
    assert code == 0 and not err and all(len(line) <= 80 for line in out.splitlines())
    words = " ".join(re.sub(r"[│╭╮╰╯─*]", " ", out).split())
    for parameter in COMMANDS[name].params:
        for part in (*parameter.opts, *parameter.secondary_opts):
            assert part in words
        assert getattr(parameter, "help", None) is None or set(parameter.help.split()) <= set(words.split())
    examples = out[out.index("Examples:") :].split("\n")[1:]
    examples = [line.strip() for line in examples if line.strip()]
    assert examples and all(line.startswith(f"nlzoo {name}") for line in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_commands_that_there_are(name):
    for line in COMMANDS[name].epilog.split("\n\n")[1:]:
        program, command, *words = line.split()
        assert program == "nlzoo" and command == name
        known = {
            option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in words if word.startswith("-")} <= known
        COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize(
    "words, message, hint",
    [
        (["fintune", "videos"], "there is no command 'fintune'", "did you mean finetune?"),
        (["xyzzy"], "there is no command 'xyzzy'", "the commands: inflate, import, list, info, export, check, prepare"),
        (["finetune", "v", "--epoch", "3"], "no such option: --epoch", "did you mean --epochs"),
        (["predict", "--xyzzy"], "no such option: --xyzzy", "nlzoo predict --help"),
        (["--xyzzy"], "no such option: --xyzzy", "nlzoo --help"),
        (["finetune"], "missing argument 'videos'", "nlzoo finetune --help"),
        (["finetune", "v", "--epochs", "few"], "invalid value for '--epochs'", "nlzoo finetune --help"),
        (["finetune", "v", "--epochs", "0"], "invalid value for '--epochs'", "nlzoo finetune --help"),
        (["finetune", "v", "--lr"], "option '--lr' requires an argument", "nlzoo finetune --help"),
        (["list", "all"], "got unexpected extra argument", "nlzoo list --help"),
        (["pull", "no-slash"], "'no-slash' is not user/name", "nlzoo pull"),
        (["\x1b[31m"], "there is no command '\\x1b[31m'", "the commands"),
    ],
)
def test_a_wrong_command_line_is_an_error_like_any_other(nlzoo, words, message, hint):
    code, out, err = nlzoo(*words)
    first, second = err.splitlines()
    assert (code, out) == (2, "")
    assert first.startswith(f"error: {message}") and second.startswith("hint: ") and hint in second
    code, out, err = nlzoo(*words[:1], "--json", *words[1:])
    assert (code, err) == (2, "")
    answer = json.loads(out)
    assert set(answer) == {"error", "hint", "exit_code"} and answer["exit_code"] == 2
    assert hint in answer["hint"]


def test_no_command_shows_the_help_and_is_an_error(nlzoo):
    code, out, err = nlzoo()
    assert code == 2 and "finetune" in out + err and "error" not in out + err


def imported(words, modules=HEAVY, cwd=None, **environment):
    """Lines that `nlzoo WORDS` prints in a process of its own; then one of the `modules` that are imported there."""
    code = (
        "import sys\nfrom nlzoo.cli import app as cli\n"
        f"try: cli.main()\nexcept SystemExit: pass\nprint([m for m in {modules} if m in sys.modules])"
    )
    command, env = [sys.executable, "-c", code, *words.split()], os.environ | environment
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, check=True, timeout=120)
    return done.stdout.splitlines()


def test_help_is_quick_because_nothing_heavy_is_imported():
    *lines, modules = imported("--help")
    assert modules == "[]" and "finetune" in "".join(lines)


def test_a_shell_completes_commands_without_anything_heavy(tmp_path):
    """What `--install-completion` writes asks so; a Tab must not take the seconds that torch does."""
    env = {"_NLZOO_COMPLETE": "complete_bash", "COMP_WORDS": "nlzoo pre", "COMP_CWORD": "1"}
    assert imported("", **env) == ["prepare", "predict", "[]"]


def test_the_list_needs_nothing_heavy(tmp_path):
    *lines, modules = imported("list", cwd=tmp_path)
    assert modules == "[]" and "nl5-i3d-r50-8x8.authors" in "\n".join(lines)


def test_a_terminal_is_told_that_work_has_begun_before_anything_heavy_is_imported(tmp_path):
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); sys.argv = ['nlzoo', 'list']\n"
        "from nlzoo.cli import app as cli, console\nwas = console.status\n"
        f"def status(text): was(text + str([m for m in {HEAVY} if m in sys.modules]))\n"
        "console.status = status\ntry: cli.main()\nexcept SystemExit as stop: assert not stop.code\n"
    )
    assert on_terminal(code).decode().startswith("starting list …[]\r\x1b[2K")
    piped = subprocess.run([sys.executable, "-m", "nlzoo", "list"], cwd=tmp_path, capture_output=True, check=True)
    assert b"starting" not in piped.stdout + piped.stderr


def test_the_reader_of_a_pipe_may_leave(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "nlzoo", "list"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        started.stdout.close()
        err = started.stderr.read()
    assert b"Traceback" not in err and started.returncode in (1, 141)


TORCH_FREE = [  # words, exit code, what stands in the output
    ("--version", 0, "0."),
    ("--help", 0, "finetune"),
    ("finetune --help", 0, "--epochs"),
    ("list --json", 0, '"starts"'),
    ("push m --dry-run", 0, "nothing was sent"),
    ("info m", 0, "multiply-adds"),
    ("info nl1-c2d-r18-4x8 --classes 7 --json", 0, '"outputs": 7'),
    ("fintune v", 2, "did you mean finetune"),
    ("finetune v --epoch 3", 2, "no such option"),
    ("finetune nowhere", 3, "nowhere does not exist"),
    ("finetune v --from mm", 2, "did you mean m?"),
    ("finetune v --recipe papr", 2, "papr"),
    ("finetune v --lr much", 2, "is not a number"),
    ("finetune v --decoder vlc", 2, "there is no decoder"),
    *((f"{command} mm v", 2, "did you mean m?") for command in ("eval", "predict", "probe", "explain")),
    *((f"{command} mm", 2, "did you mean m?") for command in ("serve", "export --to onnx", "bench")),
    ("info mm", 2, "did you mean m?"),
    ("push mm", 2, "did you mean m?"),
    ("push m alice/a--b", 6, "for example nlzoo push weights/m alice/a-b"),
    ("push alice/m m", 2, "nlzoo push m alice/m"),
    ("push m --tag a..b", 2, "is not a name for a branch or a tag"),
    ("pull alice/m --revision ../x", 2, "is not a name for a branch or a tag"),
    ("import x.pth --labels nowhere.txt", 2, "nowhere.txt is no file"),
    ("finetune v --freeze res9", 2, "res4, backbone"),
    ("--show-completion bash", 0, "_NLZOO_COMPLETE"),
    *((f"{command} nowhere", 3, "nowhere does not exist") for command in ("eval m", "probe m", "check")),
    *(
        (f"{command} v", 3, "v is empty")
        for command in ("finetune", "eval m", "probe m", "compare", "bench m", "check")
    ),
    ("prepare nowhere out", 3, "nowhere does not exist"),
    ("eval m v --views 3", 2, "3"),
    ("predict m v --decoder vlc", 2, "there is no decoder"),
    ("probe m v --val 3/2", 2, "is no share, fold, group or folder"),
    ("check v --val 2.5", 2, "is no share"),
    ("report nothing", 2, "is not a run"),
    ("import nl5-i3d-r5", 2, "neither a file nor a pretrained model"),
    ("inflate nl5-i3d-r50-8x8 --nl 5", 2, "says itself"),
    ("inflate nl2-i3d-r50-8x8", 2, "1, 5, 10 non-local blocks"),
    ("pull no-slash", 2, "is not user/name"),
    ("pull m", 2, "m is here already"),
    ("pull https://hf.co/alice/waving", 2, "give it as alice/waving"),
    ("finetune v --recipe papr,epochs=3", 2, "did you mean paper?"),
    ("finetune v --recipe paper,epoch=3", 2, "did you mean epochs?"),
    ("finetune v --recipe bn=froozen", 2, "did you mean frozen?"),
    ("finetune v --recipe precision=BF16x", 2, "did you mean bf16"),
    ("finetune v --augment strng", 2, "did you mean strong?"),
    ("finetune v --augment flipp=no", 2, "did you mean flip?"),
    ("finetune v --augment crop=areas", 2, "did you mean area?"),
    ("finetune v --fps inf", 2, "fps is inf"),
    ("finetune v --from resnett50", 2, "nlzoo inflate resnet50 makes a model of that name"),
    ("finetune v --from nl5-i3d-r50-8x8", 2, "nlzoo inflate nl5-i3d-r50-8x8 makes a model of that name"),
    ("info NL5-i3d-r50-8x8.author", 2, "nlzoo import nl5-i3d-r50-8x8.authors makes a model of that name"),
    ("info ResNet18", 2, "nlzoo inflate resnet18 makes a model of that name"),
    ("import m", 2, "m is a model here already, and needs no import"),
    ("import NL5-I3D-R50-8x8.authors", 2, "near this: nl5-i3d-r50-8x8.authors"),
    ("inflate tiny --arch i3", 2, "did you mean i3d"),
    ("inflate tiny --init center", 2, "did you mean centre?"),
    ("inflate tiny --temporal-padding zero", 2, "did you mean zeros?"),
]


def test_training_does_not_import_the_compiler_which_takes_two_seconds(warm, tmp_path, nlzoo):
    """Colour, mixing, erasing and RandAugment are torchvision's, whose import would bring the compiler with it.

    The estimate of memory needs it, the first time; then it is known.
    """
    shutil.copytree(warm / "videos", tmp_path / "videos")
    shutil.copytree(warm / "weights", tmp_path / "weights")
    words = "finetune videos --from weights/start --epochs 1 --frames 4 --size 32 --batch 2 --device cpu --workers 0"
    words += " --augment strong,colour=0.4,mixup=0.4 --recipe precision=fp32"  # one kind of run, in both processes
    assert nlzoo(*words.split())[0] == 0
    assert imported(words, ("torchvision.tv_tensors", "torch._dynamo"), tmp_path)[-1] == "['torchvision.tv_tensors']"


def test_what_needs_no_network_imports_no_torch(tmp_path):
    """torch takes longer than all of these together; one process runs them one after the other."""
    net = model.build(ModelSpec("tiny", num_outputs=3))
    describe.count_folder(checkpoint.save_model(tmp_path / "weights" / "m", net), net)
    describe.count_named("nl1-c2d-r18-4x8", parse_name("nl1-c2d-r18-4x8"), 7)
    (tmp_path / "v" / "walk").mkdir(parents=True)
    runner = (
        "import contextlib, io, json, sys\n"
        "from nlzoo.cli.app import main\n"
        "for words in json.load(sys.stdin):\n"
        "    sys.argv, out, code = ['nlzoo', *words.split()], io.StringIO(), 0\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "        try:\n"
        "            main()\n"
        "        except SystemExit as stop:\n"
        "            code = stop.code\n"
        f"    heavy = [name for name in {HEAVY[:2]} + ('torchvision', 'scipy', 'sklearn') if name in sys.modules]\n"
        "    print(json.dumps([words, code, ' '.join(out.getvalue().split()), heavy]))\n"
    )
    asked = json.dumps([words for words, _, _ in TORCH_FREE])
    done = subprocess.run(
        [sys.executable, "-c", runner], cwd=tmp_path, input=asked, text=True, capture_output=True, timeout=120
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(TORCH_FREE), done.stderr
    for (words, wanted, text), (_, code, said, heavy) in zip(TORCH_FREE, answers, strict=True):
        assert code == wanted and text in said, (words, code, said)
        assert not heavy, (words, heavy)
