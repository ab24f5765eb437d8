"""The documents keep their word: commands parse or run, Python runs, links lead somewhere, names exist."""

import ast
import importlib
import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
from test_house import FLOORS

from v2edit.cli.app import main, parse

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
README = PAGES["README.md"]
MOST_WORDS = 9800

# Of other programs: options that the documents name and no command of v2edit has.
FOREIGN = re.findall(
    r"\S+",
    """
    --index-url --hypothesis-profile --help --port --head --address --min-nodes --num-cpus --num-gpus
    --nodes --ntasks --ntasks-per-node --exclusive --cpus-per-task --gpus-per-task --time --job-name --ip-address
    --data --to --warm --only-binary
    --standalone --nproc-per-node --limit-mm-per-prompt --tokenizer --flops --sides --seeds --skip --loop-frames
    --minutes --model-side --size --ways --motion --only --autoencode
    """,
)
# README's commands that no test runs, and those that take minutes.
DOWNLOADS_OR_SERVES, LONG = ("zai-org/", "v2edit view"), ("v2edit scene", "v2edit batch", "v2edit bench")


def blocks(page: str, *languages: str) -> list[str]:
    """Return a page's fenced blocks of some languages ("" is an indented block)."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    found = [text for language, text in fenced if language in languages]
    if "" in languages:
        prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
        found += re.findall(r"(?:^    .*\n)+", prose, re.MULTILINE)
    return found


def commands(page: str) -> list[list[str]]:
    """Return the words of each `v2edit` command of a page's blocks, without comments and what … leaves out."""
    found = []
    for block in blocks(page, "sh", "console", ""):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^\s*(\$ )?", "", line)
            words = shlex.split(line, comments=True) if re.search(r"(^|-- )\s*v2edit ", line) else []
            if words and "v2edit" in words and not words[0].endswith(":"):
                words = [word for word in words[words.index("v2edit") + 1 :] if word != "…"]
                found.append(words)
    return found


ALL_COMMANDS = [(name, words) for name, page in PAGES.items() for words in commands(page)]


def test_the_documents_are_short() -> None:
    words = [word for page in PAGES.values() for word in page.split() if re.search(r"\w", word)]  # not rules of tables
    assert len(words) < MOST_WORDS


def test_there_are_commands_to_try() -> None:
    assert len(ALL_COMMANDS) > 30
    assert {words[0] for _, words in ALL_COMMANDS} >= {"edit", "scene", "sample", "batch", "bench", "eval", "runs"}


@pytest.mark.parametrize(("page", "words"), ALL_COMMANDS, ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60])
def test_a_command_parses(page: str, words: list[str]) -> None:
    parse(words)


def test_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = set(FOREIGN)
    for command in sorted({words[0] for _, words in ALL_COMMANDS}):
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for name, page in PAGES.items():
        if unknown := set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page)) - known:
            raise AssertionError(f"{name} names {', '.join(sorted(unknown))}, which no command has")


@pytest.mark.parametrize("name", PAGES)
def test_python_compiles(name: str) -> None:
    for block in blocks(PAGES[name], "python"):
        try:
            ast.parse(block)
        except SyntaxError:  # a branch or an entry of a dictionary, which is shown without what it stands in
            ast.parse(
                f"def f():\n{re.sub('^', '    ', block, flags=re.MULTILINE)}" if "return" in block else f"{{{block}}}"
            )


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = here / file if file else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    inline = set(re.findall(r"`([\w/.-]+\.(?:py|html|toml))`", PAGES[name]))
    inline |= set(re.findall(r"(?:benchmarks|docs|examples|fuzz|recipes|tests)/[\w/]+\.py", PAGES[name]))
    package = ROOT / "src" / "v2edit"
    for file in inline - {"style.toml", "index.html", "backbones/FAMILY.py", "scenes/formats/FORMAT.py"}:
        places = [ROOT / file, package / file, *(folder / file for folder in package.iterdir() if folder.is_dir())]
        assert any(place.exists() for place in places), f"{name}: {file}"


