"""What mkdocs needs beside docs/: generated pages, the repository's own pages, and links that hold in a site.

`mkdocs.yml` names this file as a hook. In its navigation, NOTEBOOKS, COMMANDS and DECISIONS stand for their pages.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from command_pages import command_pages  # noqa: E402 (they lie beside this file, and need the repository)
from reference_pages import python_page, run_file_page, schemas_page  # noqa: E402

BESIDE_DOCS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "AGENTS.md")
"""Pages of the repository that the site has, too, as project/NAME."""
NOTEBOOKS = ("store", "training", "federation", "own_parts")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(`{3,})[^`]*?^\1\s*?$", re.MULTILINE | re.DOTALL)


def generated() -> dict[str, str]:
    """All generated pages, by their place in the site."""
    pages = {f"notebooks/{name}.md": notebook_page(DOCS / "notebooks" / f"{name}.py") for name in NOTEBOOKS}
    pages |= command_pages()
    pages |= {"reference/python.md": python_page(), "reference/run-file.md": run_file_page()}
    pages["reference/schemas.md"] = schemas_page(DOCS / "schemas")
    return pages


def on_config(config: Any) -> Any:
    """Fill in the navigation."""
    config["generated"] = pages = generated()
    notebooks = [name for name in pages if name.startswith("notebooks/")]
    commands = [name for name in pages if name.startswith("reference/commands/")]
    decisions = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("[0-9]*.md"))]
    lists = {
        "NOTEBOOKS": notebooks,
        "COMMANDS": [{"Commands": commands}],
        "DECISIONS": [{"Decisions": ["decisions/README.md", *decisions]}],
    }
    for section in config["nav"]:
        for name, entries in section.items():
            if isinstance(entries, list):
                section[name] = [one for entry in entries for one in lists.get(str(entry), [entry])]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and those that stand beside docs/."""
    for name, text in config["generated"].items():
        files.append(File.generated(config, name, content=text))
    for name in BESIDE_DOCS:
        files.append(File.generated(config, f"project/{name}", content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they hold in the site, and lists with the empty line that Python-Markdown wants before them."""
    uri = page.file.src_uri
    place = uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"
    return outside_fences(markdown, lambda text: spaced_lists(relinked(text, place, uri, files)))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme's search dialog with a name, for people who hear the page."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')


def outside_fences(markdown: str, change: Any) -> str:
    """Change the text, but nothing in blocks of code."""
    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, change(markdown[last:])])


def relinked(text: str, place: str, uri: str, files: Any) -> str:
    """Links from a page of the repository to others, as links in the site; to what is not in the site, as plain text.

    Args:
        place: the page's path in the repository.
        uri: its path in the site.
    """

    def replace(match: re.Match[str]) -> str:
        mark, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or ":" in target or place.startswith("docs/reference/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        found = path.removeprefix("docs/") if path.startswith("docs/") else f"project/{path}"
        if path == "README.md":
            found = "README.md"
        if found.startswith("notebooks/"):
            found = found.removesuffix(".py") + ".md"
        if found.startswith("schemas/"):
            found, anchor = "reference/schemas.md", f"#{Path(found).stem}"
        file = files.get_file_from_path(found)
        if file is None:
            return f"{label} (`{path}`)" if label != path else f"`{path}`"
        if label == posixpath.basename(target) and found.endswith(".md"):
            label = title_of(file.content_string) or label
        return f"{mark}[{label}]({posixpath.relpath(found, posixpath.dirname(uri) or '.')}{anchor})"

    return LINK.sub(replace, text)


def title_of(markdown: str) -> str:
    """The first heading of a page."""
    match = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return match[1] if match else ""


def spaced_lists(text: str) -> str:
    """An empty line before each list that follows a line of text, and lists within lists indented by four."""
    lines: list[str] = []
    for line in text.split("\n"):
        is_item = re.match(r"\s*(?:[-*]|\d+\.) ", line) is not None
        before = lines[-1] if lines else ""
        in_list = any(re.match(r"\s*(?:[-*]|\d+\.) ", one) for one in _paragraph(lines))
        if is_item and before.strip() and not in_list:
            lines.append("")
        indent = len(line) - len(line.lstrip())
        if is_item and 0 < indent < 4:
            line = "    " + line.lstrip()
        lines.append(line)
    return "\n".join(lines)


def _paragraph(lines: list[str]) -> Iterator[str]:
    """The last lines, up to an empty one."""
    for line in reversed(lines):
        if not line.strip():
            return
        yield line


def notebook_page(path: Path) -> str:
    """A notebook of cells (py:percent) as a page: its texts, and its code in blocks."""
    _, *cells = re.split(r"^# %%(?= |$)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = []
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE))
        else:
            code = re.sub(r"^# (%%|!)", r"\1", body.strip("\n"), flags=re.MULTILINE)
            parts.append(f"```python\n{code}\n```")
    title, _, rest = "\n\n".join(parts).partition("\n")
    name = path.relative_to(ROOT)
    note = f"This page is the notebook `{name}`. To open it in Jupyter: `jupytext --to ipynb {name}`."
    return f"{title}\n\n{note}\n{rest}\n"
