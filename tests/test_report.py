"""The report as text and as the source of a page: what is told, safely, from whatever stands in a run's folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import plotly.graph_objects
import pytest
from made_runs import EVALUATION, put, write_run

from zephyr_kit import cli
from zephyr_kit.facts import read_run
from zephyr_kit.report import FORMATS, write_reports
from zephyr_kit.report.page import rendered
from zephyr_kit.report.views import View
from zephyr_kit.words import duration, figure, operations, short

FORGED = '</script><script>alert("no")</script><img src="https://example.org/x.png">'
CATEGORIES = ("writing", "roleplay", "reasoning", "math")


def zkit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return FORMATS["html"]([read_run(run)])


def without_plotly(page: str) -> str:
    return re.sub(r'(?s)<script type="text/plain" id="plotly">.*?</script>', "", page)


def drawn(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page)[1])


# The page


def test_the_page_asks_for_nothing_beside_it(page: str) -> None:
    assert not re.search(r'(src|href)="(?!#|data:)', without_plotly(page))
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


@pytest.mark.parametrize("several", [False, True])
def test_every_plot_is_one_that_plotly_knows(tmp_path: Path, several: bool) -> None:
    names = ("one", "two") if several else ("one",)
    runs = [read_run(write_run(tmp_path / name, title="By category", columns=dict.fromkeys(CATEGORIES, ""))) for name in names]
    runs.append(read_run(write_run(tmp_path / "three")))
    found = View(runs).for_page()
    assert len(found["plots"]) > 15
    for plot in found["plots"].values():
        plotly.graph_objects.Figure(plot["traces"], plot["layout"])
        for trace in plot["traces"]:
            if "axis" in trace["meta"]:
                axis = found["axes"][trace["meta"]["axis"]]
                assert {len(column) for column in axis.values()} == {len(trace["y"])}
                assert {"step", "examples", "tokens", "flops", "hours"} <= set(axis)


def test_each_plot_is_told_in_words_too(page: str) -> None:
    places = re.findall(r'data-plot="([^"]+)" role="img" aria-label="([^"]+)"', page)
    assert sorted(place for place, _ in places) == sorted(drawn(page)["plots"])
    assert "Loss. training: 1 at the start, 0.05 at the end; held-out: 0.2 at the start, 0.1 at the end" in [told for _, told in places]


def test_tabs_and_panels_belong_together(page: str) -> None:
    tabs = re.findall(r'role="tab" id="([^"]+)" data-name="[^"]+" aria-controls="([^"]+)"', page)
    panels = re.findall(r'role="tabpanel" id="([^"]+)" aria-labelledby="([^"]+)"', page)
    assert [(panel, tab) for tab, panel in tabs] == panels
    assert len(tabs) == 7


def test_what_others_wrote_stays_text(tmp_path: Path) -> None:
    sample = {"prompt": FORGED, "sft": FORGED, FORGED: FORGED}
    folder = write_run(tmp_path / "x", title=FORGED, columns={FORGED: FORGED}, rows={FORGED: {FORGED: 1.0}}, samples=[sample])
    ledger = json.loads((folder / "dpo" / "data.json").read_text())
    put(folder / "dpo" / "data.json", {**ledger, "reasons": {FORGED: 3}, "portions": [{"source": FORGED}]})
    (folder / "dpo" / "done.json").unlink()
    page = without_plotly(FORMATS["html"]([read_run(folder)]))
    assert page.count("alert(") > 8
    assert "<script>alert" not in page
    assert "<img" not in page
    assert FORGED in str(drawn(page))


def test_the_text_writes_what_others_wrote_as_text(tmp_path: Path) -> None:
    """Markdown takes HTML as it stands."""
    sample = {"prompt": FORGED, "dpo": f"{FORGED} & more"}
    text = FORMATS["md"]([read_run(write_run(tmp_path / "x", samples=[sample]))])
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script>" in text or "&lt;img" in text
    assert "&amp; more" in text


def test_the_page_can_be_read_whatever_was_measured(tmp_path: Path) -> None:
    rows = {"dpo": {"wins": float("nan"), "loss": float("inf")}, "sft": {"wins": 1.0, "loss": 2.0}}
    folder = write_run(tmp_path / "x", rows=rows, intervals={"sft": {"wins": [float("-inf"), 1.0]}})
    put(folder / "evaluations" / "a-1" / "evaluation.json", {"evaluations": [{**EVALUATION, "title": "Afterwards"}]})
    for ending in FORMATS:
        text = without_plotly(FORMATS[ending]([read_run(folder)]))
        assert "Afterwards" in text
        assert "NaN" not in text
        assert "Infinity" not in text
    page = rendered('<script type="application/json" id="page-data">{{ data|tojson }}</script>', {}, data={"y": [float("nan"), (1.0,)]})
    assert drawn(page) == {"y": [None, [1.0]]}


# The same facts, two renderings


def test_page_and_text_tell_the_same(run: Path, page: str) -> None:
    text = FORMATS["md"]([read_run(run)])
    told = ["0.75 (0.625 to 0.875)", "Once upon a time.", "dpo (beta 0.1)", "model of sft", "LoRA of rank 8", "base-model", "$1.25"]
    told += ["90.0%", "share of wins", "All 4 stages are done", "of 100 rows of data, 4 bad, 6 dropped: 6 x too long"]
    for each in told:
        assert each in page, each
        assert each in text, each
    assert "a run <b>made</b> for tests" in text
    assert "a run &lt;b&gt;made&lt;/b&gt; for tests" in page


def test_every_table_of_the_text_has_cells_for_all_columns(run: Path) -> None:
    text = FORMATS["md"]([read_run(run)])
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_a_mark_in_a_cell_does_not_break_the_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", rows={"a|b\nc": {"wins": 1.0}})
    (line,) = [line for line in FORMATS["md"]([read_run(folder)]).splitlines() if line.startswith("| a\\|")]
    assert line.startswith(r"| a\|b c |")


def test_a_run_that_has_hardly_begun_has_a_report_too(tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "preset.toml").write_text('name = "begun"\n[stages.sft]\nobjective = "sft"\n')
    for render in FORMATS.values():
        told = render([read_run(folder)])
        assert "0 of 1 stages are done" in told
        assert "to come" in told


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, beta=beta)) for name, beta in (("weak", 0.1), ("strong", 0.5))]
    page, text = (FORMATS[ending](runs) for ending in ("html", "md"))
    (loss,) = [plot for name, plot in drawn(page)["plots"].items() if name == "dpo-loss"]
    names = [f"{run} · {part}" for run in ("weak", "strong") for part in ("training", "held-out")]
    assert [trace["name"] for trace in loss["traces"]] == names
    assert "| stages.dpo.objective.beta | 0.1 | 0.5 |" in text
    assert page.count("Once upon a time.") == 2
    assert page.count("Tell a story.") == 1


def test_categories_make_a_radar(tmp_path: Path) -> None:
    rows = {"sft": dict.fromkeys(CATEGORIES, 5.0), "dpo": dict.fromkeys(CATEGORIES, 7.0)}
    view = View([read_run(write_run(tmp_path / "x", columns=dict.fromkeys(CATEGORIES, ""), rows=rows))])
    (measured,) = view.measured
    assert [trace["type"] for trace in measured.plots[0].traces] == ["scatterpolar"] * 2
    view = View([read_run(write_run(tmp_path / "y"))])
    assert [plot.title for plot in view.measured[0].plots] == list(EVALUATION["columns"])


def test_counts_and_tables_without_a_value_are_not_drawn(tmp_path: Path) -> None:
    rows = {"sft": {"points": 5.0, "compared": 80}, "dpo": {"points": 6.0, "compared": 80}}
    made = write_run(tmp_path / "x", columns={"points": "higher is better", "compared": "how many"}, rows=rows)
    empty = {"columns": dict.fromkeys(CATEGORIES, ""), "rows": {"sft": dict.fromkeys(CATEGORIES)}}
    put(made / "evaluations" / "a-1" / "evaluation.json", {"evaluations": [{**EVALUATION, **empty, "title": "By category"}]})
    counted, radar = View([read_run(made)]).measured
    assert [plot.title for plot in counted.plots] == ["points"]
    assert (counted.unplotted, radar.plots) == ({"compared": "how many"}, [])
    assert "how many" in FORMATS["html"]([read_run(made)])


def test_answers_stand_by_their_evaluation_and_each_prompt_alone(tmp_path: Path) -> None:
    again = [{"prompt": "Tell a story.", "dpo": "Twice."}] * 2
    made = write_run(tmp_path / "x")
    for number in range(2):
        evaluation = {**EVALUATION, "samples": again}
        put(made / "evaluations" / f"wishes-{number}" / "evaluation.json", {"evaluations": [evaluation]})
    answers = View([read_run(made)]).answers
    assert {title: [len(one.replies) for one in own] for title, own in answers.items()} == {
        "Wishes": [2],
        "Wishes (wishes-0)": [1, 1],
        "Wishes (wishes-1)": [1, 1],
    }
    assert FORMATS["md"]([read_run(made)]).count("\n## Answers of Wishes (wishes-0)\n") == 1


def test_an_interval_is_drawn_where_there_is_one(run: Path) -> None:
    wins, loss = View([read_run(run)]).measured[0].plots
    assert (wins.traces[0]["error_x"]["array"], wins.traces[0]["error_x"]["arrayminus"]) == ([0.125], [0.125])
    assert [trace["error_x"]["visible"] for plot in (wins, loss) for trace in plot.traces] == [True, False]


@pytest.mark.parametrize(
    ("told", "expected"),
    [(figure(None), "–"), (figure(12345), "12,345"), (figure(0.123456), "0.1235"), (short(1_470_000), "1.47 M"), (short(941), "941"),
     (short(None), "–"), (operations(7.06e12), "7.06 TFLOP"), (operations(12), "12 FLOP"), (duration(7.861), "7.86 s"),
     (duration(141.4), "2 min 21 s"), (duration(7260), "2 h 01 min"), (duration(200_000), "2 d 7 h")],
)  # fmt: skip
def test_figures_are_in_words(told: str, expected: str) -> None:
    assert told == expected


# The command


def test_a_report_is_written_where_it_is_looked_for(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert zkit("report", run) == 0
    assert capsys.readouterr().out == f"report   {run / 'report.html'}\n"
    assert zkit("report", run, "--format", "md", "--out", "-") == 0
    assert capsys.readouterr().out.startswith("# made\n")
    assert zkit("report", run, write_run(tmp_path / "other"), "--out", "new/both.html") == 0
    assert "made · other" in Path("new/both.html").read_text("utf-8")
    assert zkit("report", run, tmp_path / "other", "--format", "md") == 0
    assert Path("report.md").exists()
    assert write_reports(run) == [run / "report.html", run / "report.md"]


def test_only_a_report_is_replaced_without_a_word_from_the_user(run: Path, tmp_path: Path, capsys) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_bytes(b"mine, about `zkit report` \xff")
    assert zkit("report", run, "--out", precious) == 1
    assert f"{precious}: is there already, and is no report of ours; choose another file with --out" in capsys.readouterr().err
    assert precious.read_bytes().startswith(b"mine")
    for ending in FORMATS:
        for told in ("", ", in place of an earlier one"):
            assert zkit("report", run, "--format", ending, "--out", tmp_path / "report") == 0
            assert capsys.readouterr().out == f"report   {tmp_path / 'report'}{told}\n"
        (tmp_path / "report").unlink()
    assert zkit("report", run, "--out", precious, "--force") == 0
    assert precious.read_text("utf-8").startswith("<!doctype html>")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys) -> None:
    assert zkit("report", tmp_path) == 1
    assert "give the folder that `zkit run` wrote" in capsys.readouterr().err
    assert zkit("report", write_run(tmp_path / "run"), "--out", "/proc/no/report.html") == 1
    assert "choose another file with --out" in capsys.readouterr().err


def test_it_opens_in_the_browser(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)
    assert zkit("report", run, "--out", tmp_path / "r.html", "--open") == 0
    assert opened == [str(tmp_path / "r.html")]
