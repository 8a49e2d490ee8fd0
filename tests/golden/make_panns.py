"""Compute `panns.json` with the published classes: random weights and inputs by the rule of README.md in this folder.

    python tests/golden/make_panns.py AUDIOSET_TAGGING_CNN/pytorch > tests/golden/panns.json

The folder is that of a clone of github.com/qiuqiangkong/audioset_tagging_cnn (commit d2f4b8c or later); it holds
models.py. Needs torchlibrosa, librosa and panns-inference, whose Cnn14 is taken; the other classes are the clone's.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.golden_rule import ruled_weights
from support.panns_module import load_panns_inference

CLASSES = {
    "cnn6": "Cnn6",
    "cnn10": "Cnn10",
    "cnn14": "Cnn14",
    "cnn14_emb512": "Cnn14_emb512",
    "panns_mobilenet_v1": "MobileNetV1",
}
FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    spec = importlib.util.spec_from_file_location("clone", Path(sys.argv[1]) / "models.py")
    clone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clone)
    cases = []
    for seed, (name, published) in enumerate(CLASSES.items()):
        torch.manual_seed(0)
        source = load_panns_inference() if name == "cnn14" else clone
        network = getattr(source, published)(32000, 1024, 320, 64, 50, 14000, 527).eval()
        state = network.state_dict()
        keys = [k for k in state if not k.startswith(FRONT_END) and not k.endswith("num_batches_tracked")]
        shapes = [[key, list(state[key].shape)] for key in keys]
        network.load_state_dict(ruled_weights(shapes, seed), strict=False)
        sound = torch.tensor(0.1 * np.random.default_rng(seed + 1000).standard_normal((2, 32000)), dtype=torch.float32)
        with torch.no_grad():
            log_mel = network.logmel_extractor(network.spectrogram_extractor(sound))
            out = network(sound)
        case = {"model": name, "seed": seed, "spec": shapes}
        case["log_mel_clip0_frame50"] = log_mel[0, 0, 50].tolist()
        case["log_mel_sum"] = log_mel.double().sum().item()
        case["embedding_first64"] = out["embedding"][:, :64].tolist()
        case["embedding_l2"] = out["embedding"].double().norm(dim=1).tolist()
        case["scores_first16"] = out["clipwise_output"][:, :16].tolist()
        cases.append(case)
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
