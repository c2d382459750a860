"""Pictures of a run: what they say, what they are drawn from, and what is left out where data is missing."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.errors import ConfigError
from configs.stability import DetectorsConfig, RankCollapseConfig
from monitoring.history import History
from monitoring.pictures import draw_pictures
from monitoring.pictures.heads import MOST_COLUMNS, MOST_ROWS, entropy_of_heads, heat_map
from monitoring.pictures.layers import largest_logits, token_cosines
from monitoring.pictures.loss import MOST_LANES, lanes_of, loss_and_events, title
from monitoring.pictures.spectra import fan, spectral_norms
from monitoring.recorder import Recorder, append_event
from monitoring.style import LIGHT
from tests.synthetic_run import INTERVAL, NAMES, STEPS, write_run

DETECTORS = DetectorsConfig()


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context(LIGHT.rc):
        yield


def history_of(folder: Path) -> History:
    history = History(folder)
    history.update()
    return history


@pytest.fixture(scope="module")
def collapsing(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "collapsing", collapses=True)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "healthy", collapses=False)


def texts(figure: Figure) -> list[str]:
    """Everything that is written in a figure."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def headline(figure: Figure) -> str:
    return figure.get_suptitle()


def test_all_pictures_of_a_run_are_written_and_readable(collapsing):
    written = draw_pictures(collapsing)
    assert [path.name for path in written] == ["loss.png", "entropy.png", "logits.png", "tokens.png", "spectra.png"]
    assert sorted((collapsing / "pictures").iterdir()) == sorted(written)  # no scratch file stays
    for path in written:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 1000 and pixels[..., :3].std() > 0.01
    assert draw_pictures(collapsing) == written


@pytest.mark.parametrize(
    ("metrics", "signals", "expected"),
    [
        ({}, {}, []),
        ({"grad_norm": 1.0}, {}, []),
        ({"loss": 2.0}, {}, ["loss"]),
        ({"loss": 2.0}, {"max_logit": np.ones((1, 1))}, ["loss", "logits"]),
        ({"loss": 2.0}, {"sigma": np.ones(1), "matrix": np.array(["a"])}, ["loss", "spectra"]),
        ({}, {"entropy_ratio": np.ones((2, 2)), "token_cosine": np.ones(2)}, ["entropy", "tokens"]),
    ],
)
def test_what_a_run_does_not_have_is_not_drawn(tmp_path, metrics, signals, expected):
    with Recorder(tmp_path) as recorder:
        for step in (1, 2):
            if metrics:
                recorder.log(step, **metrics)
            if signals:
                recorder.signals(step, **signals)
    assert [path.stem for path in draw_pictures(tmp_path)] == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0], ids=str)
def test_runs_of_nothing_but_odd_numbers_have_pictures(tmp_path, value):
    with Recorder(tmp_path) as recorder:
        for step in (1, 2, 3):
            recorder.log(step, loss=value, val_loss=value)
            per_head, per_matrix = np.full((2, 2), value), np.full(2, value)
            recorder.signals(
                step, entropy_ratio=per_head, max_logit=per_head, token_cosine=np.full(2, value),
                sigma=per_matrix, gamma=np.full(2, np.nan), matrix=np.array(["a", "b"]),
            )  # fmt: skip
    assert "loss" in [path.stem for path in draw_pictures(tmp_path)]


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        draw_pictures(tmp_path)


def test_the_first_collapsed_head_is_named_and_marked(collapsing):
    figure = entropy_of_heads(history_of(collapsing), DETECTORS)
    assert headline(figure) == "Attention collapsed: layer 2 head 1 first, at step 30"
    assert "first: layer 2 head 1, step 30" in texts(figure)
    ring = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [tuple(line.get_xydata()[0]) for line in ring] == [(30, 2 * 4 + 1.5)]
    right = [label.get_text() for label in figure.axes[0].child_axes[0].get_yticklabels()]
    assert right == ["step 50", "never", "step 30", "never"]


def test_a_healthy_run_is_said_to_be_so(healthy):
    figure = entropy_of_heads(history_of(healthy), DETECTORS)
    assert headline(figure) == "No head collapsed: the lowest is layer 1 head 3, 62% at step 10"
    assert not figure.axes[0].child_axes and not figure.axes[0].texts


def test_one_collapsed_head_is_no_collapse_of_attention(tmp_path):
    with Recorder(tmp_path) as recorder:
        for step in (10, 20):
            ratio = np.full((4, 4), 0.9)
            ratio[3, 3] = 0.9 if step == 10 else 0.01
            recorder.signals(step, entropy_ratio=ratio)
    figure = entropy_of_heads(history_of(tmp_path), DETECTORS)
    assert headline(figure) == (
        "Single heads collapsed, the attention as a whole did not: layer 3 head 3 first, at step 20"
    )


def test_the_limits_are_the_configured_ones(collapsing):
    limits = DetectorsConfig.model_validate({"entropy": {"floor": 0.65}})
    assert "layer 1 head 3 first, at step 10" in headline(entropy_of_heads(history_of(collapsing), limits))


def test_the_heat_map_keeps_what_is_low_when_there_is_too_much():
    steps = np.arange(1, 4001)
    ratio = np.full((4000, 60, 40), 0.9)
    ratio[2501, 50, 39] = 0.01
    shown = heat_map(steps, ratio, 0.1)
    assert shown.ratio_RC.shape == (60, MOST_COLUMNS) and MOST_ROWS < 60 * 40
    rows, columns = np.nonzero(shown.ratio_RC < 0.1)
    assert rows.tolist() == [50] == [shown.row(shown.first[0])]
    assert shown.edge_C[columns[0]] <= 2502 <= shown.edge_C[columns[0] + 1]
    assert shown.first[0].place == "layer 50 head 39"
    assert (np.diff(shown.edge_C) > 0).all()


