"""What a benchmark shows: tables on a terminal, JSON, CSV, Markdown, a report for an issue, a plot."""

import csv
import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.examples import BARE, DISTURBED, FULL, HOSTILE, PAGED, decode
from gptoss_mlx.bench import formats, tables
from gptoss_mlx.bench.plot import check_plot, save_plot
from gptoss_mlx.bench.report import print_report
from gptoss_mlx.bench.results import Percentiles, Rates, Spread
from gptoss_mlx.errors import GptOssError

EXAMPLES = {"full": FULL, "bare": BARE, "paged": PAGED, "disturbed": DISTURBED, "hostile": HOSTILE}
every = pytest.mark.parametrize("results", EXAMPLES.values(), ids=EXAMPLES)


def printed(results, width=80):
    console = Console(file=io.StringIO(), width=width)
    print_report(tables.report(results), console)
    return console.file.getvalue()


def test_table_is_what_a_person_reads():
    text = "\n".join(line.rstrip() for line in printed(PAGED).splitlines())
    assert text.startswith(
        """\
gpt-oss-20b, mxfp4-q4 (11.20 GB, 4.28 bits per weight)
AMD EPYC 9R14, 2 cores, avx512-vnni kernels, 2 threads
context 32,768, 16-bit KV cache, 485 of 768 experts in memory, median of 5 runs
Speed
┏━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━┓
┃ what                ┃ tokens/s ┃ least-most ┃ limit ┃ of limit ┃
┡━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━┩
│ decode 128 at 0     │     4.70 │  4.46-4.89 │  20.8 │      23% │
│ decode 128 at 4,096 │     4.10 │  3.89-4.26 │  19.8 │      21% │
└─────────────────────┴──────────┴────────────┴───────┴──────────┘
limit: 40.0-40.0 GB/s read, 0.800-0.800 Top/s in 8-bit products, 0.100-0.100 in
FP32, measured beside each
Each token
┏━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━┳━━━━━┳━━━━━━┳━━━━━━━━━┓
┃ what                ┃ ms p50 ┃ p90 ┃ p99 ┃ most ┃ J/token ┃
┡━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━╇━━━━━╇━━━━━━╇━━━━━━━━━┩
│ decode 128 at 0     │    213 │ 223 │ 266 │  426 │    6.42 │
│ decode 128 at 4,096 │    244 │ 256 │ 305 │  488 │         │
└─────────────────────┴────────┴─────┴─────┴──────┴─────────┘
Experts, paged
┏━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━┓
┃ what                ┃ in memory ┃      read ┃ waiting s ┃
┡━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━┩
│ decode 128 at 0     │     75.0% │ 203.00 GB │      71.4 │
│ decode 128 at 4,096 │     69.0% │ 252.00 GB │      88.2 │
└─────────────────────┴───────────┴───────────┴───────────┘
Start, with a prompt of 16 tokens
"""
    )
    assert text.endswith(
        """\
┏━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━┳━━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━━━┓
┃ stage     ┃   ms ┃ of step ┃    bytes ┃ GB/s ┃ of bandwidth ┃
┡━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━╇━━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━━━┩
│ attention │ 14.2 │     25% │ 441.0 MB │ 31.1 │          78% │
│ experts   │ 33.5 │     59% │  1.27 GB │ 37.9 │          95% │
│ head      │ 8.10 │     14% │ 310.0 MB │ 38.3 │          96% │
│ rest      │ 1.20 │    2.1% │          │      │              │
│ in all    │ 57.0 │    100% │  2.02 GB │ 35.5 │          89% │
└───────────┴──────┴─────────┴──────────┴──────┴──────────────┘"""
    )


@every
@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_a_terminal(results, width):
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for speed in results.speeds:
        assert speed.name in text


def test_what_is_not_known_is_not_told():
    text = printed(BARE)
    assert "decode 128 at 0" in text
    assert not any(word in text for word in ("limit", "p50", "J/token", "Start", "paged", "step", "None", "disturbed"))
    assert text.count("not known") == 3


def test_energy_is_told_where_one_speed_has_it():
    assert "J/token" not in printed(FULL)
    assert "J/token" in printed(replace(BARE, speeds=[replace(BARE.speeds[0], joules_per_token=0.0)]))


def test_nothing_measured():
    text = printed(replace(BARE, speeds=[], finished=False))
    assert "Speed" not in text
    assert "interrupted" in text


