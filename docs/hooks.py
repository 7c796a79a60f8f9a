"""What the site needs beside MkDocs: links to files of the repository, and docstrings without Sphinx's roles."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)[^)]*\)")
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


class PlainRoles(griffe.Extension):
    """``:func:`name``` of a docstring becomes ```name```."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
