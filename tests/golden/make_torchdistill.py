"""Compute `torchdistill.json` with the losses of torchdistill 1.1.5 (MIT), float64, on inputs given by rule.

    pip install --no-deps torchdistill==1.1.5
    python tests/golden/make_torchdistill.py > tests/golden/torchdistill.json

Only its file of losses is loaded: the package itself wants more than is installed here. SP is left out: its rows have
length 1 in the L1 norm there (`normalize(x, 1)`), in the paper in the L2 norm.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.golden_rule import loss_inputs


def torchdistill_losses():
    """The module torchdistill.losses.mid_level, without importing the package around it."""
    spec = importlib.util.find_spec("torchdistill")
    folder = Path(spec.submodule_search_locations[0])
    plain = types.ModuleType("torchdistill")
    plain.__path__ = [str(folder)]
    losses = types.ModuleType("torchdistill.losses")
    losses.__path__ = [str(folder / "losses")]
    sys.modules |= {"torchdistill": plain, "torchdistill.losses": losses}
    return importlib.import_module("torchdistill.losses.mid_level")


def main() -> None:
    m, x = torchdistill_losses(), loss_inputs()
    at = {"a": {"student": {"io": "output", "path": "s"}, "teacher": {"io": "output", "path": "t"}}}

    def of(loss, student, teacher):
        value = loss({"s": {"output": student}}, {"t": {"output": teacher}})
        return float(value)

    maps = [x[name].transpose(1, 2)[..., None] for name in ("student_map", "teacher_map")]  # (B, channels, K, 1)
    unit = [torch.nn.functional.normalize(x[name], dim=1) for name in ("student", "teacher")]
    variance = torch.nn.functional.softplus(x["raw_variance"]) + 1e-5
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    values = {
        "kd": of(
            m.KDLoss("s", "output", "t", "output", temperature=4.0, beta=1.0), x["student_logits"], x["teacher_logits"]
        ),
        "rkd_distance": of(m.RKDLoss("s", "t", 1.0, 0.0, "mean"), x["student"], x["teacher"]),
        "rkd_angle": of(m.RKDLoss("s", "t", 0.0, 1.0, "mean"), x["student"], x["teacher"]),
        "pkt": of(m.PKTLoss("s", "output", "t", "output"), x["student"], x["teacher"]),
        "cc": of(m.CCKDLoss("s", "t", kernel, "sum"), *unit),
        "at": of(m.ATLoss(at, mode="code"), *maps),
        "vid": of(m.VIDLoss(at), (x["student_in_teacher_width"], variance), x["teacher"]),
        "dist": of(m.DISTLoss("s", "output", "t", "output", tau=2.0), x["student_logits"], x["teacher_logits"]),
    }
    print(json.dumps({"source": "torchdistill 1.1.5", "torch": torch.__version__, "values": values}, indent=1))


if __name__ == "__main__":
    main()
