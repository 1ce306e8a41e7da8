"""Commands, links and flags in the READMEs are valid."""

import re
import shlex

import pytest

from conftest import PROJECTS, ROOT, load_script

READMES = [ROOT / "README.md", *(folder / "README.md" for folder in PROJECTS)]


def commands():
    """Words of every command line in a bash block that runs one of the scripts."""
    for readme in READMES:
        for block in re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if any(word.endswith(".py") for word in words):
                    yield pytest.param(words, id=f"{readme.parent.name}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_name_scripts_and_flags_that_exist(words):
    position = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, arguments = words[position].replace("my_project", "cephalometric"), words[position + 1 :]
    assert (ROOT / script).is_file()
    assert words[0] in ("python", "accelerate")
    if script == "quickstart.py":
        known = {"test", "install", *load_script(script).find_projects()}
        assert set(arguments) <= known
    elif arguments != ["--help"]:
        assert load_script(script).parse_args(arguments)


PAGES = [
    *READMES,
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("*/*GUIDE.md"),
    *ROOT.glob("*/*/README.md"),
    ROOT / "benchmarks/README.md",
]


@pytest.mark.parametrize("readme", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text(encoding="utf-8")):
        assert (readme.parent / target).exists(), target


@pytest.mark.parametrize("project", [folder.name for folder in PROJECTS])
def test_the_flags_of_the_readme_are_the_scripts(project, capsys):
    """The table in a project's README has every flag of its train.py and no others."""
    text = (ROOT / project / "README.md").read_text(encoding="utf-8")
    table = text.split("## Flags")[1].split("## ")[0]
    with pytest.raises(SystemExit):
        load_script(f"{project}/train.py").parse_args(["--help"])
    shown = capsys.readouterr().out.split("options:")[1].replace("--batch-size", "").replace("--help", "")
    flag = re.compile(r"--[a-z][a-z_-]+")
    assert set(flag.findall(table)) == set(flag.findall(shown))
