"""A plan of a small network, made by the real thing: phone and edge processes, and a shaped link for the check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner

from splitcore.errors import ScenarioError
from splitcore.link import PROFILES
from testbed.cli import app
from testbed.plan.command import link_of
from testbed.plan.here import from_jpeg, timed_ms, to_jpeg
from testbed.plan.live import FIRST
from testbed.plan.model import Plan, load_plan
from testbed.plan.predict import framed_bytes

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
LINK = "{rate_up_kbps: 200, rate_down_kbps: 1000, delay_ms: 30}"


def depthwise_net(path: Path) -> None:
    """Digits to ten logits: an inverted residual (expand, depthwise, project, add), then a narrower one; untrained."""
    rng = np.random.default_rng(2)
    shapes = {
        "stem_w": (8, 1, 3, 3),
        "expand_w": (32, 8, 1, 1),
        "deep_w": (32, 1, 3, 3),
        "project_w": (8, 32, 1, 1),
        "fc": (8, 10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem_w"], ["stem"], pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["skip"]),
        helper.make_node("Conv", ["skip", "expand_w"], ["expanded"]),
        helper.make_node("Relu", ["expanded"], ["expanded_relu"]),
        helper.make_node("Conv", ["expanded_relu", "deep_w"], ["deep"], pads=[1] * 4, group=32),
        helper.make_node("Relu", ["deep"], ["deep_relu"]),
        helper.make_node("Conv", ["deep_relu", "project_w"], ["projected"]),
        helper.make_node("Add", ["skip", "projected"], ["joined"]),
        helper.make_node("GlobalAveragePool", ["joined"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "depthwise", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 3, name) for name, shape in shapes.items()],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, what was printed): the cuts of the front, one link, the best one checked."""
    folder = tmp_path_factory.mktemp("plan")
    depthwise_net(folder / "net.onnx")
    output = invoke(
        str(folder / "net.onnx"), "--dataset", "digits", "--link", LINK, "--check", "best", "--frames", "30",
        "--samples", "60", "--check-frames", "20", "--runs", str(folder / "runs"), "--out", str(folder), "--name", "narrow",
    )  # fmt: skip
    return folder, output


def plan_of(made: tuple[Path, str]) -> Plan:
    return load_plan(made[0] / "narrow.json")


def test_every_candidate_is_measured_and_named(made: tuple[Path, str]) -> None:
    plan = plan_of(made)
    assert [one.name for one in plan.profile.candidates] == ["image, lossless", "image, jpeg90", "pooled", "all on the phone"]
    for candidate in plan.profile.candidates:
        assert candidate.accuracy is not None and candidate.accuracy.n == 60
        assert candidate.frames == 30
        assert list(candidate.total_ms) == sorted(candidate.total_ms)
        assert candidate.stages_ms.head.p50 > 0
        # medians do not add up exactly, and no stage is longer than the whole
        assert max(stage.p50 for _, stage in candidate.stages_ms) <= candidate.total_ms[-1]
    named = {one.name: one for one in plan.profile.candidates}
    assert named["image, lossless"].accuracy == named["all on the phone"].accuracy  # the same network, the same pixels
    assert "front of bytes against work on the phone: `pooled`" in made[1]


def test_bytes_are_those_of_the_requests_that_were_sent(made: tuple[Path, str]) -> None:
    plan, runs = plan_of(made), made[0] / "runs" / "plans" / "narrow" / "work"
    [pooled] = [one for one in plan.profile.candidates if one.name == "pooled"]
    journal = runs / "nodes" / "00-pooled" / "phone" / "passes" / "plan.0" / "frames.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert pooled.request_bytes == np.mean([row["bytes_up"] for row in rows])
    assert pooled.payload_bytes == 8  # eight channels, a byte each
    assert pooled.up_bytes == framed_bytes(pooled.request_bytes)
    image, jpeg = plan.profile.candidates[:2]
    assert jpeg.request_bytes - jpeg.payload_bytes == pytest.approx(image.request_bytes - image.payload_bytes, abs=30)


def test_the_check_took_no_less_than_the_link_must(made: tuple[Path, str]) -> None:
    plan = plan_of(made)
    [over], [check] = plan.links, plan.checks
    assert (over.name, check.candidate, check.frames) == ("own", over.best_sent, 20)
    [candidate] = [one for one in plan.profile.candidates if one.name == check.candidate]
    least_ms = 2 * 30 + 8 * candidate.request_bytes / 200 + 8 * candidate.reply_bytes / 1000
    assert check.measured_ms.p50 >= least_ms
    assert check.predicted_ms.p50 >= least_ms
    assert check.ratio == check.predicted_ms.p50 / check.measured_ms.p50
    assert "predicted and measured" in made[1]


def test_the_files_hold_the_table_and_the_picture(made: tuple[Path, str]) -> None:
    text = (made[0] / "narrow.md").read_text()
    assert "| candidate |" in text and "| pooled | 8x1x1 uniform8/channel |" in text.replace("**", "")
    assert "## Predicted and measured" in text
    assert f"`latentbed plan {made[0] / 'net.onnx'} --dataset digits" in text
    assert (made[0] / "narrow.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_is_planned_for_another_link_without_measuring(made: tuple[Path, str], tmp_path: Path) -> None:
    invoke("--profile", str(made[0] / "narrow.json"), "--link", "wifi", "--link", "lte", "--out", str(tmp_path))
    again = load_plan(tmp_path / "plan.json")
    assert again.profile == plan_of(made).profile
    assert [over.name for over in again.links] == ["wifi", "lte"]
    assert not (tmp_path / "runs").exists()


def test_what_is_asked_wrong_is_refused_in_words(made: tuple[Path, str], tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["plan", *arguments])
        assert result.exit_code != 0
        return str(result.exception)

    profile = str(made[0] / "narrow.json")
    assert "expected a network or folders of artefacts" in refused()
    assert "expected --link of wifi" in refused("--profile", profile, "--link", "3g")
    assert "expected --check best, all, or a candidate" in refused("--profile", profile, "--check", "all on the phone")
    assert "--check or --edge-profile" in refused("--profile", profile, "--edge-profile", profile, "--check", "best")
    (tmp_path / "old.json").write_text('{"schema_version": 2}')
    assert "schema version 1" in refused("--profile", str(tmp_path / "old.json"))
    with pytest.raises(ScenarioError, match="rate_up_kbps"):
        link_of("{rate_up_kbps: 0, rate_down_kbps: 1, delay_ms: 1}")
    assert link_of("lte") == PROFILES["lte"]


def test_an_image_through_jpeg_is_nearly_itself() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        smooth = np.kron(rng.integers(0, 256, (channels, 4, 4)), np.ones((1, 8, 8))).astype(np.uint8)
        back = from_jpeg(to_jpeg(smooth[:, :32, :32], 95))
        assert back.shape == smooth.shape
        assert np.abs(back.astype(int) - smooth).mean() < (3 if channels == 1 else 30)
    times, given = timed_ms(7, 3, lambda n: n)
    assert len(times) == 7
    assert given == [(frame + FIRST) % 3 for frame in range(7)]