def test_names_in_extending_exist() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]
    )
    prose = re.sub(r"^```.*?^```", "", PAGES["docs/extending.md"], flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`([A-Za-z_][\w.]+)`", prose):
        if not name.endswith(".py"):
            assert re.search(rf"\b{name.split('.')[-1]}\b", code), name


PAPER = re.findall(r"^\| (.+?) \| `([\w.]+)` \|$", README[README.index("## Paper and code") :], re.MULTILINE)


def test_the_paper_has_its_rows() -> None:
    first_words = " ".join(paper for paper, _ in PAPER)
    for word in ("INC", "PNC", "AMR", "log-sum-exp", "window", "loops", "progression", "mixture", "prompts", "RER",
                 "CTIDS", "CDC", "LVLM score"):  # fmt: skip
        assert word in first_words, word


WORDS = ("INC", "PNC", "AMR", "log-sum-exp", "window", "progression", "mixture", "prompt", "RER", "CTIDS", "CDC",
         "LVLM score")  # fmt: skip


@pytest.mark.parametrize(("paper", "function"), PAPER, ids=[function for _, function in PAPER])
def test_a_function_of_the_paper_exists_and_says_so(paper: str, function: str) -> None:
    module, _, name = function.rpartition(".")
    found = getattr(importlib.import_module(f"v2edit.{module}"), name)
    assert callable(found)
    named, docstring = [word for word in WORDS if word in paper], inspect.getdoc(found) or ""
    assert any(word.lower() in docstring.lower() for word in named), f"{function} does not say {' or '.join(named)}"


def test_the_rooms_are_those_of_the_house() -> None:
    block = next(block for block in blocks(PAGES["CONTRIBUTING.md"], "") if "backbones" in block)
    assert [set(line.split()) for line in block.splitlines()] == [floor for floor in FLOORS if "__init__" not in floor]
    tree = README[README.index("    src/v2edit/") :]
    rooms = re.findall(r"^      ((?:[\w.]+/?  ?)+)", tree, re.MULTILINE)
    named = {room.strip("/").removesuffix(".py") for line in rooms for room in line.split()}
    assert named >= {room for floor in FLOORS[1:] for room in floor} - {"files", "workers", "host", "errors"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the clip that README's commands speak of."""
    monkeypatch.chdir(tmp_path)
    assert main(["--quiet", "sample", "--seed", "4", "--kind", "recolour", "-o", "sample"]) == 0
    for suffix in ("mp4", "json"):
        shutil.copy(f"sample/clip.{suffix}", f"clip.{suffix}")
    return tmp_path


def run_readme(folder: Path, *, long: bool) -> set[str]:
    """Run README's commands that need no download, in their order: the long ones, or the others. Return their names."""
    names = set()
    for words in commands(README):
        line = f"v2edit {shlex.join(words)}"
        if any(one in line for one in DOWNLOADS_OR_SERVES) or any(one in line for one in LONG) != long:
            continue
        expanded = [str(path) for word in words for path in (sorted(folder.glob(word)) if "*" in word else [word])]
        assert main(["--quiet", *expanded]) == 0, line
        names.add(words[0])
    return names


def test_readme_runs(place: Path) -> None:
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), {})
    (run,) = (place / "runs").iterdir()
    run.rename(place / "runs" / "surfer-blue")
    assert run_readme(place, long=False) == {"sample", "eval"}


@pytest.mark.heavy
def test_readme_runs_what_takes_long(place: Path) -> None:
    (place / "tasks.jsonl").write_text('{"video": "clip.mp4", "instruction": "make the ball blue"}\n', encoding="utf-8")
    assert main(["--quiet", "sample", "--scene", "--seed", "10", "--kind", "recolour", "-o", "runs/scene"]) == 0
    assert run_readme(place, long=True) == {"scene", "batch", "bench"}


def test_a_solver_of_one_s_own_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from v2edit import sampling

    monkeypatch.setattr(sampling, "SOLVERS", dict(sampling.SOLVERS))
    block = next(block for block in blocks(PAGES["docs/extending.md"], "python") if "SOLVERS" in block)
    exec(compile(block, "extending.md", "exec"), {})
    step = sampling.SOLVERS["consistency"].first_order(0.1, 0.99, 0.6, 0.8)
    assert (step.c_v, step.c_x, step.std) == (0.0, 0.6, 0.8)
    assert sampling.SOLVERS["consistency"].deterministic in sampling.SOLVERS


def test_a_bench_method_of_one_s_own_is_a_method() -> None:
    import numpy as np

    from v2edit.prompts import PromptPair

    block = next(block for block in blocks(PAGES["docs/extending.md"], "python") if "Brighten" in block)
    names: dict[str, object] = {"__name__": "extending"}
    exec(compile(block, "extending.md", "exec"), names)
    edit = names["Brighten"](2.0).build(None)
    assert (edit(np.full((1, 2, 2, 3), 100, np.uint8), PromptPair("a", "b"), 0) == 200).all()