def test_entropy_that_is_no_number_is_told_from_collapse(tmp_path):
    with Recorder(tmp_path) as recorder:
        for step in (10, 20):
            ratio = np.full((2, 2), 0.9)
            ratio[1] = 0.9 if step == 10 else np.nan
            recorder.signals(step, entropy_ratio=ratio)
    written = texts(entropy_of_heads(history_of(tmp_path), DETECTORS))
    assert "NaN from step 20" in written and any("grey: not a number" in text for text in written)


def test_logits_and_tokens_name_the_first_layer(collapsing, healthy):
    logits = largest_logits(history_of(collapsing), DETECTORS)
    assert headline(logits) == "Attention logits passed 1,000: layer 3 head 0 first, at step 80"
    lasting = DETECTORS.model_copy(update={"rank": RankCollapseConfig(steps=50)})
    tokens = token_cosines(history_of(collapsing), lasting)
    assert headline(tokens) == "Likeness of tokens passed 0.99: layer 1 first, at step 40"
    calm = headline(largest_logits(history_of(healthy), DETECTORS))
    assert calm == "Attention logits stayed under 1,000: at most 6, in layer 0 at step 100"
    assert {"layer 0", "layer 1", "layer 2", "layer 3"} <= set(texts(logits))


def test_tokens_that_are_alike_for_a_while_have_not_collapsed(tmp_path):
    with Recorder(tmp_path) as recorder:
        for step in (1, 10, 20, 70):
            recorder.signals(step, token_cosine=np.array([0.2, 0.999 if step == 10 else 0.5]))
    figure = token_cosines(history_of(tmp_path), DETECTORS)
    assert headline(figure) == (
        "Likeness of tokens passed 0.99 for a short while only: at most 1.00, in layer 1 at step 10"
    )


def test_the_spectra_name_the_outermost_matrix(collapsing):
    figure = spectral_norms(history_of(collapsing), DETECTORS)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "Largest sigma at step 100: 12, matrix layers.0.feedforward.up (median 1.35)",
        "Largest |gamma| at step 100: 3, matrix layers.1.feedforward.up (median 1.15)",
    ]
    sigma = fan(history_of(collapsing), "sigma")
    assert sigma.value_SM.shape == (STEPS // INTERVAL, len(NAMES)) and sigma.is_log
    assert [sigma.names[matrix] for matrix in sigma.extremes] == ["layers.0.feedforward.up", "layers.0.attention.qkv.q"]


def test_matrices_without_a_gamma_have_no_line(tmp_path):
    with Recorder(tmp_path) as recorder:
        for step in (1, 2):
            recorder.signals(step, matrix=np.array(["a", "b"]), sigma=np.ones(2), gamma=np.array([np.nan, 2.0]))
    assert fan(history_of(tmp_path), "gamma").names == ["b"]


def test_the_loss_has_a_lane_for_each_kind_of_event(tmp_path):
    run_dir = write_run(tmp_path / "run", collapses=True)
    where = {"layer": 2, "head": 1}
    append_event(run_dir, 20, "alarm", "x", detector="early_warning", severity="warning", where={"layer": 2})
    append_event(run_dir, 30, "alarm", "x", detector="entropy_collapse", severity="alarm", where=where)
    append_event(run_dir, 31, "lower_lr", "x")
    append_event(run_dir, 50, "checkpoint", "x")
    append_event(run_dir, 60, "alarm", "x", detector="entropy_collapse", severity="alarm", where=where)
    history = history_of(run_dir)
    lanes = [(lane.name, lane.weight, lane.steps, lane.place) for lane in lanes_of(history.events)]
    assert lanes == [
        ("entropy collapse", "bad", [30, 60], "layer 2 head 1"),
        ("early warning", "warning", [20], "layer 2"),
        ("lower lr", "action", [31], ""),
        ("checkpoint", "routine", [50], ""),
    ]
    figure = loss_and_events(history, DETECTORS)
    written = texts(figure)
    assert {
        "entropy collapse (2)",
        "early warning (1)",
        "first: layer 2 head 1",
        "alarm (2)",
        "validation loss",
    } <= set(written)
    assert headline(figure).endswith("first alarm: early warning in layer 2 at step 20")
    marks = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert marks["alarm (2)"] == [30, 60] and marks["validation loss"] == [25, 50, 75, 100]


def test_many_kinds_of_events_share_the_last_lane():
    events = [{"step": step, "kind": f"kind{step}"} for step in range(30)]
    lanes = lanes_of(events)
    assert len(lanes) == MOST_LANES and lanes[-1].name == "other events"
    assert sum(len(lane.steps) for lane in lanes) == 30


def test_huge_spikes_and_losses_that_are_no_numbers(tmp_path):
    with Recorder(tmp_path) as recorder:
        for step in range(1, 5001):
            recorder.log(step, loss=72.0 if step == 3333 else float("nan") if step == 4000 else 2.0)
    figure = loss_and_events(history_of(tmp_path), DETECTORS)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and "(log scale)" in axes.get_ylabel()
    lines = {line.get_label(): line for line in axes.lines}
    curve = lines["training loss"].get_xydata()
    assert len(curve) < 2100 and curve[curve[:, 1] == 72.0].tolist() == [[3333.0, 72.0]]
    assert lines["loss is not a finite number"].get_xdata().tolist() == [4000]


def test_a_run_without_alarms_says_so(healthy):
    history = history_of(healthy)
    assert title(history).endswith("at step 100; no alarm")
    assert len(loss_and_events(history, DETECTORS).axes) == 1
