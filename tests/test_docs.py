"""The pages: they build without a warning and load nothing from elsewhere; links lead somewhere; what they tell to type can be typed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from qn_deploy.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "exporters").rglob("*.md"))
    if path.name != "CHANGELOG.md"
)
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """A text without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(?: {4}|\t).*$", "", FENCE.sub("", text), flags=re.MULTILINE))


def anchors(path: Path) -> set[str]:
    """Of a text's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(path.read_text())):
        assert "://" not in target, f"{target}: a page that may be gone tomorrow; say what it says instead"
        file, _, anchor = unquote(target).partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), target


def command_lines(path: Path) -> list[list[str]]:
    """What a text tells to type after `qn-deploy`, in its blocks of code; a line that ends in \\ goes on in the next."""
    text = re.sub(r" *\\\n *", " ", re.sub(r"<!-- help.*?<!-- /help -->", "", path.read_text(), flags=re.DOTALL))
    lines = re.findall(r"^ +(qn-deploy .*)$", text, re.MULTILINE)
    lines += [line for _, _, block in FENCE.findall(text) for line in re.findall(r"^(?:\$ )?(qn-deploy .*)$", block, re.MULTILINE)]
    lines += re.findall(r"`(qn-deploy [a-z]+(?: [^`\n]*)?)`", prose_of_code(text))
    return [shlex.split(line, comments=True)[1:] for line in lines]


def prose_of_code(text: str) -> str:
    return FENCE.sub("", text)


@pytest.mark.parametrize("path", [path for path in TEXTS if "qn-deploy " in path.read_text()], ids=name_of)
def test_every_command_line_is_one(path: Path) -> None:
    for words in command_lines(path):
        if set(words) & {"--help", "-h", "--version"} or any(word.startswith("[") for word in words):
            continue
        command: click.Command = main
        context = click.Context(main, info_name="qn-deploy", **main.context_settings)  # which name the options for help
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
            context = click.Context(command, parent=context, info_name=command.name)
        assert command is not main, f"qn-deploy {shlex.join(words)}"
        if not words:  # its name alone
            continue
        try:
            command.make_context(command.name, list(words), parent=context.parent, resilient_parsing=False)
        except click.MissingParameter:
            pass  # a sentence about an option
        except click.ClickException as error:
            pytest.fail(f"{name_of(path)}: qn-deploy {command.name} {shlex.join(words)}: {error.format_message()}")


def python_blocks(path: Path) -> list[str]:
    found = FENCE.findall(path.read_text())  # what a page includes from a file is `{ .python }`, and run by its own test
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, kind, block in found if kind == "python"]


@pytest.mark.parametrize("path", [path for path in TEXTS if python_blocks(path)], ids=name_of)
def test_every_python_block_speaks_of_what_is_there(path: Path) -> None:
    """It parses, and each name of qn_deploy in it exists."""
    for block in python_blocks(path):
        held = {"qn_deploy": importlib.import_module("qn_deploy")}
        for name in ("noise", "recipe"):
            held[name] = importlib.import_module(f"qn_deploy.{name}")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qn_deploy"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in held:
                assert hasattr(held[node.value.id], node.attr), ast.unparse(node)


def test_every_page_includes_files_that_are_there() -> None:
    for path in DOCS.rglob("*.md"):
        for file in re.findall(r'--8<-- "([^":]+)', path.read_text()):
            assert (ROOT / file).is_file(), f"{path.name}: {file}"


@pytest.mark.slow
def test_the_pages_build_and_load_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is missing: pip install 'qn-deploy[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list(DOCS.rglob("*.md")))
    for page in pages:
        text = page.read_text()
        outside = re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""", text)
        assert outside == [], f"{page.name}: {outside}"
        assert "--8&lt;--" not in text and "::: qn_deploy" not in text, page.name
    functions = (tmp_path / "site/reference/functions.html").read_text()
    assert all(f'id="qn_deploy.{name}"' in functions for name in ("compression.plan.plan", "program.capture.capture"))


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    blocks = [block for _, kind, block in FENCE.findall(text) if kind == "python"]
    assert blocks and all(len(block.splitlines()) <= 10 for block in blocks)
