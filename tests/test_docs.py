"""The pages of the systems cannot lie: their programs run, and the lines and numbers are ours."""

import json
import re
from pathlib import Path

import pytest

from hf_ddpm.figures import FIGURES

ROOT = Path(__file__).parent.parent
PAGES = ["docs/ddpm.md", "docs/ddim.md", "docs/vae.md", "docs/guidance.md", "docs/ddgan.md"]
INDEX = "docs/README.md"
BESIDE_DOCS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
DOCS = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))


def text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.S | re.M)


def run(page: str) -> dict:
    """The page's programs, in order, in one namespace."""
    scope: dict = {}
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{page}, program {number}", "exec"), scope)
    return scope


def quotes(page: str) -> list[tuple[str, list[str]]]:
    """(file, lines) of the `py` blocks: a comment names the file, the lines below are quoted, their comments ours."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(page, "py")).splitlines():
        if line.startswith("# "):
            found.append((line.removeprefix("# "), []))
        else:
            found[-1][1].append(line.split("  # ")[0].strip())
    return found


def links(page: str) -> list[tuple[Path, str]]:
    """(file, anchor) of each link to a file; without a file it is the page itself, without an anchor ""."""
    found = re.findall(r"\]\((?![a-z]+:)([^)#]*)(?:#([^)]+))?\)", text(page))
    return [((ROOT / page).parent / link if link else ROOT / page, anchor) for link, anchor in found]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_programs_of_ddim_md_run():
    assert run("docs/ddim.md")["squares"]


def test_the_programs_of_adm_md_run():
    assert type(run("docs/adm.md")["network"]).__name__ == "ADMUNet"


def test_the_tables_of_adm_md_are_those_that_were_measured():
    found = json.loads((ROOT / "benchmarks/results/adm_networks.json").read_text())
    rows = [row for row in text("docs/adm.md").splitlines() if row.startswith("|")]
    for name, network in found["networks"].items():
        assert f"| {network['weights']:,} |" in next(row for row in rows if row.startswith(f"| `{name}` | `"))
        measured = next(row for row in rows if row.startswith(f"| `{name}` | ") and "`" not in row[len(name) + 6 :])
        assert float(measured.split("|")[2]) == pytest.approx(network["forward"]["seconds"], rel=0.01)
    for one in found["parity"]:
        assert any(f"| {one['weights']:,} | {one['tensors']} | {one['difference']:.1e} |" in row for row in rows)
        assert one["difference"] < 2e-6


def test_the_programs_of_guidance_md_run():
    assert run("docs/guidance.md")["shares"]


def test_the_programs_of_ddgan_md_run():
    assert run("docs/ddgan.md")["spread"]


def test_the_programs_of_vae_md_run():
    assert run("docs/vae.md")["latent"].vae is not None


def test_the_programs_of_ddpm_md_run_and_its_table_is_what_they_compute():
    left = run("docs/ddpm.md")["left"]
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d\S+) \| (\d\S+) \|$", text("docs/ddpm.md"), re.M)
    assert len(rows) == 10
    for schedule, num_steps, *printed in rows:
        assert [f"{float(value):.1e}" for value in left(schedule, int(num_steps))] == printed, schedule


@pytest.mark.parametrize("page", PAGES)
def test_quoted_lines_stand_in_their_files_in_that_order(page):
    assert len(quotes(page)) >= 5
    for name, lines in quotes(page):
        source = iter([line.split("  # ")[0].strip() for line in (ROOT / name).read_text().splitlines()])
        missing = [line for line in lines if line not in source]  # `in` reads on from where the last one was found
        assert not missing, f"{name} has not, or not in this order: {missing}"


DRAWN_BY = {
    "sampler-sweep": "hf-ddpm sweep runs/mnist/checkpoint",
    "vae": "python -m benchmarks.vae_pictures",
    "mnist-latent": "hf-ddpm train --recipe mnist-latent",
    "guidance-classifier": "hf-ddpm figure guidance runs/guidance/unconditional-seed0",
    "guidance-free": "hf-ddpm figure guidance runs/guidance/classifier-free-seed0",
    "guidance-sweep": "hf-ddpm sweep runs/guidance",
    "guidance-free-sweep": "hf-ddpm sweep runs/guidance",
    **dict.fromkeys(("T-1", "T-2", "T-4", "T-8", "T-4-without-z"), "python -m benchmarks.gaussians"),
}


@pytest.mark.parametrize("page", [*DOCS, *BESIDE_DOCS])
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_a_command_draws_every_picture(page):
    for target, _ in links(page):
        if target.suffix == ".png":
            assert target.stem in FIGURES or DRAWN_BY[target.stem] in text(page), target


def test_the_index_links_every_page():
    linked = {target.resolve() for target, _ in links(INDEX)}
    assert {ROOT / page for page in [*DOCS, *BESIDE_DOCS] if page != INDEX} - linked == set()


def test_the_figures_of_the_readme_stand_on_the_linked_pages():
    linked = re.findall(r"\[([^\]]*\d[^\]]*)\]\((docs/[^)#]+\.md)[^)]*\)", text("README.md"))
    assert len(linked) >= 8
    for words, page in linked:
        missing = [figure for figure in re.findall(r"[\d.]*\d", words) if figure not in text(page)]
        assert not missing, f"{page} does not have {missing}"


def test_every_recipe_has_a_row():
    rows = re.findall(r"^\| `([\w-]+)` \|", text("docs/training.md"), re.M)
    assert {recipe.stem for recipe in (ROOT / "training/recipes").glob("*.yaml")} - set(rows) == set()


@pytest.mark.parametrize("page", [*PAGES, "README.md", INDEX])
def test_tables_have_as_many_cells_in_every_row(page):
    """A | within a formula would cut it in two."""
    for table in re.findall(r"(?:^\|.*\n)+", text(page), re.M):
        cells = [line.count("|") for line in table.splitlines()]
        assert len(set(cells)) == 1, table
