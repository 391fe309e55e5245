"""The documents are true: commands parse, snippets compile, links lead somewhere, what is generated is current."""

import json
import re
import runpy
import shlex
import sys
from itertools import groupby

import click
import pytest

import gptoss_mlx
from docs.pages import GENERATED, PAGES, ROOT, anchors, code, fenced, links, name, prose
from gptoss_mlx import load
from gptoss_mlx.cli import PROGRAM, cli
from gptoss_mlx.tools import EXAMPLE_FILE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WRITTEN = [path for path in PAGES if path != GENERATED]
MAX_README_LINES = 150
MAX_PICTURE_BYTES = 60_000

each_page = pytest.mark.parametrize("page", PAGES, ids=name)
each_written_page = pytest.mark.parametrize("page", WRITTEN, ids=name)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@each_page
def test_links_and_anchors(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(path), f"{link} names no heading of {name(path)}"


def test_the_page_for_package_indexes_has_no_links_into_the_repository():
    page = ROOT / "docs" / "package.md"
    assert all(link.startswith("https://") for link in links(page))
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ROOT / metadata["readme"] == page


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_merge_is_left_half_done(page):
    assert not re.findall(r"^(?:<{7}|={7}|>{7})(?: |$)", page.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_in_the_index():
    listed = {(ROOT / "docs" / link).resolve() for link in links(ROOT / "docs" / "README.md")}
    assert listed == {*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "README.md", ROOT / "docs" / "package.md"}


# Commands.


def command_lines(text: str) -> list[list[str]]:
    """The words after `gptoss-mlx`, of each of its runs in a text that a shell would read."""
    found = [shlex.split(words) for words in re.findall(rf"\$\({PROGRAM} ([^()]*)\)", text)]
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for operator, run in groupby(words, key=lambda word: set(word) <= set("();<>|&")):
            program, *arguments = run
            if not operator and program == PROGRAM:
                found.append(arguments)
    return found


def subcommand(words: list[str]) -> tuple[click.Context, list[str]]:
    """The context of the command that is meant, and the words that remain for it."""
    context = cli.make_context(PROGRAM, [], resilient_parsing=True)
    while isinstance(context.command, click.Group) and words and not words[0].startswith("-"):
        word, *words = words
        command = context.command.get_command(context, word)
        assert command is not None, f"there is no command {word}"
        context = command.make_context(word, [], parent=context, resilient_parsing=True)
    return context, words


def check(words: list[str]) -> None:
    """Raises what click does about names, options, arguments and values; files need not be there."""
    context, rest = subcommand(words)
    context.resilient_parsing = False
    values, left, order = context.command.make_parser(context).parse_args(list(rest))
    assert not left, f"{left} are too many"
    for parameter in context.command.get_params(context):
        value = values.get(parameter.name)
        missing = value is None or parameter.value_is_missing(value)
        assert not (parameter.required and (parameter not in order or missing))
        if parameter in order and not missing and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)


@each_written_page
def test_commands_parse(page):
    typed = [
        line.removeprefix("$ ") for block in fenced(page, "console") for line in block.splitlines() if line[:2] == "$ "
    ]
    for block in (*typed, *fenced(page, "sh", "")):
        for words in command_lines(block):
            check(words)


@each_written_page
def test_commands_within_a_line_exist(page):
    """With their options; they may be without arguments."""
    for text in code(page):
        if text.split()[0] == PROGRAM:
            context, rest = subcommand(shlex.split(text)[1:])
            known = {option for parameter in context.command.get_params(context) for option in parameter.opts}
            assert {word for word in rest if word.startswith("-")} <= known, text


def test_what_the_checks_of_commands_find():
    assert command_lines("git diff | gptoss-mlx generate -p 'a b' --yes > x  # gptoss-mlx y") == [
        ["generate", "-p", "a b", "--yes"]
    ]
    assert command_lines("""echo 'eval "$(gptoss-mlx completion bash)"' >> x""") == [["completion", "bash"]]
    for wrong in ("chat --fly", "generate -p", "plan", "chat a b", "completion tcsh", "eval m --tokens many"):
        with pytest.raises((click.UsageError, AssertionError)):
            check(shlex.split(wrong))
    with pytest.raises(AssertionError):
        check(["dance"])


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_targets_of_make_exist(page):
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join([*code(page), *fenced(page, "sh")]))
    assert asked
    assert set(asked) <= set(targets)


# What is generated.


def test_the_page_of_commands_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "commands.py"))["page"]()
    assert GENERATED.read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_memory_plan_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "plan.py"))["page"]()
    assert (ROOT / "docs" / "memory.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_picture_is_current():
    """Apart from times and speeds."""
    terminal = runpy.run_path(str(ROOT / "docs" / "terminal.py"))
    kept = terminal["PICTURE"].read_text(encoding="utf-8")
    assert len(kept.encode()) < MAX_PICTURE_BYTES
    now = terminal["svg"](terminal["recorded"]())
    assert terminal["unmeasured"](kept) == terminal["unmeasured"](now), "run `make docs`"


# Snippets.


@each_written_page
def test_snippets(page):
    for block in fenced(page, "python"):
        compile(block, name(page), "exec")
    for block in fenced(page, "toml"):
        tomllib.loads(block)
    for block in fenced(page, "json"):
        for line in block.splitlines():
            json.loads(line)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "python.md"], ids=name)
def test_python_snippets_run(page, demo_folder, monkeypatch, capsys):
    """On the embedded model, whatever model they load; nothing is converted."""
    monkeypatch.setattr(gptoss_mlx, "load", lambda *_, **options: load(demo_folder, **options | {"context": 512}))
    monkeypatch.setattr(gptoss_mlx, "convert", lambda *_: None)
    for block in fenced(page, "python"):
        exec(compile(block, name(page), "exec"), {})
    assert capsys.readouterr().out


def test_the_example_of_tools_is_the_one_that_is_installed():
    assert EXAMPLE_FILE.read_text() in fenced(ROOT / "docs" / "tools.md", "toml")
    assert (ROOT / "examples" / "tools.toml").resolve() == EXAMPLE_FILE.resolve()


def test_the_example_of_tools_has_a_name(run, demo_folder, tmp_path):
    ask = ("generate", demo_folder, "-p", "Hello", "--temperature", 0, "--tools")
    assert run(*ask, "example").returncode == 0
    assert run(*ask, tmp_path / "example").returncode == 2


def test_paths_in_the_documents_exist():
    """Of the repository, where they stand between backticks."""
    tops = ("docs/", "examples/", "tests/", "gptoss_mlx/", "convert/", ".github/", ".ci/")
    for page in WRITTEN:
        for text in code(page):
            if text.startswith(tops) and " " not in text:
                assert (ROOT / text).exists(), f"{name(page)} names {text}"


def test_modules_in_the_architecture_exist():
    """`engine/sampling.py` is one of gptoss_mlx; and every folder has its row."""
    page, package = ROOT / "docs" / "architecture.md", ROOT / "gptoss_mlx"
    modules = [text for text in code(page) if re.fullmatch(r"[a-z_]+/([a-z_]+\.py)?", text)]
    assert [text for text in modules if not ((package / text).exists() or (ROOT / text).exists())] == []
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert folders <= set(modules)


def test_nothing_is_left_of_fences():
    """Every fence is closed, so that the checks above see every block."""
    assert [name(page) for page in PAGES if "```" in prose(page)] == []
