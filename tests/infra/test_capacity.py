"""The capacity model: towers of the right size, limits that hold; infra/README.md shows what it prints."""

from pathlib import Path

import pytest

from infra import capacity
from infra.capacity import DNA, IMAGE, TEXT, plan, specimens_per_second, step_seconds

ROOT = Path(__file__).resolve().parents[2]


def test_towers_have_the_published_sizes() -> None:
    """ViT-L/14: 304 M and 123.6 M parameters with patches, positions and heads; DNABERT-2: 117 M; 81 GMACs a photo."""
    assert IMAGE.parameters == pytest.approx(304e6, rel=0.01)
    assert TEXT.parameters == pytest.approx(123.6e6, rel=0.01)
    assert DNA.parameters == pytest.approx(117e6, rel=0.02)
    assert IMAGE.flops == pytest.approx(2 * 81e9, rel=0.01)


def test_flops_are_those_that_torch_counts() -> None:
    """Of a transformer's trunk at a small size, forward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    trunk = torch.nn.TransformerEncoder(layer, 3).train()
    with FlopCounterMode(display=False) as counter:
        trunk(torch.ones(1, 20, 64))
    assert counter.get_total_flops() == pytest.approx(capacity.Tower(3, 64, 20).flops)


def test_the_slower_side_decides() -> None:
    assert specimens_per_second(2, 100.0, 64, 0.1) == 200.0
    assert specimens_per_second(8, 100.0, 64, 0.1) == 640.0
    assert step_seconds(64, 1, 0.01, 0.1, 5.0) == pytest.approx(0.74)
    assert step_seconds(64, 4, 0.01, 0.1, 0.5) == pytest.approx(0.76)


def test_gpus_shorten_a_run_and_data_cpus_keep_up() -> None:
    options = capacity.parse([])
    plans = [plan("bioscan5m", "h100", gpus, options) for gpus in (1, 2, 4, 8)]
    assert [one.hours for one in plans] == sorted((one.hours for one in plans), reverse=True)
    for one in plans:
        assert one.data_cpus * capacity.CPU_RATE >= one.specimens_per_s
        assert one.hours >= plans[0].hours / one.gpus
    assert plans[0].gradient_gb == 0.0


def test_wrong_numbers_are_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(["--gpus", "3"]) == 2
    assert "allowed with data.lanes=8: 1, 2, 4, 8" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        capacity.main(["--mfu", "2"])
    assert ended.value.code == 2


def test_the_readme_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main([]) == 0
    *_, text = capsys.readouterr().out.split("\n\n")
    assert text.strip() in (ROOT / "infra" / "README.md").read_text()
