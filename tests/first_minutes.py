"""Types the README into a new environment, as a newcomer would: `python -m tests.first_minutes WHEEL`.

The wheel is installed into a new virtual environment, with what it depends on and nothing else. Then the README's
blocks are run there, in an empty folder, and what they print is checked. `TYPED` says how lines are typed and what is
checked, `NOT_TYPED` which blocks are not run, and why; a test fails if a block of the README is in neither.

The README names a checkpoint of the hub and a picture. The folder has both beforehand: `from_pretrained` and `--model`
take the relative path `llava-hf/llava-1.5-7b-hf`, where the embedded LLaVA is saved, and `cat.jpg` is a drawn scene.
Commands that would take long get options that make them shorter.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKPOINT = "llava-hf/llava-1.5-7b-hf"


@dataclass(frozen=True)
class Typed:
    """How a line of a block is typed, and what has to come of it.

    Attributes:
        more: options that are added so that it takes less time, or None: it is typed as it is.
        instead: what is typed in its place.
        prints: regular expressions that its output matches.
        status: its exit status.
        makes: files that it writes.
    """

    more: str = ""
    instead: str | None = None
    prints: tuple[str, ...] = ()
    status: int = 0
    makes: tuple[str, ...] = ()


#: Lines of shell blocks, by how they begin.
TYPED: dict[str, Typed] = {
    "tokenprune demo": Typed(prints=(r"600 held-out questions",), makes=("out/demo.png",)),
    "tokenprune bench --policy auto,divprune --keep 0.25,0.1                 #": Typed(
        "--samples 8", prints=("auto", "divprune"), makes=("out/bench/results.csv",)
    ),
    "tokenprune bench --policy auto,divprune --keep 0.25,0.1 --model qwen": Typed(
        "--samples 2 --tasks attribute,pair", prints=("auto",), makes=("out/bench/results.csv",)
    ),
    f"tokenprune profile --model {CHECKPOINT}": Typed("--rounds 2", prints=("divprune", "prefill")),
    "tokenprune profile --config llava-1.5-7b --layers 2": Typed(
        "--rounds 1 --keep 0.1 --new-tokens 2", prints=("divprune", "prefill")
    ),
    f"tokenprune show --model {CHECKPOINT}": Typed(makes=("out/show.png",)),
    "tokenprune play": Typed(prints=(r"pip install '\.\[play\]'",), status=2),  # the extra is not there
    "tokenprune eval": Typed(prints=(r"pip install '\.\[eval\]'",), status=2),  # likewise
    "tokenprune report": Typed(instead="tokenprune report --bench out/bench --no-gallery", makes=("out/report.html",)),
}
#: Blocks that are not run, by how they begin, and why.
NOT_TYPED = {
    "make demo": "`tokenprune demo` is typed below; `make test` is what runs beside this",
    "git clone": "the wheel that is installed here is made of this tree",
    "                   600 held-out questions": "output, which is compared with that of `tokenprune demo`",
    "TOKENPRUNE_POLICY=divprune": "tests/vllm starts a server, in an environment of its own",
}
#: What the Python blocks take for granted, by how the block begins: code before it.
BEFORE = {
    "from tokenprune import expand_logits": f"""
from transformers import AutoProcessor
from tokenprune import remove_pruning
import torch
from PIL import Image
processor = AutoProcessor.from_pretrained("{CHECKPOINT}")
message = {{"role": "user", "content": [{{"type": "image", "image": Image.open("cat.jpg")}},
                                        {{"type": "text", "text": "How many shapes are there?"}}]}}
inputs = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=True, return_dict=True,
                                       return_tensors="pt")
labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
criterion = lambda logits, labels: torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
remove_pruning(model)
stock = model(**inputs).logits
apply_pruning(model, "divprune", keep=0.1)
""",
}
#: Code after a Python block, which checks what came of it.
AFTER = {
    "from transformers import": """
assert "device_map" not in model.config.to_dict() and pruning_status_of(model) is not None
""",
    "from tokenprune import expand_logits": """
assert torch.isfinite(loss) and logits.shape == stock.shape and outputs.logits.shape[1] < stock.shape[1]
assert pruning_status(model) is None and torch.equal(model(**inputs).logits, stock)
""",
    "from dataclasses import dataclass": """
model(**inputs)
assert [record.n_after for record in pruning_report(model)] == [29], pruning_report(model)
""",
}
PRELUDE = """
def pruning_status_of(model):
    from tokenprune import pruning_status
    return pruning_status(model)