def test_one_run_has_no_spread():
    once = replace(FULL, speeds=[replace(FULL.speeds[0], tokens_per_second=Spread.of([100.0]))])
    assert tables.speeds(FULL).columns[2] == "least-most"
    assert "least-most" not in tables.speeds(once).columns
    assert tables.heading(replace(FULL, setup=replace(FULL.setup, repeat=1)))[2].endswith(", one run of each")


def test_percentiles_of_few_tokens_are_not_their_most():
    assert Percentiles.of([2.0, 1.0]) == Percentiles(1.5, None, None, 2.0)
    assert Percentiles.of(list(range(1, 21))) == Percentiles(10.5, 18, None, 20)
    assert Percentiles.of(list(range(1, 201))) == Percentiles(100.5, 180, 198, 200)
    assert tables.tokens(
        replace(FULL, speeds=[replace(decode(2, 0, 5.0), token_seconds=Percentiles.of([0.1, 0.3]))])
    ).rows == [["decode 2 at 0", "200", "300"]]


def test_where_limits_come_from():
    once = replace(FULL, speeds=[replace(FULL.speeds[0], rates=Rates(2e12, 600e12, 600e12))])
    table = tables.speeds(replace(once, machine=replace(FULL.machine, device="NVIDIA H100")))
    assert table.note == "limit: 2,000 GB/s read, 600 Top/s in BF16, measured beside each"
    assert tables.speeds(BARE).note == ""


def test_a_limit_takes_all_rates():
    speed = FULL.speeds[0]
    for rate in ("bandwidth", "matrix", "vector"):
        assert replace(speed, rates=replace(speed.rates, **{rate: None})).limit is None


def test_more_than_the_limit_is_explained():
    speed = decode(128, 0, 50.0)
    assert speed.share > 1
    (line,) = tables.warnings(replace(FULL, speeds=[speed, FULL.speeds[0]]))
    assert line.startswith("above its limit: decode 128 at 0. The machine's rates swing")


def test_a_disturbed_run_says_so():
    assert [line for line in printed(DISTURBED).splitlines() if line.startswith(("disturbed", "interrupted"))] == [
        "disturbed: other programs took 31% of the cores' time meanwhile",
        "disturbed: the host gave 3.1% of these cores' time to others",
        "disturbed: cores were slowed 3 times because they were hot",
        "disturbed: at the end the cores' clock was at 52% of its highest",
        "disturbed: on battery",
        "interrupted: what is missing here was not measured",
    ]
    assert tables.warnings(FULL) == tables.warnings(BARE) == []


def test_random_weights_are_no_model():
    random = replace(FULL, model=replace(FULL.model, random_weights=True))
    assert "random weights" in printed(random).splitlines()[0]
    text = formats.as_markdown(random)
    assert "random weights" in text.splitlines()[0]
    assert dict(markdown_tables(text)["Model"])["random weights"] == "True"


def test_a_name_is_only_text():
    first = printed(HOSTILE, 100).splitlines()[0]
    assert first == r"a|b [red]$x^{$ <b>`\x1b[31m\n=1+1, *m*|[/] (11.20 GB, 4.28 bits per weight)"


def test_numbers_have_three_digits():
    assert [tables.number(value) for value in (0.0531, 4.7, 18.52, 99.96, 421.4, 108_701)] == [
        "0.053",
        "4.70",
        "18.5",
        "100.0",
        "421",
        "108,701",
    ]


@every
def test_json_says_all(results):
    assert json.loads(formats.as_json(results)) == json.loads(json.dumps(results.as_dict()))


@every
def test_csv_has_a_row_for_each_speed(results):
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(results))))
    assert [(row["kind"], int(row["tokens"]), int(row["depth"])) for row in rows] == [
        (speed.kind, speed.tokens, speed.depth) for speed in results.speeds
    ]
    assert list(rows[0]) == formats.SPEED_COLUMNS.split()
    for row, speed in zip(rows, results.speeds, strict=True):
        assert None not in row  # as many cells as names
        assert float(row["tokens_per_second.median"]) == speed.tokens_per_second.median
        assert row["limit_tokens_per_second"] == ("" if speed.limit is None else str(speed.limit))
        assert row["experts.missed"] == (str(speed.experts.missed) if speed.experts else "")
        assert row["machine.processor"] == results.machine.processor
        assert row["finished"] == str(int(results.finished))


def test_csv_of_several_runs_goes_together():
    full, paged = formats.as_csv(FULL), formats.as_csv(PAGED)
    assert full.splitlines()[0] == paged.splitlines()[0]
    assert full.endswith("\n")


def test_csv_holds_no_formula():
    for name in ("=1+1", "+1", "-1", "@SUM(A1)"):
        text = formats.as_csv(replace(FULL, model=replace(FULL.model, name=name)))
        assert next(csv.DictReader(io.StringIO(text)))["model.name"] == f"'{name}"


