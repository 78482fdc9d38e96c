"""The shape of the program: imports point one way, modules stay small, the command line alone speaks, starting is cheap."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "estimator"

# Layers in the direction the data flows, each with its modules and the layers that it may import besides itself (docs/design.md).
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "values": (
        {"job", "errors", "paths", "gpus", "gpu_catalogue", "overlay", "overlay_file", "overlays", "estimate", "residual", "crash",
         "checked", "kernels", "dtypes", "recipes"}, set(),
    ),
    "files": ({"tree", "yamltext", "jsontext", "configfile"}, {"values"}),
    "profiles": (
        {"profiles", "features", "arrays", "archive", "heads", "footprint", "program", "programs", "reductions", "optimizer_rules",
         "optimizers",
         "derived_weights", "rebuilt_weights", "rebuilt_loading", "rebuilt_swap", "rebuilt_profile", "parameters", "whole_profile",
         "recipe_uses", "recipe_moves", "recipe_profile", "attention_parts",
         "whole_ema", "unsaved_lives", "archs", "experts", "core_rules", "loss_weights", "lora_merging", "edited", "references",
         "rewriting", "unassisted", "frequencies", "wan_text", "offload", "whole_filtered", "whole_frozen", "whole_guidance",
         "whole_quantised", "whole_quanto", "texted",
         "offload_left", "offload_loading", "layer_calls", "workloads",
         "offload_programs", "offload_slots", "offload_choice", "offload_profile", "offload_rows", "offload_rounds", "offload_beside",
         "kronecker",
         "adapter_sites", "dora_forward", "dora_parts", "dora_previews", "dora_profile", "dora_programs",
         "frozen_layers", "frozen_beginning", "filtered_backward",
         "filtered_edit", "filtered_flow", "filtered_programs", "filtered_profile", "preservation", "forward_pass",
         "guided_step", "job_profile", "laying", "lokr_programs", "lokr_profile", "lokr_merging", "dropout_programs", "dropout_profile",
         "tokens", "controls", "padded", "asked", "stays", "shared", "unrecorded", "levels", "convolved", "recorded_beside",
          "typed_profile"},
        {"values", "files"},
    ),
    "reading": ({"buckets", "datasets", "videos", "remembered", "trainers"}, {"values", "files", "profiles"}),
    "driver": ({"nvml"}, set()),
    "replay": ({"allocator", "allocator_state", "allocator_expandable", "allocator_compiled"}, set()),
    "model": (
        {"operations", "batches", "sizes", "phases", "prompts", "wan", "wan22", "wan_5b", "wan_i2v", "edit", "flux2", "flex2", "pixels",
         "ltx2", "hidream", "omnigen2", "lumina2", "unet", "steponly", "plans", "passes", "replay", "rows", "beginnings", "part_events",
         "grid", "rows_grid", "timeline", "residents", "positions", "windows", "tuned"},
        {"values", "profiles", "replay"},
    ),
    "engine": ({"engine", "outside", "intervals", "drift", "host"}, {"values", "profiles", "replay", "model"}),
    "advice": ({"advice"}, {"values", "profiles", "engine"}),
    "planning": ({"planner"}, {"values", "files", "profiles", "reading", "model", "engine"}),
    "log": ({"diagnosis"}, {"values", "files", "reading", "advice"}),
    "screen": ({"screen", "report", "report_lists", "report_words", "report_diagnosis", "jsonout", "jsondiagnosis"}, {"values"}),
    "screen of plans": ({"report_plan", "report_walk", "jsonplan"}, {"values", "planning", "screen"}),
    "watching": ({"watching"}, {"values", "driver", "log", "screen"}),
    "pictures": ({"plots"}, {"values", "model", "engine", "planning", "screen"}),
    "commands": (
        {"commands"},
        {
            "values", "files", "profiles", "reading", "replay", "model", "engine", "advice", "planning", "log", "screen", "screen of plans",
            "pictures", "driver", "watching",
        },
    ),
    "command line": ({"cli", "__main__"}, {"values", "screen", "commands"}),
}
# A class that makes an instance of its own subclass, at call time.
FACTORIES = {("allocator", "allocator_expandable")}

FORBIDDEN = {"torch", "pandas", "matplotlib", "diffusers", "transformers", "numba", "scipy", "calibration"}
MAX_LINES, MAX_LINES_OF_FUNCTION = 300, 40
# Longer than that, and why
LONG = {"estimator/allocator.py run": "the hot loop of a replay, in local names: a call for each event costs more than the event"}


def modules(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "build" not in p.relative_to(folder).parts)


def name_of(path: Path) -> str:
    """The dotted name below the package: "cli", "trainers.aitoolkit", "trainers" for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of everything that the module imports, at its top and inside functions alike; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import; write the full name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


