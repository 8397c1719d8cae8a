"""The board: it sees what is new, answers to its own address alone, and follows a training in a real browser."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from browser import barriers, chromium, opened
from launched import slow
from tiny_presets import FROM_SCRATCH

from zephyr_kit.board.server import Board
from zephyr_kit.board.watch import Watch, summary
from zephyr_kit.facts import curves as curves_of_facts
from zephyr_kit.runs import RunError, RunFolder

BETA = "stages.dpo.objective.beta"


def lines(first: int, last: int, beta: float) -> str:
    """Steps as `metrics.jsonl` has them, with a look at held-out data each hundred."""
    found = []
    for step in range(first, last + 1):
        figures = {"loss": 1 / step + beta, "reward/chosen": beta, "reward/rejected": -beta, "learning_rate": 1e-3}
        found.append({"step": step, "epoch": step / 1000, **figures, "num_tokens": 100, "num_targets": 50, "tokens_per_second": 1000.0})
        if step % 100 == 0:
            found.append({"step": step, "held_out/loss": 2 / step + beta})
    return "".join(json.dumps(line) + "\n" for line in found)


def write_run(folder: Path, *, beta: float, steps: int = 20, done: bool = True) -> Path:
    """A run as `zkit run` leaves it, as far as the board looks at it."""
    stage = folder / "dpo"
    stage.mkdir(parents=True)
    (folder / "preset.toml").write_text('name = "tiny"\n[model]\nuse = "mistral"\n[stages.dpo]\nobjective = "dpo"\n', "utf-8")
    settings = {BETA: beta, "stages.dpo.train.steps": steps, "stages.dpo.train.held_out_every": 100, "stages.dpo.held_out[0].use": "jsonl"}
    told = [{"path": path, "value": value, "origin": "a test"} for path, value in settings.items()]
    (folder / "settings.json").write_text(json.dumps(told), "utf-8")
    session = {"stage": "dpo", "command": ["run"], "seconds": 9.0, "outcome": "done" if done else "", "exit": 0}
    (folder / "run.json").write_text(json.dumps([session]), "utf-8")
    (stage / "metrics.jsonl").write_text(lines(1, steps, beta), "utf-8")
    if done:
        (stage / "done.json").write_text(json.dumps({"steps": steps, "files": {}}), "utf-8")
    return folder


@contextmanager
def served(folder: Path):
    board = Board(Watch(folder), 0)
    thread = threading.Thread(target=board.serve_forever)
    thread.start()
    try:
        yield board
    finally:
        board.shutdown()
        thread.join()
        board.server_close()


def ask(board: Board, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", board.server_port)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read()
    connection.close()
    return found


# What it sees


def test_it_finds_runs_below_a_folder_and_reads_again_only_what_has_changed(tmp_path):
    write_run(tmp_path / "alone", beta=0.1)
    write_run(tmp_path / "sweep" / "beta-0.2", beta=0.2)
    write_run(tmp_path / "sweep" / "beta-0.2" / "superseded" / "no-run", beta=0.3)
    (tmp_path / "no-run").mkdir()
    watch = Watch(tmp_path)
    before = watch.runs()
    assert set(before) == {"alone", "sweep/beta-0.2"}
    assert all(watch.runs()[name] is seen for name, seen in before.items())
    with (tmp_path / "alone" / "dpo" / "metrics.jsonl").open("a") as file:
        file.write(lines(21, 22, 0.1))
    after = watch.runs()
    assert after["alone"].facts.stages[0].curves.num_steps == 22
    assert after["sweep/beta-0.2"] is before["sweep/beta-0.2"]
    assert next(iter(after)) == "alone"
    shutil.rmtree(tmp_path / "alone")
    assert set(watch.runs()) == {"sweep/beta-0.2"}


def test_of_a_long_run_it_reads_little(tmp_path, monkeypatch):
    run = write_run(tmp_path / "long", beta=0.1, steps=10_000)
    size = (run / "dpo" / "metrics.jsonl").stat().st_size
    parsed = []
    counting = SimpleNamespace(loads=lambda text, **ways: parsed.append(text) or json.loads(text, **ways))
    monkeypatch.setattr(curves_of_facts, "json", counting)
    watch = Watch(tmp_path)
    (told,) = summary(watch.runs()).values()
    assert sum(map(len, parsed)) < size / 100
    stage = told["stages"]["dpo"]
    assert stage["step"] == 10_000
    assert stage["last"]["loss"] == 1e-4 + 0.1
    assert stage["last"]["held_out/loss"] == 2e-4 + 0.1
    curves = watch.read("long", 500).stages[0].curves
    assert sum(map(len, parsed)) < size / 10
    assert 400 < len(curves.steps["loss"]) < 600
    assert curves.held_out["step"][-1] == 10_000


def test_states_and_what_is_left(tmp_path):
    write_run(tmp_path / "done", beta=0.1)
    running = write_run(tmp_path / "running", beta=0.1, steps=30, done=False)
    settings = (running / "settings.json").read_text("utf-8").replace('"value": 30', '"value": 120')
    (running / "settings.json").write_text(settings, "utf-8")
    with RunFolder(running).locked():
        told = summary(Watch(tmp_path).runs())
    assert {name: run["state"] for name, run in told.items()} == {"done": "done", "running": "running"}
    assert told["running"]["stages"]["dpo"]["progress"] == 0.25
    assert told["running"]["stages"]["dpo"]["seconds_left"] == pytest.approx(3 * 30 * 0.1)
    assert summary(Watch(tmp_path).runs())["running"]["state"] == "unfinished"
    assert told["done"]["settings"] == {"stages.dpo.train.steps": 20}


# Who it answers


@pytest.fixture
def board(tmp_path):
    for beta in (0.1, 0.2):
        write_run(tmp_path / f"beta-{beta}", beta=beta)
    with served(tmp_path) as board:
        yield board


def test_it_answers_on_loopback_to_its_own_names_alone(board):
    assert board.socket.getsockname()[0] == "127.0.0.1"
    assert board.socket.family is socket.AF_INET
    for host in ("127.0.0.1", "localhost"):
        assert ask(board, "/runs", Host=f"{host}:{board.server_port}")[0] == 200
    for host in ("evil.example", f"evil.example:{board.server_port}", "127.0.0.1", ""):
        assert ask(board, "/runs", Host=host)[0] == 403
    status, headers, _ = ask(board, "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers


def test_pages_of_others_are_not_answered(board):
    own = f"http://127.0.0.1:{board.server_port}"
    assert ask(board, "/runs", Origin=own)[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1"):
        assert ask(board, "/runs", Origin=origin)[0] == 403
    assert "frame-ancestors 'none'" in ask(board, "/")[1]["Content-Security-Policy"]


def test_a_report_may_be_asked_for_first_and_one_of_a_run_that_goes_is_not_there(board, monkeypatch):
    assert ask(board, "/report?run=beta-0.1")[0] == 200
    for error in (RunError("gone"), KeyError("beta-0.1")):
        monkeypatch.setattr("zephyr_kit.board.server.read_run", lambda folder, error=error: (_ for _ in ()).throw(error))
        assert ask(board, "/report?run=beta-0.1")[0] == 404


def test_it_reads_nothing_but_runs_below_its_folder(board, tmp_path_factory):
    elsewhere = write_run(tmp_path_factory.mktemp("elsewhere") / "run", beta=0.3)
    ask(board, "/runs")
    for name in (str(elsewhere), f"../{elsewhere.parent.name}/run", "..", ""):
        assert json.loads(ask(board, f"/curves?stage=dpo&run={name}")[2])["plots"] == []
    for path in ("/../watch.py", "/watch.py", "/settings.json", "/nothing"):
        assert ask(board, path)[0] == 404


def test_the_curves_are_those_of_the_report_and_so_is_the_page(board):
    ask(board, "/runs")
    told = json.loads(ask(board, "/curves?stage=dpo&run=beta-0.1&run=beta-0.2")[2])
    assert told["runs"] == ["beta-0.1", "beta-0.2"]
    loss = next(plot for plot in told["plots"] if plot["title"] == "Loss")
    assert [trace["y"][0] for trace in loss["traces"]] == [1.1, 1.2]
    assert told["axes"][loss["traces"][0]["meta"]["axis"]]["step"] == list(range(1, 21))
    status, headers, page = ask(board, "/report?run=beta-0.1&run=beta-0.2")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert b"beta-0.1" in page
    assert b"</html>" in page
    assert ask(board, "/report?run=other")[0] == 404


# In a browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


TRAINING = """
name = "live"
""" + FROM_SCRATCH + """[stages.sft]
objective = "sft"
data = [{ use = "quickstart", part = "chat", count = 8 }]
max_length = 512
train = { steps = 40, examples_per_step = 4, learning_rate = 1e-3 }
"""


@pytest.mark.slow
def test_it_follows_a_training_live(browser, tmp_path):
    (tmp_path / "live.toml").write_text(TRAINING, "utf-8")
    runs = tmp_path / "runs"
    runs.mkdir()
    arguments = ["run", str(tmp_path / "live.toml"), "--output", str(runs / "live")]
    expect = pytest.importorskip("playwright.sync_api").expect
    with served(runs) as board, opened(browser, board.address) as page:
        page.get_by_text("There is no run yet.").wait_for()
        training = forked.start(arguments, tmp_path / "said.txt", prepare=slow)  # at rest, the page looks every three seconds
        row = page.locator("#runs tbody tr")
        row.get_by_text("running").wait_for(timeout=120_000)
        page.locator("progress").wait_for(timeout=120_000)
        page.locator("#plots .main-svg").first.wait_for()
        stage = row.locator("td").nth(2)
        expect(stage).not_to_have_text(stage.inner_text(), timeout=120_000)
        row.get_by_text("done").wait_for(timeout=120_000)
        assert training.wait(120) == 0, training.said
        page.get_by_text("sft, step 40").wait_for()
        page.get_by_text("1 done").wait_for()
        assert page.locator("figure figcaption b").all_inner_texts()[:2] == ["Loss", "Gradient norm"]


@pytest.mark.slow
def test_an_answer_that_comes_late_is_not_drawn(browser, tmp_path):
    for number in range(2):
        write_run(tmp_path / f"run-{number}", beta=number / 10, steps=20, done=True)
    held = []
    with served(tmp_path) as board, opened(browser, board.address, viewport={"width": 1300, "height": 1000}) as page:
        page.locator("#plots .main-svg").first.wait_for()
        page.get_by_role("button", name="Compare none").click()
        page.locator("#empty").wait_for()
        page.route("**/curves*", lambda route: route.continue_() if held else held.append(route))
        page.get_by_label("compare run-0", exact=True).check()
        page.get_by_label("compare run-1", exact=True).check()
        page.locator("#settings thead th").nth(2).wait_for()
        with page.expect_response("**/curves*"):
            held[0].continue_()
        page.wait_for_timeout(300)
        assert page.locator("#settings thead th").count() == 3


@pytest.mark.slow
def test_every_control_works_with_pointer_and_keys_and_for_all_readers(browser, tmp_path):
    for number in range(10):
        write_run(tmp_path / f"run-{number}", beta=number / 10, steps=200, done=number != 9)
    with served(tmp_path) as board, opened(browser, board.address, viewport={"width": 1300, "height": 1000}) as page:
        page.get_by_text("10 of 10 listed, 8 compared").wait_for()
        page.locator("#plots .main-svg").first.wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the curves"
        page.get_by_label("Filter").fill("beta=0.3")
        page.get_by_text("1 of 10 listed").wait_for()
        page.get_by_label("Filter").fill("")
        page.locator("#states").get_by_text("done").click()
        page.get_by_text("1 of 10 listed").wait_for()
        page.locator("#states").get_by_text("done").click()
        for name, first in {"Run": "run-0", "Figure": "run-9", "Changed": "run-9", "State": "run-", "Stage": "run-"}.items():
            page.locator("thead").get_by_role("button", name=name).press("Enter")
            assert page.locator("#runs tbody th").first.inner_text().startswith(first), name
        page.get_by_role("button", name="Compare none").click()
        page.get_by_text("10 of 10 listed, 0 compared").wait_for()
        page.locator("#empty").wait_for()
        page.get_by_label("compare run-3", exact=True).check()
        page.get_by_label("compare run-4", exact=True).press("Space")
        page.get_by_text("10 of 10 listed, 2 compared").wait_for()
        page.locator("#settings").get_by_text(BETA).wait_for()
        page.locator("#settings thead th").nth(2).wait_for()
        assert page.locator("#settings thead th").all_inner_texts() == ["setting", "run-3", "run-4"]
        page.get_by_label("Along").select_option("tokens")
        page.get_by_label("Smoothing").press("End")
        page.get_by_label("logarithmic").check()
        page.locator("#plots .xtitle").get_by_text("tokens read").first.wait_for()
        assert page.evaluate("document.querySelector('#plots .plot').data.filter((trace) => trace.opacity).length") == 2
        page.locator("summary").first.click()
        page.locator("figure table").get_by_text("run-3").first.wait_for()
        page.get_by_role("button", name="Compare all listed").click()
        page.get_by_text("10 of 10 listed, 10 compared").wait_for()
        with page.context.expect_page() as reported:
            page.get_by_role("link", name="Report of those compared").click()
        reported.value.get_by_role("tab").first.wait_for()
        reported.value.close()
        for theme in ("light", "dark"):
            page.locator("fieldset").get_by_text(theme).click()
            assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == theme
            assert barriers(page) == []
            page.screenshot(path=tmp_path / f"{theme}.png", full_page=True)
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.screenshot(path=tmp_path / "narrow.png")
