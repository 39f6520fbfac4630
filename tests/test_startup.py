"""What is imported when: the command line starts without torch, the library without transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tokenprune
from tokenprune import cli

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(cli.parser().commands)
#: What takes longest to import; sklearn comes with transformers' modelling code.
HEAVY = ("torch", "transformers", "numpy", "sklearn", "matplotlib", "rich", "huggingface_hub", "argcomplete")


def imported(code: str, *names: str) -> set[str]:
    """Those of the modules that a fresh process has imported after it has run the code."""
    shown = f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit: pass\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split()) & set(names)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], [], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_import_nothing_heavy(arguments):
    assert imported(f"from tokenprune.cli import main; main({arguments!r})", *HEAVY) == set()


@pytest.mark.parametrize(
    "arguments", [["demo", "--samples", "0"], ["bench", "--model", "x"], ["demo", "--keep", "x"], ["polices"]]
)
def test_an_error_that_needs_no_policy_imports_no_torch(arguments):
    assert imported(f"from tokenprune.cli import main; main({arguments!r})", "torch", "transformers") == set()


def test_the_package_itself_imports_nothing_heavy():
    assert imported("import tokenprune", *HEAVY) == set()
    assert imported("import tokenprune; tokenprune.__version__, dir(tokenprune), tokenprune.Keep", *HEAVY) == set()


def test_public_names_do_not_need_transformers():
    code = "from tokenprune import *; list_policies(); list_supported_models()"
    assert imported(code, *HEAVY) - {"numpy"} == {"torch"}


def test_no_command_imports_torch_at_its_top():
    """Whatever is reached from there: `eval` and `policies` are imported by functions."""
    for path in sorted((ROOT / "tokenprune" / "commands").glob("*.py")):
        code = f"import tokenprune.commands.{path.stem}".removesuffix(".__init__")
        assert imported(code, *HEAVY) == set(), path.name


def test_names_for_type_checkers_are_those_at_run_time():
    body = ast.parse((ROOT / "tokenprune/__init__.py").read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    checked = {(alias.name, node.module) for node in block.body for alias in node.names}
    assert checked == set(tokenprune._MODULES.items())
    assert {name for name, _ in checked} == set(tokenprune.__all__) - {"__version__"}


def test_names_are_found_in_every_way():
    code = """
import pydoc, tokenprune
assert set(tokenprune.__all__) <= set(dir(tokenprune))
text = pydoc.render_doc(tokenprune, renderer=pydoc.plaintext)
assert "apply_pruning(" in text and "class Record" in text
assert tokenprune.policies.registry() and tokenprune.ops.topk_select and tokenprune.patches.Pruner
assert tokenprune.apply_pruning is tokenprune.api.apply_pruning
try:
    tokenprune.nope
except AttributeError as error:
    assert str(error) == "module 'tokenprune' has no attribute 'nope'"
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