NAMES = {name_of(p): p for p in modules(PACKAGE)}


def internal_imports(name: str) -> set[str]:
    """The package's own modules that a module imports."""
    found = {n.removeprefix("estimator.") for n in imports(NAMES[name]) if n.startswith("estimator.")}
    return {n for n in found if n in NAMES} - {name}


def layer_of(name: str) -> str:
    top = name.split(".")[0]
    for layer, (members, _) in LAYERS.items():
        if top in members:
            return layer
    raise AssertionError(f"estimator.{name} is in no layer: decide where it belongs and write it into LAYERS and docs/design.md")


def test_imports_go_only_where_the_layers_allow() -> None:
    backwards = []
    for name in filter(None, NAMES):
        own = layer_of(name)
        allowed = LAYERS[own][1] | {own}
        backwards += [
            f"{name} ({own}) imports {other} ({layer_of(other)})" for other in internal_imports(name) if layer_of(other) not in allowed
        ]
    assert not backwards


def test_layers_are_listed_in_an_order_without_back_references() -> None:
    seen: set[str] = set()
    for layer, (_, below) in LAYERS.items():
        assert below <= seen, f"{layer} may import {below - seen}, which stands after it"
        seen.add(layer)


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: {o for o in internal_imports(name) if (name, o) not in FACTORIES} for name in NAMES}
    for name, others in graph.items():
        # A package and its modules: importing trainers.x runs trainers/__init__, which may import trainers.x.
        graph[name] = {o for o in others if not name.startswith(f"{o}.")}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
    assert set(order) == set(NAMES)


def test_declared_factories_exist() -> None:
    assert all(child in internal_imports(parent) for parent, child in FACTORIES)


def test_nothing_heavy_and_no_calibration_in_the_product() -> None:
    """Not even inside a function, except that `estimate calibrate` hands over to calibration."""
    found = {(name, top) for name, path in NAMES.items() for top in {n.split(".")[0] for n in imports(path)} & FORBIDDEN}
    assert found <= {("commands.calibrate", "calibration")}


def test_modules_are_short() -> None:
    lengths = {
        str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules(PACKAGE) + modules(ROOT / "calibration")
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function and method, and how many lines it has with its decorators and its docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min((node.lineno, *(decorator.lineno for decorator in node.decorator_list)))
            yield f"{path.relative_to(ROOT).as_posix()} {node.name}", (node.end_lineno or first) - first + 1


def test_functions_are_short() -> None:
    lengths = dict(found for path in modules(PACKAGE) + modules(ROOT / "calibration") for found in functions(path))
    assert {name for name, lines in lengths.items() if lines > MAX_LINES_OF_FUNCTION} == set(LONG)


def test_only_the_command_line_speaks() -> None:
    """Neither print nor the standard streams nor a rich console that writes to them, in any other module."""
    speakers = []
    for name, path in NAMES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="print" | "input")):
                    speakers.append(f"{name}:{node.lineno}")
                case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "stdin" | "exit"):
                    speakers.append(f"{name}:{node.lineno}")
    assert [s for s in speakers if s.split(":")[0] not in {"cli", "__main__"}] == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["gpus"], ["archs"]])
def test_starting_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "estimator", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "estimator" in imported
    assert not imported & FORBIDDEN
