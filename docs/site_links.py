"""Hook of mkdocs: pages outside docs/ join the site, and links that hold on GitHub hold there too.

On GitHub docs/data.md links to ../results/diversity_coefficient.md.  On the site docs/ is the root, so that the page is
results/diversity_coefficient.md.  Each file that a page links to is added under its path in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
# README.md at the root would take the place of index.md.
MOVED = {"README.md": "about/README.md"}


def place_on_site(path):
    """Return where a file of the repository is on the site."""
    return MOVED.get(path, path.removeprefix("docs/"))


def linked_files():
    """Return the files outside docs/ that the site needs: the results, and what any page links to."""
    outside = {posixpath.join("results", path.name) for path in (ROOT / "results").iterdir() if path.is_file()}
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")]
    pages += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    for page in pages:
        outside.add(page.relative_to(ROOT).as_posix())
        for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            file = Path(posixpath.normpath((page.parent / target).as_posix()))
            if file.is_file():
                outside.add(file.relative_to(ROOT).as_posix())
    return sorted(path for path in outside if not path.startswith("docs/"))


def on_files(files, config):
    """Add the files outside docs/."""
    for path in linked_files():
        files.append(File.generated(config, place_on_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links between docs/ and the rest of the repository."""
    source = Path(page.file.abs_src_path).relative_to(ROOT)
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(match):
        target = posixpath.normpath(posixpath.join(source.parent.as_posix(), match[1]))
        return f"]({posixpath.relpath(place_on_site(target), here or '.')}{match[2] or ''})"

    return LINK.sub(rewritten, markdown)
