"""What a repository says of itself on the Hub: the block of YAML above a model card, and the three files of a Space."""

import importlib.metadata
import json
import re

import huggingface_hub

from .. import __version__
from ..core.model_spec import ModelSpec
from ..networks import card
from ..networks.hub_client import Repo

TRANSFORMERS_FILES = (  # that `export` writes for it, the weights first
    *("model.safetensors", "config.json", "README.md", "video_preprocessor_config.json", "usage.py"),
    *("network_nlzoo.py", "modeling_nlzoo.py", "video_nlzoo.py", "video_processing_nlzoo.py"),
)
SPACE_FILES = ("app.py", "requirements.txt", "README.md")
GRADIO, PYTHON = "6.31.0", "3.11"  # that a Space runs on; what the tests run with
_LICENCES = """
    apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0
    cc-by-nc-nd-4.0 gpl-3.0 lgpl-3.0 openrail unlicense
"""
_APP = '''"""The page of {model}, as `nlzoo push --space` wrote it; the next one writes it again."""

import nlzoo
from nlzoo.apps import serve
from nlzoo.training import devices

serve.serve(nlzoo.load("{model}"), devices.resolve(None), host="0.0.0.0", port=7860, name="{model}")
'''
_SPACE_CARD = """---
{yaml}
---

# {name}

Drop a video on the page, and see what the model [{model}]({url}) predicts for it, when, and the evidence for the
prediction. Made with nlzoo; videos are removed as soon as they are answered.
{limits}
If the model is private, the Space needs a secret `HF_TOKEN` that may read it.
"""
_NO_COMMERCE = "\nThe weights that its model was trained from are {}: no commercial use, of this page either.\n"


def readme(text: str, repo: str, spec: ModelSpec, metrics: dict, library: str = "nlzoo") -> str:
    """The README.md of a model folder as it is on the Hub: searchable facts and figures in YAML, then the text.

    A folder that was pulled has the block of its last push, which is replaced; the rest is kept to the letter.
    """
    results = _eval_results(spec, metrics)
    licence = _licence(spec.licence)
    data = huggingface_hub.ModelCardData(
        library_name=library,
        pipeline_tag="video-classification",
        base_model=f"timm/{spec.backbone}" if "." in spec.backbone else None,
        tags=["nlzoo", "non-local"] if spec.non_local else ["nlzoo"],
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        eval_results=results or None,
        model_name=repo.rpartition("/")[2] if results else None,
    )
    own = re.sub(r"\A---\n.*?\n---\n\n?", "", text, count=1, flags=re.DOTALL)
    return f"---\n{data.to_yaml()}\n---\n\n{card.addressed(own, repo)}"


def space(repo: Repo, spec: ModelSpec) -> dict[str, str]:
    """`SPACE_FILES` of the page for the model of the same name.

    Nothing in them is of this machine but the place that nlzoo was installed from, where that is a public one.
    """
    model, name = repo.name, repo.name.rpartition("/")[2]
    licence = _licence(spec.licence)
    data = huggingface_hub.SpaceCardData(
        title=name,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        models=[model],
        tags=["nlzoo", "video-classification"],
        license=licence.get("license"),
        license_name=licence.get("license_name"),
    )
    limits = _NO_COMMERCE.format(card.escape(spec.licence)) if "-nc" in spec.licence.lower() else ""
    text = _SPACE_CARD.format(yaml=data.to_yaml(), name=name, model=model, url=Repo(model).url, limits=limits)
    return {"app.py": _APP.format(model=model), "requirements.txt": f"{_requirement(spec)}\ntorch\n", "README.md": text}


def _requirement(spec: ModelSpec) -> str:
    """What a Space asks pip for: this version, or the commit at a public git address that it came from (PEP 610)."""
    extras = "serve,flow" if spec.clip.stream.startswith("flow") else "serve"
    try:
        origin = json.loads(importlib.metadata.distribution("nlzoo").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:  # a checkout that nobody installed
        origin = {}
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    if re.fullmatch(r"https://[\w.\-/]+ [0-9a-f]{40}", f"{origin.get('url')} {commit}"):
        return f"nlzoo[{extras}] @ git+{origin['url']}@{commit}"
    return f"nlzoo[{extras}]=={__version__}"


def _licence(licence: str) -> dict[str, str]:
    if not licence:
        return {}
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")[:60]
    return {"license": slug} if slug in _LICENCES.split() else {"license": "other", "license_name": slug or "unknown"}


def _eval_results(spec: ModelSpec, metrics: dict) -> list[huggingface_hub.EvalResult]:
    names = {"top1": "top-1 accuracy", "map": "mean average precision", "top5": "top-5 accuracy"}
    results = []
    for key, name in names.items():
        value = card.number(metrics.get(key))
        if value is not None and (key != "top5" or spec.num_outputs > 5):
            result = huggingface_hub.EvalResult(
                task_type="video-classification",
                dataset_type="own",
                dataset_name="validation videos of the author's own",
                metric_type="mAP" if key == "map" else "accuracy",
                metric_name=f"{name}, on the videos that chose the epoch",
                metric_value=round(value, 4),
            )
            results.append(result)
    return results
