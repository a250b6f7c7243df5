"""The site mirrors the repository: every page keeps its place, so that links between files hold on both.

mkdocs reads one folder; this hook gives it the documents outside ``docs/`` too, and what they link to.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "*.md", "docs/**/*.md", "docs/*.ipynb", "docs/*.css", "results/README.md", "results/*/table.md",
    "results/*/leaderboard.md", "bench/data/**/*.md", "benchmarks/README.md",
)  # fmt: skip
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def on_files(files, config):
    """The pages, and every file of the repository that one of them links to."""
    found = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    for page in sorted(found):
        if page.suffix == ".md":
            targets = ((page.parent / target).resolve() for target in LINK.findall(page.read_text()))
            found |= {path for path in targets if path.is_file() and path.is_relative_to(ROOT)}
    shown = Files([file for file in files if not file.src_dir or Path(file.src_dir) != ROOT / "docs"])
    for path in sorted(found):
        shown.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return shown
