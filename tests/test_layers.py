"""Imports point down. The table below is the architecture; a module whose name it lacks has to be given a place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A name that ends in a dot is a folder and covers every module in it. "" is the package itself.
LAYERS = (
    ("types", "tables", "symmetries", "context_masking", "views", "registry", "precision", "paths", "two_rooms"),
    ("losses.", "quantizers.", "latent_norm", "diagnostics", "moments", "pair_diagnostics", "bootstrap"),
    (
        "modules",
        "representation",
        "encoders.",
        "context",
        "predictors",
        "controls",
        "dynamics",
        "decoders",
        "planning",
        "navigation",
    ),
    ("objectives.",),
    (
        "state",
        "train_step",
        "gradients",
        "history",
        "flight_recorder",
        "early_stopping",
        "curriculum",
        "stopwatch",
        "backend",
        "optimizer",
        "checkpoint",
        "checkpoint_files",
        "metrics",
        "run_folder",
        "scorers",
        "probe",
        "image_probe",
        "planning_probe",
        "probe_rows",
        "program_probe",
        "program_scorers",
        "evaluation",
        "encoded_files",
        "code_tokens",
        "code_rules",
        "findings",
        "checkpoint_choice",
        "findings_latents",
        "findings_losses",
        "findings_record",
        "findings_rollouts",
        "findings_rules",
        "findings_training",
        "launch",
        "suite_statistics",
        "report_run",
        "report_curves",
        "report_figures",
        "report_page",
        "report_panels",
        "report_probes",
        "report_strips",
        "data.",
    ),
    (
        *("main", "train", "parts", "start", "profiling", "config_checks", "dry_run"),
        *("seeds", "suites", "ablation", "suite_summary", "suite_report"),
        *("cache", "encode", "codes", "probes", "doctor", "replay", "report", "report_gallery", "report_rollouts", ""),
    ),
)
READERS_OF_CONFIGS = (
    *("main", "train", "parts", "start", "config_checks", "dry_run", "seeds", "suites"),
    *("cache", "encode", "codes", "probes", "replay", "report_gallery", "report_rollouts"),
)
# Of clu, these three import TensorFlow.
NEVER = ("tensorflow", "torch", "clu.metric_writers", "clu.periodic_actions", "clu.checkpoint")


def name_of(path: Path) -> str:
    """`jepa/losses/sigreg.py` -> "losses.sigreg"; `jepa/losses/__init__.py` -> "losses."; `jepa/__init__.py` -> ""."""
    parts = path.relative_to(ROOT / "jepa").with_suffix("").parts
    return ".".join(parts) if parts[-1] != "__init__" else "".join(f"{part}." for part in parts[:-1])


FILES = {name_of(path): path for path in sorted((ROOT / "jepa").rglob("*.py"))}


def layer(module: str) -> int:
    """The layer of a module; ValueError when the table has no place for it."""
    place = module[: module.index(".") + 1] if "." in module else module
    for number, names in enumerate(LAYERS):
        if place in names:
            return number
    raise ValueError(f"jepa module {module!r} has no layer: add it to LAYERS in tests/test_layers.py")


def imported(source: str) -> set[str]:
    """Every dotted name that the source imports anywhere, functions included; `from a import b` is a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def module_of(name: str) -> str:
    """The module of the library an imported name belongs to: "jepa.losses.sigreg.sigreg" -> "losses.sigreg"."""
    _, first, second, *_ = (*name.split("."), "", "")
    if any(f"{first}." in names for names in LAYERS):
        return f"{first}.{second}"
    # Neither a file nor in the table: a name that the package itself defines, as in `from jepa import load`.
    return first if first in FILES or any(first in names for names in LAYERS) else ""


