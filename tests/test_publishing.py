"""What is published: metadata, the description on the package index, the source distribution, and who publishes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from tokenprune import __version__

ROOT = Path(__file__).parents[1]
PROJECT = "https://github.com/tokenprune/tokenprune"
pytest.importorskip("build")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The folder of an unpacked source distribution, made of the committed and new files of this tree."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(
        ".venv*", ".git", ".cache", ".*_cache", "*.egg-info", "build", "dist", "site", "out"
    )
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignored)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def metadata(sdist):
    return Parser().parsestr((sdist / "PKG-INFO").read_text(encoding="utf-8"))


def test_metadata(metadata):
    assert metadata["Name"] == "tokenprune-vlm" and metadata["Version"] == __version__
    assert metadata["Author"] == "tokenprune maintainers" and metadata["License-Expression"] == "Apache-2.0"
    assert "KV cache" in metadata["Keywords"]
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert urls["Homepage"] == PROJECT
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers and "Operating System :: OS Independent" in classifiers
    assert [c for c in classifiers if "Python :: 3.1" in c] == [
        f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)
    ]
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    for name in ("accelerate", "argcomplete", "matplotlib", "rich", "jinja2"):
        assert any(line.startswith(name) for line in needed), name


def test_links_of_the_description_are_absolute(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text.startswith("# tokenprune")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 40 and not [t for t in targets if not re.match(r"https://|#", t)]
    for target in targets:
        for place in (f"{PROJECT}/blob/main/", "https://raw.githubusercontent.com/tokenprune/tokenprune/main/"):
            if target.startswith(place):
                assert (ROOT / target.removeprefix(place).partition("#")[0]).exists(), target


def test_the_source_distribution_has_all_that_tests_need(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    links = ("patches/", "eval/")  # they are in tokenprune/
    left_out = {".gitignore", "tokenprune/patches", "tokenprune/eval"}
    for name in listed.stdout.splitlines():
        place = f"tokenprune/{name}" if name.startswith(links) else name
        assert name in left_out or not (ROOT / name).exists() or (sdist / place).exists(), place


def test_tests_run_in_the_source_distribution(sdist):
    """All of them are collected, and two files run."""
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    some = ["-k", "test_budget.py or test_docs.py"]
    done = subprocess.run([*pytest_here, *some], cwd=sdist, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " deselected" in done.stdout


def test_the_version_is_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["repository-code"] == PROJECT


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_run_what_there_is(path):
    workflow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    jobs = workflow["jobs"]
    for job in jobs.values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(jobs)
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert target in targets, target


def test_the_release_is_published_without_a_password():
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"]["name"] == "release"
    assert any(step.get("uses", "").startswith("pypa/gh-action-pypi-publish@") for step in publish["steps"])
    assert "password" not in str(publish)


def test_nothing_is_installed_from_where_it_is_not():
    """The distribution is not on the package index: pages and hints name a checkout or the repository."""
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(ROOT / "tokenprune").rglob("*.py"),
        *(ROOT / "eval").rglob("*.py"),
    ]
    for file in files:
        for found in re.findall(r"pip install [^\n`]*tokenprune-vlm[^\n`]*", file.read_text(encoding="utf-8")):
            assert f"@ git+{PROJECT}" in found, (file, found)