def markdown_tables(text):
    """Of GitHub's Markdown: the tables, by the heading above each, as rows of cells."""
    found = {}
    for block in text.split("\n\n"):
        if block.startswith("### "):
            title = block.removeprefix("### ")
        if block.startswith("| "):
            rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
            found[title] = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]
    return found


@every
def test_markdown_is_tables(results):
    text = formats.as_markdown(results)
    found = markdown_tables(text)
    assert {"Machine", "Model", "Settings", "Speed", "Memory"} <= found.keys()
    for rows in found.values():
        assert len({len(row) for row in rows}) == 1
        assert all(re.fullmatch("---:?", cell) for cell in rows[1])
    assert [row[0] for row in found["Speed"][2:]] == [speed.name for speed in results.speeds]
    assert "None" not in text
    assert text.endswith(f"### Command\n\n```\n{results.command}\n```\n")


def test_markdown_tells_all_that_was_measured():
    text = formats.as_markdown(PAGED)
    found = markdown_tables(text)
    assert [title.partition(",")[0].partition(":")[0] for title in found] == [
        "Machine",
        "Model",
        "Settings",
        "Speed",
        "Each token",
        "Limit",
        "Experts",
        "Start",
        "Memory",
        "One step of decoding after 4",
    ]
    machine, settings = (dict(found[title]) for title in ("Machine", "Settings"))
    assert machine["kernels"] == "avx512-vnni"
    assert machine["MLX"] == "0.32.4"
    assert machine["commit"] == "c65292d"
    assert machine["load average"] == "0.080"
    assert settings["expert slots"] == "485"
    assert "485 of 768 experts in memory" in text
    assert settings["prompts"] == "the routing of a day of chat"
    assert found["Speed"][2] == ["decode 128 at 0", "4.70", "4.46-4.89", "20.8", "23%"]


def test_markdown_of_a_hostile_name_is_text():
    text = formats.as_markdown(HOSTILE)
    assert dict(markdown_tables(text)["Model"])["name"] == r"a|b [red]$x^{$ <b>`\x1b[31m\n=1+1"
    assert not re.search(r"(?<!\\)[<$\[]", text)


def test_a_fence_is_longer_than_those_in_the_command():
    assert "\n````\nbench '```'\n````\n" in formats.as_markdown(replace(FULL, command="bench '```'"))


def test_submission_is_markdown_with_the_json_folded_away():
    text = formats.submission(FULL)
    before, folded = text.split("<details><summary>JSON</summary>\n\n```json\n")
    assert before.strip() == formats.as_markdown(FULL).strip()
    code, after = folded.split("\n```\n")
    assert json.loads(code) == json.loads(formats.as_json(FULL))
    assert after.strip() == "</details>"


def test_submission_names_nobody(tmp_path):
    command = (
        f"gptoss-mlx bench {tmp_path}/20b/ --gguf='/home/ada l/models/20b.gguf' --baseline ~ada/b.json"
        " --llama-bench ../ada/llama-bench --prompt 512,2048"
    )
    text = formats.submission(replace(FULL, command=command))
    assert (
        "\n```\ngptoss-mlx bench 20b --gguf=20b.gguf --baseline b.json --llama-bench llama-bench --prompt 512,2048\n```"
        in text
    )
    people = {"ada", getpass.getuser(), socket.gethostname(), str(Path.home()), str(tmp_path)}
    assert not [each for each in people if re.search(rf"\b{re.escape(each)}\b", text)]
    assert not re.search(r"(?<![\w<])[/~]\w", text)  # units as in GB/s are no path, and neither is </details>