"""


@dataclass
class Block:
    """A block of code of a page: its language, empty for the shell, and its text."""

    language: str
    text: str
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = [line for line in self.text.splitlines() if line.strip()]

    def reason(self) -> str | None:
        """Why the block is not run, if it is not."""
        return next((why for start, why in NOT_TYPED.items() if self.lines[0].startswith(start)), None)

    def untold(self) -> list[str]:
        """Lines of which nothing says whether they are run."""
        if self.reason() is not None or self.language == "python":
            return []
        return [line for line in self.lines if how(line) is None]


def how(line: str) -> Typed | None:
    """How a line is typed: the entry of `TYPED` with the longest beginning."""
    found = [start for start in TYPED if line.startswith(start)]
    return TYPED[max(found, key=len)] if found else None


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a Markdown page."""
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S)]


class Newcomer:
    """A folder, and an environment with the wheel and what it depends on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder / "work", folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self.environment["PATH"] = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        self.failures = self.passed = 0

    def install(self, wheel: Path) -> None:
        """Make the environment, unless the folder has one from a run before."""
        if (self.bin / "tokenprune").exists():
            return
        self.run("the environment", [sys.executable, "-m", "venv", str(self.bin.parent)])
        pip = [str(self.bin / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
        self.run("the wheel, installed", [*pip, str(wheel.resolve())])
        prepare = f"""
import shutil
from PIL import Image
import tokenprune
from tokenprune.eval.minivlm import WEIGHTS
from tokenprune.eval.minivlm.scenes import SEEDS, draw_scene
assert {str(ROOT)!r} not in tokenprune.__file__, tokenprune.__file__
shutil.copytree(WEIGHTS["llava"], {CHECKPOINT!r})
Image.fromarray(draw_scene(SEEDS["test"]).image).save("cat.jpg", quality=95)
"""
        self.run("checkpoint and picture", [str(self.bin / "python"), "-c", prepare])

    def run(self, name: str, command: list[str] | str, expected: Typed | None = None) -> str:
        """Run a command and check what comes of it; report its time, and what is wrong."""
        expected, start = expected or Typed(), time.monotonic()
        done = subprocess.run(
            command if isinstance(command, list) else ["bash", "-c", command],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wrong = [f"no {file}" for file in expected.makes if not (self.folder / file).is_file()]
        wrong += [f"nothing printed matches {what!r}" for what in expected.prints if not re.search(what, done.stdout)]
        if done.returncode != expected.status:
            wrong.append(f"exit status {done.returncode} instead of {expected.status}")
        if expected.status and len(done.stdout.strip().splitlines()) != 1:
            wrong.append("more than one line of an error")
        print(f"{'FAILED' if wrong else 'ok':7}{time.monotonic() - start:5.0f} s  {name}", flush=True)
        if wrong:
            print("\n".join([*wrong, "it printed:", done.stdout[-3000:]]), flush=True)
        self.failures, self.passed = self.failures + bool(wrong), self.passed + (not wrong)
        return done.stdout

    def type_shell(self, block: Block) -> Iterator[tuple[str, str]]:
        """Run a shell block line by line. Yields each line with what it prints."""
        for line in block.lines:
            typed = how(line)
            assert typed is not None, line
            command = typed.instead or " ".join(filter(None, (line.partition("  #")[0].strip(), typed.more)))
            yield line, self.run(command, command, typed)

    def type_python(self, found: list[Block]) -> None:
        """Run the Python blocks one after the other in one session."""
        code = [PRELUDE]
        for block in found:
            for start, before in BEFORE.items():
                code += [before] * block.text.startswith(start)
            code.append(block.text)
            for start, after in AFTER.items():
                code += [after] * block.text.startswith(start)
        script = self.folder / "readme.py"
        script.write_text("\n".join(code))
        expected = Typed(prints=("before", "vision stage"))
        self.run(f"{len(found)} Python blocks", [str(self.bin / "python"), "readme.py"], expected)


def accuracies(table: str) -> list[list[str]]:
    """The rows of the demo's table without times: policy, keep ratio, tokens and size of the cache, and accuracies."""
    rows = [line.split() for line in table.splitlines() if re.match(r" *(full|\w+ +0\.\d+) ", line)]
    return [row[:-9] + row[-7:] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.first_minutes", description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="as `make dist` builds it")
    parser.add_argument("--folder", type=Path, help="where to work, again if it is there; default: a temporary folder")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="first-minutes-"))
    newcomer, found = Newcomer(folder), blocks(ROOT / "README.md")
    try:
        newcomer.install(options.wheel)
        newcomer.type_python([block for block in found if block.language == "python"])
        shown = next(block for block in found if "held-out questions" in block.lines[0])
        for block in found:
            if block.language == "python" or block.reason() is not None:
                continue
            for line, printed in newcomer.type_shell(block):
                if line == "tokenprune demo" and accuracies(printed) != accuracies(shown.text):
                    newcomer.failures += 1
                    print(f"FAILED the README shows another table:\n{shown.text}\nthan is printed:\n{printed}")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print(f"{newcomer.passed} passed, {newcomer.failures} failed")
    sys.exit(1 if newcomer.failures else 0)


if __name__ == "__main__":
    main()
