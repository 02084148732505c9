"""The rooms of the house: who may import whom, checked in the sources, and the check shown able to fail."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "lm_trials"

# What each room may import of this package, at any depth; what stands at the root any room may import.
ROOT = {"console", "estimates", "files", "flags", "hub_errors", "run_data", "run_fields", "shared_flags", "snapshots"}
DATA = {"stories", "tokens", "protocols", "pairs", "data"}
ROOMS = {
    "stories": set(),
    "tokens": {"stories"},
    "protocols": {"stories", "tokens"},
    "pairs": {"stories", "tokens", "protocols"},
    "data": DATA,
    "models": DATA,
    "evaluation": DATA | {"models"},
    "latent_city": DATA | {"models", "evaluation"},
    "rewards": DATA | {"models", "evaluation", "metrics"},
    "training": DATA | {"models", "evaluation", "metrics", "rewards", "reporting"},
    "probing": DATA | {"models", "evaluation", "latent_city", "metrics", "training", "trials", "reporting"},
    "metrics": DATA | {"models", "evaluation", "reporting"},
    "reporting": set(),
    "trials": {"reporting", "cli"},  # it runs programs by their names
    "dashboard": DATA | {"models", "evaluation", "metrics", "training", "reporting", "trials"},
}
ROOMS["commands"] = {*ROOMS, "cli"}
TORCH = {"torch", "evaluate", "peft", "trl", "accelerate"}
# What a room may not import from outside: (anywhere, at import time).
FORBIDDEN = {
    **dict.fromkeys(DATA, (set(), TORCH)),
    "reporting": ({"torch", "transformers", "accelerate", "peft", "trl"}, set()),
    "trials": ({"torch", "transformers", "accelerate", "peft", "trl"}, set()),
    "dashboard": (set(), TORCH | {"transformers", "datasets"}),  # the playground loads a model when it is used
}
SCRIPTS = ("train_gpt2", "sft_lora", "align_lora", "eval_checkpoint", "prepare_tinystories", "cache_datasets")


def imports(source: str) -> list[tuple[str, bool]]:
    """Return each imported module and whether importing the file imports it."""
    found = []

    def visit(node, at_import):
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.append((child.module or "", at_import))
                found.extend((f"{child.module}.{alias.name}", at_import) for alias in child.names)
            visit(child, at_import and not inside and not typing_only)

    visit(ast.parse(source), True)
    return found


def breaches(room: str, source: str) -> list[str]:
    """Name each import that a file of `room` may not have."""
    allowed = {f"lm_trials.{name}" for name in ROOMS[room] | ROOT | {room}} | {"lm_trials"}
    anywhere, at_import_only = FORBIDDEN.get(room, (set(), set()))
    found = []
    for module, at_import in imports(source):
        top = ".".join(module.split(".")[:2])
        if module.startswith("lm_trials.") and top not in allowed:
            found.append(module)
        if module.split(".")[0] in SCRIPTS:
            found.append(module)
        if module.split(".")[0] in anywhere or (at_import and module.split(".")[0] in at_import_only):
            found.append(module)
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(file):
    room = file.relative_to(PACKAGE).parts[0]
    if room.endswith(".py"):  # the package's root imports nothing of the rooms
        assert [name for name, _ in imports(file.read_text()) if name.split(".")[1:2] and
                name.startswith("lm_trials.") and name.split(".")[1] in ROOMS] == []  # fmt: skip
    else:
        assert breaches(room, file.read_text()) == []


def test_every_room_is_known():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("stories", "import torch"),
        ("tokens", "from lm_trials.models.shapes import build_model"),
        ("stories", "def f():\n    from lm_trials.evaluation import losses"),
        ("reporting", "def f():\n    import torch.nn"),
        ("trials", "def f():\n    import torch"),
        ("trials", "from lm_trials.evaluation.results import write_json"),
        ("models", "import lm_trials.training.plan"),
        ("evaluation", "from lm_trials import training"),
        ("training", "from train_gpt2 import main"),
    ],
)
def test_a_breach_is_seen(room, source):
    assert breaches(room, source) != []


def test_what_is_allowed_is_no_breach():
    assert breaches("stories", "def f():\n    import torch") == []
    assert breaches("training", "import torch\nfrom lm_trials.tokens import blocks") == []


PROGRAMS = [*sorted((PACKAGE / "commands").glob("[a-z]*.py")), *sorted((PACKAGE / "probing").glob("*/probe.py"))]


def test_scripts_are_the_programs_and_nothing_else():
    scripts = [REPOSITORY / f"{script}.py" for script in SCRIPTS] + sorted((REPOSITORY / "probes").glob("[a-z]*.py"))
    programs = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in PROGRAMS}
    assert len(scripts) == len(programs) - 1 > 12  # the demo has no script
    for script in scripts:
        (module, _), (name, _) = imports(script.read_text())
        assert module in programs
        assert name == f"{module}.main"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_a_program_does_nothing_heavy(program):
    """In this process torch may be there already, so look at the sources: nothing heavy at import time."""
    at_import = {name for name, now in imports(program.read_text()) if now}
    assert {name.split(".")[0] for name in at_import} & {"torch", "transformers", "datasets", "accelerate"} == set()
    assert at_import & {"lm_trials.training.trainer", "lm_trials.models.shapes"} == set()


# Kinds of data sets are told apart where they are written and in `data`, nowhere else.
KINDS = {"is_set", "is_corpus", "is_pairs"}


def asks_for_the_kind(source: str) -> bool:
    """Whether a file imports what tells a protocol set, a corpus and pairs apart."""
    return bool({name.rsplit(".", 1)[-1] for name, _ in imports(source)} & KINDS)


def test_one_place_knows_what_a_name_of_a_data_set_means():
    asking = {file.parent.name for file in PACKAGE.rglob("*.py") if asks_for_the_kind(file.read_text())}
    assert asking <= {"stories", "protocols", "pairs", "data"}
    assert "data" in asking
    assert asks_for_the_kind("def f():\n    from lm_trials.stories.corpora import is_corpus")


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules of `sources` that each of them imports, at any depth and for type checking too."""
    return {
        name: {module for module, _ in imports(source)} & (sources.keys() - {name}) for name, source in sources.items()
    }


