"""Build the site: `make docs`, or `.venv-docs/bin/python docs/site.py` from the root of a checkout.

The pages are put together in build/pages, in the layout of the checkout, with every file that a page links to. A link
that leads nowhere is missed there, and MkDocs, which runs strictly, ends with an error. So it does for a docstring that
mkdocstrings cannot read, such as one that describes an argument which the function does not have.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
WRITTEN = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/**/*.md",
    "benchmarks/**/*.md",
    "examples/*.md",
)
LINK = re.compile(r"\]\(([^)\s#]+)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
GENERATED_FOR = {"emcl_train": "Training and evaluation", "emcl_kernels": "Kernels, inside"}
# A section on the line of its name is prose to every tool. As the first line it is meant as prose: "Returns: the sum".
ONE_LINE_SECTION = re.compile(r"\n\s*(Args|Returns|Raises|Yields|Attributes): \S")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the site, strictly.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to build, for tests")
    root = parser.parse_args().root.resolve()

    put_pages_together(root)
    written = write_api_pages(root)

    faults = list(unreadable_docstrings(root))
    for fault in faults:
        print(f"docs: {fault}", file=sys.stderr)

    failed = run_mkdocs(root)
    if failed or faults:
        print("docs: NOT built; each line above is an error", file=sys.stderr)
        return 1
    print(f"docs: built build/site, with {written} generated pages of the API")
    return 0


def run_mkdocs(root: Path) -> bool:
    """Build strictly, print what is wrong, and say whether anything is."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(root / "mkdocs.yml")]
    # Material advertises its successor in every build; it is pinned in constraints-docs.txt.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in done.stdout.splitlines():
        if line and not line.startswith("INFO"):
            print(line, file=sys.stderr)
    return done.returncode != 0


def put_pages_together(root: Path) -> None:
    """Copy every page, and every file inside the checkout that a page links to."""
    pages = root / "build" / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for pattern in WRITTEN:
        for page in sorted(root.glob(pattern)):
            copy(page, root, pages)
            for target in links(page):
                if target.is_file() and root in target.parents and not (pages / target.relative_to(root)).exists():
                    copy(target, root, pages)


def copy(file: Path, root: Path, pages: Path) -> None:
    destination = pages / file.relative_to(root)
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, destination)


def links(page: Path) -> Iterator[Path]:
    """Files that a page links to, whether they exist or not."""
    prose = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(prose):
        if "://" not in target and not target.startswith("mailto:"):
            yield (page.parent / target).resolve()


def write_api_pages(root: Path) -> int:
    """One page for each room of the packages: the modules of a sub-package, or of the hall. Returns how many."""
    folder = root / "build" / "pages" / "docs" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for package, title in GENERATED_FOR.items():
        index = [f"# {title}", "", f"What `{package}` is made of, from its docstrings; one page a room."]
        for room, modules in rooms(root, package).items():
            page = folder / f"{room}.md"
            page.write_text("\n\n".join([f"# {room}", *(f"::: {module}" for module in modules)]) + "\n")
            names = ", ".join(f"`{module.removeprefix(f'{package}.')}`" for module in modules)
            index += ["", f"- [{room}]({page.name}): {names}"]
            count += 1
        name = f"{package}.md" if package == "emcl_train" else f"{package}-inside.md"
        (folder / name).write_text("\n".join(index) + "\n")
    return count


def rooms(root: Path, package: str) -> dict[str, list[str]]:
    """Sub-package → its public modules; the package itself has those that lie in its hall."""
    found: dict[str, list[str]] = {}
    for file in sorted((root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        names = [part for part in parts if part != "__init__"]
        if names == [package]:
            continue  # what it exports has a page that is written by hand
        is_package = file.name == "__init__.py"
        room = names if is_package else names[:-1]
        found.setdefault("-".join(room[:2]) + ("-hall" if len(room) == 1 else ""), []).append(".".join(names))
    return found


def unreadable_docstrings(root: Path) -> Iterator[str]:
    """What mkdocstrings takes for prose, and a reader for a list of arguments."""
    for package in GENERATED_FOR:
        for file in sorted((root / package).rglob("*.py")):
            module = ".".join(file.relative_to(root).with_suffix("").parts)
            tree = griffe.visit(module, filepath=file, code=file.read_text(encoding="utf-8"))
            for documented in with_docstrings(tree):
                docstring = documented.docstring
                if docstring and documented.is_public and (found := ONE_LINE_SECTION.search(docstring.value)):
                    place = f"{file.relative_to(root)}:{docstring.lineno}: {documented.name}"
                    yield f"{place}: {found[1]} must stand on a line of its own, with one entry a line below it"


def with_docstrings(parent: griffe.Object | griffe.Alias) -> Iterator[griffe.Object]:
    """An object and all that is defined in it."""
    if isinstance(parent, griffe.Object):
        yield parent
        for member in parent.members.values():
            yield from with_docstrings(member)


if __name__ == "__main__":
    sys.exit(main())
