"""Weights in torch's own files: what loads, what is refused, and fetching them by checksum from a server on loopback."""

from __future__ import annotations

import hashlib
import pickle
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from splitcore.errors import DataError
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.net import CifarResNet, LeNet, Narrow, NetConfig
from splitcore.nn.pretrained import fill_rest, load_pretrained, read_weights
from splitcore.nn.recipe import Pretrained
from splitcore.nn.split_model import SplitModel

MNIST = (1, 28, 28)


def lenet(net: NetConfig | None = None) -> SplitModel:
    net = net or LeNet()
    return SplitModel(net.head(MNIST, (0.5,), (0.5,)), UniformBottleneck().build(), net.tail(net.latent_shape(MNIST), 10))


def weights_of(model: SplitModel) -> dict[str, Tensor]:
    return {**model.head.state_dict(), **model.tail.state_dict()}


def pretrained(path: Path, url: str | None = None) -> Pretrained:
    return Pretrained(file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), url=url)


@pytest.mark.parametrize("new_archive", [True, False])
@pytest.mark.parametrize("inside", ["state dict", "checkpoint"])
def test_a_state_dict_loads_from_either_of_torchs_formats(new_archive: bool, inside: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, model = lenet(), lenet()
    weights = weights_of(source)
    saved = weights if inside == "state dict" else {"state_dict": weights, "epoch": 3}
    path = tmp_path / "lenet.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=new_archive)
    load_pretrained(model, pretrained(path), tmp_path)
    assert all(torch.equal(weight, weights_of(model)[name]) for name, weight in weights.items())


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (print, ("this would have run",))


def hostile(kind: str, path: Path) -> None:
    match kind:
        case "code":
            path.write_bytes(pickle.dumps({"conv1.weight": Malicious()}, protocol=2))
        case "code in an archive":
            torch.save({"conv1.weight": Malicious()}, path)
        case "noise":
            path.write_bytes(bytes(range(256)) * 8)
        case "nothing":
            path.write_bytes(b"")
        case "cut":
            torch.save({"a": torch.zeros(1000)}, path)
            path.write_bytes(path.read_bytes()[:2000])
        case "a module":
            torch.save(nn.Linear(2, 2), path)
        case "a list":
            torch.save([torch.zeros(2)], path)
        case "numbers":
            torch.save({"conv1.weight": 1.0}, path)
        case "sparse":
            torch.save({"conv1.weight": torch.eye(3).to_sparse()}, path)
        case "no memory behind it":
            torch.save({"conv1.weight": torch.empty(3, device="meta")}, path)
        case "complex":
            torch.save({"conv1.weight": torch.zeros(6, 1, 5, 5, dtype=torch.complex64)}, path)
        case "compressed":
            torch.save({"a": torch.zeros(1000)}, path.with_suffix(".stored"))
            with (
                zipfile.ZipFile(path.with_suffix(".stored")) as stored,
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out,
            ):
                for name in stored.namelist():
                    out.writestr(name, stored.read(name))


KINDS = (
    "code", "code in an archive", "noise", "nothing", "cut", "a module", "a list", "numbers", "sparse", "no memory behind it",
    "complex", "compressed",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_refused_and_runs_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    hostile(kind, path)
    with pytest.raises(DataError, match="expected"):
        read_weights(path)
    with pytest.raises(DataError, match=r"x\.pth: expected"):
        load_pretrained(lenet(), pretrained(path), tmp_path)
    assert "would have run" not in capsys.readouterr().out


def test_a_huge_view_of_little_memory_is_refused_by_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(DataError, match=r"size mismatch for conv1\.weight"):
        load_pretrained(lenet(), pretrained(path), tmp_path)


class Server(ThreadingHTTPServer):
    content = b""
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_weights_are_fetched_once_and_only_what_has_the_recipes_checksum(server: Server, tmp_path: Path) -> None:
    source, model = lenet(), lenet()
    path = tmp_path / "there.pth"
    torch.save(weights_of(source), path)
    server.content = path.read_bytes()
    url = f"http://127.0.0.1:{server.server_port}/lenet.pth"
    published = Pretrained(file="nets/lenet.pth", sha256=hashlib.sha256(server.content).hexdigest(), url=url)
    for _ in range(2):
        load_pretrained(model, published, tmp_path, progress=False)
    assert server.asked == 1
    assert torch.equal(model.tail.state_dict()["fc3.bias"], source.tail.state_dict()["fc3.bias"])
    server.content = b"another file"
    other = Pretrained(file="nets/other.pth", sha256=published.sha256, url=url)
    with pytest.raises(DataError, match=rf"expected sha256 {published.sha256}"):
        load_pretrained(model, other, tmp_path, progress=False)
    assert sorted(file.name for file in (tmp_path / "nets").iterdir()) == ["lenet.pth"]
    with pytest.raises(ValueError, match="url"):
        Pretrained(file="x.pth", sha256="0" * 64, url="file:///etc/passwd")


def test_a_teachers_weights_fill_what_its_student_keeps() -> None:
    teacher = LeNet()
    source, student = lenet(teacher), lenet(Narrow(teacher=teacher, form="ver2", channels=2))
    fill_rest(student, weights_of(source))
    rest = student.tail.get_submodule("rest").state_dict()
    assert rest.keys() == source.tail.state_dict().keys()
    assert all(torch.equal(rest[name], weight) for name, weight in source.tail.state_dict().items())
    with pytest.raises(DataError, match=r"Missing key.*fc3\.bias"):
        fill_rest(student, {name: weight for name, weight in weights_of(source).items() if name != "fc3.bias"})
    with pytest.raises(DataError, match="Missing key"):
        fill_rest(student, dict(CifarResNet().tail((16, 32, 32), 10).state_dict()))