def circle(graph: dict[str, set[str]]) -> tuple[str, ...] | None:
    """Return one circle of a graph of imports, or None where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return None


def test_no_module_imports_itself_through_others():
    files = {file: file.relative_to(REPOSITORY).with_suffix("").parts for file in PACKAGE.rglob("*.py")}
    names = {file: ".".join(parts).removesuffix(".__init__") for file, parts in files.items()}
    assert circle(import_graph({name: file.read_text() for file, name in names.items()})) is None


def test_no_room_imports_itself_through_others():
    assert circle({room: allowed - {room} for room, allowed in ROOMS.items()}) is None


@pytest.mark.parametrize(
    "back",
    ["import lm_trials.a", "def f():\n    from lm_trials import a", "if TYPE_CHECKING:\n    from lm_trials.a import A"],
)
def test_a_circle_is_seen(back):
    sources = {"lm_trials.a": "from lm_trials.b import x", "lm_trials.b": "import lm_trials.c", "lm_trials.c": back}
    assert set(circle(import_graph(sources))) == sources.keys()
    assert circle(import_graph(sources | {"lm_trials.c": "import lm_trials.d"})) is None


# What no file by its own name does: behaviours across modules, and folders or pages as a whole.
BEHAVIOURS = {
    "evaluation/test_document_leak.py",
    "models/test_damage.py",
    "models/test_families.py",
    "models/test_model_folders.py",
    "probes/test_probes.py",
    "probing/test_other_families.py",
    "probing/test_probe_nulls.py",
    "probing/test_subject_texts.py",
    "protocols/test_set_commands.py",
    "stories/test_seeded_maps.py",
    "test_accelerate_configs.py",
    "test_advice.py",
    "test_devices.py",
    "test_any_flags.py",
    "test_extending.py",
    "test_families.py",
    "test_published_commands.py",
    "test_readme.py",
    "test_structure.py",
    "test_tuned_families.py",
    "training/test_alignment_exact.py",
    "training/test_diverged.py",
    "training/test_eos_is_trained.py",
    "training/test_evaluate_first.py",
    "training/test_killed_runs.py",
    "training/test_packing_leak.py",
    "training/test_same_examples.py",
    "training/test_sharded.py",
    "training/test_streaming_runs.py",
    "training/test_tuning_exact.py",
    "training/test_two_at_once.py",
    "trials/test_tuning_arms.py",
}


def unplaced(tests: set[str]) -> set[str]:
    """Return the test files that mirror neither a module nor a script and are no named behaviour."""
    roots = (
        PACKAGE,
        REPOSITORY,
    )  # tests/tokens/test_order.py is of lm_trials/tokens/order.py, tests/probes/ of probes/
    modules = {name: Path(name).with_name(Path(name).name.removeprefix("test_")) for name in tests}
    mirrored = {name for name, module in modules.items() if any((root / module).exists() for root in roots)}
    return tests - mirrored - BEHAVIOURS


def test_each_test_file_has_the_place_and_name_of_what_it_tests():
    tests = Path(__file__).parent
    found = {str(path.relative_to(tests)) for path in tests.rglob("test_*.py")}
    assert unplaced(found) == set()
    assert found >= BEHAVIOURS  # none is named that is gone
    assert len(found - BEHAVIOURS) > 50


def test_a_test_file_in_another_place_is_seen():
    right, wrong = "tokens/test_order.py", "tokens/test_orders.py"
    moved, below = "training/test_order.py", "tokens/streams/test_order.py"
    assert unplaced({right, wrong, moved, below, "probes/test_lens.py"}) == {wrong, moved, below}