def test_a_command_that_no_shell_reads_is_left_out():
    assert "ada" not in formats.submission(replace(FULL, command="bench '/home/ada"))


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "results",
    [pytest.param(FULL, marks=slow), pytest.param(BARE, marks=slow), HOSTILE],
    ids=["full", "bare", "hostile"],
)
def test_plot_is_a_picture(results, tmp_path):
    from matplotlib import image

    path = tmp_path / "plot.PNG"
    save_plot(results, path)
    pixels = image.imread(path)
    height, width, _ = pixels.shape
    assert (width, height) == (1800, 750)
    dark = pixels[..., :3].min(axis=2) < 0.9
    assert dark[:, : width // 2].any()
    assert dark[:, width // 2 :].any()
    assert 0.005 < dark.mean() < 0.3
    assert not dark[:, [0, -1]].any()  # nothing is cut off
    assert not dark[[0, -1]].any()
    assert os.listdir(tmp_path) == ["plot.PNG"]


@pytest.fixture(scope="module")
def plot_of(tmp_path_factory):
    """The picture of results, drawn once."""
    folder, made = tmp_path_factory.mktemp("plots"), {}

    def plot_of(results):
        if id(results) not in made:
            made[id(results)] = folder / f"{len(made)}.svg"
            save_plot(results, made[id(results)])
        return made[id(results)]

    return plot_of


@pytest.mark.parametrize(
    "results", [FULL, BARE, *(pytest.param(each, marks=slow) for each in (PAGED, DISTURBED, HOSTILE))], ids=EXAMPLES
)
def test_plot_says_what_it_shows(results, plot_of):
    """Letters are drawn as outlines; matplotlib puts each text beside them as a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(plot_of(results), parser).getroot()
    texts = {each.text.strip() for each in root.iter() if each.tag is ElementTree.Comment}
    assert {
        "Speed: median, least and most",
        "tokens/s",
        "depth of the context (tokens)",
        "Memory",
        "memory (GB)",
    } <= texts
    assert {f"{speed.kind} of {speed.tokens:,} tokens" for speed in results.speeds} <= texts
    assert {f"{speed.depth:,}" for speed in results.speeds} <= texts
    assert ("limit of each" in texts) == (results is not BARE)
    assert ("not known" in texts) == (results is BARE)
    assert ("most that was measured, 11.70 GB" in texts) == (results is not BARE)


def test_plot_of_nothing(tmp_path):
    save_plot(replace(FULL, speeds=[]), tmp_path / "plot.svg")
    assert "not known" in (tmp_path / "plot.svg").read_text()


@pytest.mark.slow
def test_plot_of_many_sizes_and_depths(tmp_path):
    depths = [0, *(128 << n for n in range(10))]
    speeds = [decode(tokens, depth, 20 / (1 + depth / 1e4)) for tokens in range(1, 9) for depth in depths]
    save_plot(replace(FULL, speeds=speeds), tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "<!-- 65,536 -->" in text
    assert "<!-- decode of 8 tokens -->" in text


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "png"])
def test_plot_of_another_kind(name, tmp_path):
    with pytest.raises(GptOssError, match=r"a plot is a \.png or a \.svg file"):
        check_plot(tmp_path / name)
    with pytest.raises(GptOssError, match=r"a plot is a \.png or a \.svg file"):
        save_plot(FULL, tmp_path / name)


def test_plot_that_cannot_be_written(tmp_path):
    with pytest.raises(GptOssError, match=r"cannot write .*plot\.png: its folder is not there"):
        check_plot(tmp_path / "missing" / "plot.png")
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(GptOssError, match=r"cannot write .*plot\.png: not a regular file"):
        save_plot(BARE, tmp_path / "plot.png")
    assert os.listdir(tmp_path) == ["plot.png"]


def drawn(path, **environment):
    """`save_plot` in a process of its own, without a display."""
    code = "from bench.examples import FULL\nfrom gptoss_mlx.bench.plot import save_plot\n"
    code += f"from pathlib import Path\nfrom gptoss_mlx.errors import GptOssError\nsave_plot(FULL, Path({str(path)!r}))"
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)


def test_a_persons_settings_do_not_change_a_plot(plot_of, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10}):
        save_plot(FULL, tmp_path / "other.svg")
    assert plot_of(FULL).read_bytes() == (tmp_path / "other.svg").read_bytes()


@pytest.mark.slow
def test_plot_is_silent_and_a_persons_settings_do_not_change_it(tmp_path):
    """As in a home in which matplotlib finds nothing that it has made before, and cannot make it."""
    save_plot(FULL, tmp_path / "here.svg")
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsavefig.dpi: 10\n")
    done = drawn(
        tmp_path / "there.svg",
        MPLCONFIGDIR="/proc/nowhere",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        MPLBACKEND="TkAgg",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "there.svg").read_bytes() == (tmp_path / "here.svg").read_bytes()


def test_a_matplotlib_that_does_not_start(tmp_path):
    done = drawn(tmp_path / "plot.png", MPLBACKEND="nonsense")
    assert "GptOssError: matplotlib does not start: Key backend: 'nonsense'" in done.stderr.strip().splitlines()[-1]


def test_without_matplotlib(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = r"^--plot draws with matplotlib: pip install 'gptoss-mlx\[plot\]'$"
    with pytest.raises(GptOssError, match=line):
        save_plot(FULL, tmp_path / "plot.png")
    assert not os.listdir(tmp_path)