def faults(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module, one sentence each."""
    here, found = layer(module), []
    for name in sorted(imported(source)):
        if name.startswith("."):
            found.append(f"{module} imports {name}: write the absolute name")
        elif within(name, "jepa") and layer(module_of(name)) > here:
            there = layer(module_of(name))
            found.append(f"{module} (layer {here}) imports {name} (layer {there}): imports only point down")
        elif any(within(name, package) for package in NEVER):
            found.append(f"{module} imports {name}, which the library does without")
        elif here <= 1 and within(name, "flax"):
            found.append(f"{module} (layer {here}) imports {name}: layers 0 and 1 are pure jnp")
        elif within(name, "ml_collections") and module not in READERS_OF_CONFIGS:
            found.append(f"{module} imports {name}: only {', '.join(READERS_OF_CONFIGS)} know a ConfigDict")
    return found


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_layer_and_imports_only_down(module):
    assert faults(module, FILES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses.sigreg", "from jepa.encoders import objects"),
        ("losses.sigreg", "from jepa.modules import Block"),
        ("losses.sigreg", "import flax.linen as nn"),
        ("diagnostics", "def spectrum():\n    from flax import linen"),
        ("types", "import jepa"),
        ("types", "import jepa.losses"),
        ("state", "from jepa import train"),
        ("objectives.lejepa", "from jepa.train_step import train_step"),
        ("optimizer", "import ml_collections"),
        ("checkpoint", "from ml_collections import ConfigDict"),
        ("metrics", "from clu import metric_writers"),
        ("train", "import torch.nn"),
        ("encoders.objects", "from ..modules import Block"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diagnostics", "from jepa.losses.sigreg import sigreg"),
        ("data.arc", "from jepa.data import _objects"),
        ("train", "import ml_collections\nfrom jepa import registry"),
        ("metrics", "from clu import metrics, parameter_overview"),
        ("modules", "import flax.linen as nn"),
        ("", "from jepa.encode import load"),
    ],
)
def test_an_allowed_import_is_not(module, source):
    assert faults(module, source) == []


COLLECTIVE = re.compile(r"\b(p(sum|mean|max|min)\w*|all_(gather|to_all)|ppermute|axis_(name|index)|pmap|shard_map)\b")


@pytest.mark.parametrize(
    "module", [m for m in FILES if m.startswith(("losses.", "quantizers.", "objectives.")) or m == "train_step"]
)
def test_no_loss_knows_of_devices(module):
    assert COLLECTIVE.findall(FILES[module].read_text(encoding="utf-8")) == []


def test_a_collective_is_found():
    for source in ("jax.lax.pmean(x, 'batch')", "f(x, axis_name='i')", "jax.lax.all_gather(z)", "jax.shard_map(f)"):
        assert COLLECTIVE.search(source), source


def test_a_module_of_an_unknown_name_is_asked_for_its_layer():
    with pytest.raises(ValueError, match="'utils' has no layer"):
        layer("utils")


# A folder of somebody's machine, or the parent of the repository. A user's cache, under ~, may be a default.
OUTSIDE = re.compile(r"(?<![\w.:/>}-])/(?:home|root|work|tmp|opt|mnt|Users|scratch|data)\b|(?<!\.)\.\./")
TEXTS = [
    path
    for pattern in ("*.toml", "*.md", "*.txt", "*.lock", ".ci/*", "{}/**/*.py", "{}/**/*.md")
    for folder in ("jepa", "configs", "tests", "experiments")
    for path in ROOT.glob(pattern.format(folder))
    if path.is_file()
]


@pytest.mark.parametrize("path", sorted({str(path.relative_to(ROOT)) for path in TEXTS}))
def test_no_file_mentions_a_path_outside_the_repository(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert [match.group() for match in OUTSIDE.finditer(text)] == []


def test_a_path_outside_the_repository_is_found():
    for path in ("/" + "home/me/arc", "open('/" + "tmp/x')", "." + "./arc"):
        assert OUTSIDE.search(path), path
    for path in ("runs/lejepa", "a/data/b", "$dir/tmp", "https://arxiv.org/abs/2511.08544", "..."):
        assert not OUTSIDE.search(path), path


@pytest.mark.parametrize("path", ["constraints.txt", "requirements.lock"])
def test_pins_name_no_host_and_no_folder(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text and "--find-links" not in text


def test_constraints_and_lock_pin_the_same_versions():
    lock = re.findall(r"^(\w\S*==.*?) *\\$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), flags=re.M)
    assert lock == (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
