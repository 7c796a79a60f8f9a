"""What the site needs beside MkDocs: links to files of the repository, and docstrings as they are written here."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)[^)]*\)")
CODE = re.compile(r"<code>[^<]*</code>")
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?([^`]+)`")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of ``docs/``: an image joins the site, any other file is named. One that is missing ends the build."""

    def inside(link: re.Match) -> str:
        image, text, target = link.groups()
        path = (Path(page.file.abs_src_path).parent / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return link[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_path} links to {target}, which is not there")
        if not image:
            return text if text.startswith("`") else f"{text} (`{path.relative_to(ROOT)}`)"
        name = f"images/{path.name}"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        return f"![{text}]({name})"

    return LINK.sub(inside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A table's code loses the backslash that keeps its ``|`` from ending a cell."""
    return CODE.sub(lambda code: code[0].replace("\\|", "|"), html)


class HouseStyle(griffe.Extension):
    """``:func:`name``` becomes ```name```, and the comment behind a dataclass's field is the field's docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.is_attribute and not obj.docstring and isinstance(obj.parent, griffe.Class) and obj.lineno:
            _, mark, comment = obj.lines_collection[obj.filepath][obj.lineno - 1].partition("  # ")
            if mark:
                obj.docstring = griffe.Docstring(comment, parent=obj)
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
