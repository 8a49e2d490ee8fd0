"""The released implementation's procedure, written anew and literally: what the metrics of speed are measured against.

Nothing here is ours or the release's code: it is what the release does, step by step, with the libraries it
uses. The training step goes back twice through the student; the loader opens every file for its length and
decodes its images one by one; retrieval is a loop over queries; preparation is FFmpeg, then JPEG, then HDF5. h5py and
Pillow are imported where they are used: the step is also timed on machines without them.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Factored(nn.Module):
    """A spatial 3-D convolution, BatchNorm and ReLU, a temporal 3-D convolution."""

    def __init__(self, inputs: int, outputs: int, t: int, d: int, stride: tuple[int, int]) -> None:
        super().__init__()
        middle = (t * d * d * inputs * outputs) // (d * d * inputs + t * outputs)
        self.spatial_conv = nn.Conv3d(
            inputs, middle, (1, d, d), (1, stride[1], stride[1]), (0, d // 2, d // 2), bias=False
        )
        self.bn = nn.BatchNorm3d(middle)
        self.relu = nn.ReLU()
        self.temporal_conv = nn.Conv3d(middle, outputs, (t, 1, 1), (stride[0], 1, 1), (t // 2, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, T, H, W)."""
        return self.temporal_conv(self.relu(self.bn(self.spatial_conv(x))))


class Block(nn.Module):
    """Two factored convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, downsample: bool) -> None:
        super().__init__()
        stride = (2, 2) if downsample else (1, 1)
        self.downsample = downsample
        if downsample:
            self.downsampleconv = Factored(inputs, outputs, 1, 1, stride)
            self.downsamplebn = nn.BatchNorm3d(outputs)
        self.conv1 = Factored(inputs, outputs, 3, 3, stride)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = Factored(outputs, outputs, 3, 3, (1, 1))
        self.bn2 = nn.BatchNorm3d(outputs)
        self.outrelu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, T, H, W)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample:
            x = self.downsamplebn(self.downsampleconv(x))
        return self.outrelu(x + y)


class Stage(nn.Module):
    """One block: the release's depth 18."""

    def __init__(self, inputs: int, outputs: int, downsample: bool) -> None:
        super().__init__()
        self.block1 = Block(inputs, outputs, downsample)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, T, H, W)."""
        return self.block1(x)


class Student(nn.Module):
    """The released R(2+1)D with 51 classes and 512 channels; its weights fit ours by name."""

    def __init__(self, classes: int = 51, width: int = 512) -> None:
        super().__init__()
        self.conv1 = Factored(3, 64, 3, 7, (1, 2))
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU()
        self.conv2 = Stage(64, 64, False)
        self.conv3 = Stage(64, 128, True)
        self.conv4 = Stage(128, 256, True)
        self.conv5 = Stage(256, width, True)
        self.cls = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: float (B, 3, T, H, W) -> embedding (B, D), map (B, K, D), logits (B, C)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        tokens = x.flatten(2).transpose(1, 2)
        embedding = tokens.mean(1)
        return embedding, tokens, self.cls(embedding)


class Filter(nn.Module):
    """The noise filter; its weights fit ours by name."""

    def __init__(self, width: int = 512, classes: int = 51) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(2 * width, width // 2),
            nn.BatchNorm1d(width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, width),
            nn.Sigmoid(),
        )
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.guide = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def forward(self, audio: Tensor, embedding: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> purified audio (B, D), guided embedding (B, D), its logits (B, C)."""
        purified = self.gate(torch.cat([audio, embedding], 1)) * audio
        attended, _ = self.attention(purified[:, None], tokens, tokens)
        guided = self.guide(attended[:, 0])
        return purified, guided, self.classifier(guided)


def calibration(v: Tensor, s: Tensor, purified: Tensor, labels: Tensor, threshold: float = 0.07) -> Tensor:
    """The contrast with pairwise temperatures, row by row."""
    temperature = (F.normalize(v, dim=1) @ F.normalize(purified, dim=1).T).detach() + threshold
    scores = torch.exp(F.normalize(v, dim=1) @ F.normalize(s, dim=1).T / temperature)
    loss = v.new_zeros(())
    for i in range(len(labels)):
        same = labels == labels[i]
        loss = loss - torch.log(scores[i, same] / scores[i].sum() + 1e-10).mean()
    return loss / len(labels)


def objectives(student: Student, noise_filter: Filter, frames: Tensor, audio: Tensor, labels: Tensor) -> list[Tensor]:
    """The filter's objective and the student's."""
    v, tokens, logits = student(frames)
    purified, guided, guided_logits = noise_filter(audio, v, tokens)
    last = noise_filter.gate[3]
    assert isinstance(last, nn.Linear)
    sparsity = 0.001 * last.weight.abs().sum(1).mean()
    triplet = F.relu(F.cosine_similarity(v, audio) - F.cosine_similarity(v, purified) + 0.2).mean()
    of_filter = F.cross_entropy(guided_logits, labels) + sparsity + triplet
    of_student = F.cross_entropy(logits, labels) + calibration(v, guided, purified, labels)
    return [of_filter, of_student]


def backward(student: Student, noise_filter: Filter, frames: Tensor, audio: Tensor, labels: Tensor) -> None:
    """Gradients by two backward passes; the student's of the first are thrown away."""
    of_filter, of_student = objectives(student, noise_filter, frames, audio, labels)
    of_filter.backward(retain_graph=True)
    student.zero_grad()
    of_student.backward()


def step(
    student: Student,
    noise_filter: Filter,
    optimizers: list[torch.optim.Optimizer],
    frames: Tensor,
    audio: Tensor,
    labels: Tensor,
) -> float:
    """A training step from normalized frames (B, 3, T, H, W)."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    backward(student, noise_filter, frames, audio, labels)
    for optimizer in optimizers:
        optimizer.step()
    return float(student.cls.bias.detach().sum())


def write_clip(path: Path, frames: np.ndarray) -> None:
    """uint8 (T, H, W, 3) as an HDF5 file of JPEG images."""
    import h5py
    from PIL import Image

    with h5py.File(path, "w") as file:
        images = file.create_dataset("video", (len(frames),), dtype=h5py.vlen_dtype(np.uint8))
        for i, frame in enumerate(frames):
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=95)
            images[i] = np.frombuffer(buffer.getvalue(), np.uint8)


class Clips(Dataset[tuple[Tensor, int]]):
    """Random windows of `length` images, cropped, mirrored and normalized video by video."""

    def __init__(self, files: list[Path], labels: list[int], length: int = 16, size: int = 112, seed: int = 0) -> None:
        self.files, self.labels, self.length, self.size = files, labels, length, size
        import h5py

        self.counts = []
        for path in files:  # opened only for its length
            with h5py.File(path, "r") as file:
                self.counts.append(len(file["video"]))
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import h5py
        from PIL import Image

        start = int(self.random.integers(max(1, self.counts[index] - self.length)))
        images: list[Any] = []
        with h5py.File(self.files[index], "r") as file:
            for i in range(start, min(start + self.length, self.counts[index])):
                images.append(Image.open(io.BytesIO(file["video"][i].tobytes())).convert("RGB"))
        while len(images) < self.length:
            images.append(images[len(images) % self.counts[index]])
        width, height = images[0].size
        left, top = (int(self.random.integers(side - self.size + 1)) for side in (width, height))
        mirrored = self.random.random() < 0.5
        tensors = []
        for video in images:
            cut = video.crop((left, top, left + self.size, top + self.size))
            if mirrored:
                cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            x = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float().div(255)
            tensors.append((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
        return torch.stack(tensors).permute(1, 0, 2, 3), self.labels[index]


def retrieval(
    queries: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> dict[str, float]:
    """hit@k and mAP over all relevant items: a loop over queries, and a loop over each ranking."""
    hits, precisions = dict.fromkeys((1, 5, 10, 20), 0), []
    lengths = np.linalg.norm(gallery, axis=1)
    for query, label in zip(queries, query_labels, strict=True):
        cosine = gallery @ query / (lengths * np.linalg.norm(query))
        order = np.argsort(-cosine, kind="stable")
        relevant = [gallery_labels[i] == label for i in order]
        for k in hits:
            hits[k] += any(relevant[:k])
        found, total = 0, 0.0
        for rank, right in enumerate(relevant, 1):
            if right:
                found += 1
                total += found / rank
        if found:
            precisions.append(total / found)
    return {f"hit@{k}": n / len(queries) for k, n in hits.items()} | {"map": float(np.mean(precisions))}


def prepare_chain(video: Path, work: Path, fps: int = 4, short_side: int = 128) -> Path:
    """FFmpeg's motion interpolation to the rate, JPEG files, one HDF5 file; the audio as WAV.

    Raises:
        OSError, subprocess.CalledProcessError: there is no ffmpeg, or it fails.
    """
    import h5py

    work.mkdir(parents=True)
    scale = f"scale='if(gt(iw,ih),-2,{short_side})':'if(gt(iw,ih),{short_side},-2)'"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", str(video)]
    subprocess.run(
        [*command, "-vf", f"minterpolate=fps={fps},{scale}", "-q:v", "2", str(work / "%06d.jpg")], check=True
    )
    subprocess.run([*command, "-vn", "-ac", "1", "-ar", "16000", str(work / "audio.wav")], check=True)
    files = sorted(work.glob("*.jpg"))
    with h5py.File(work / "clip.hdf5", "w") as file:
        images = file.create_dataset("video", (len(files),), dtype=h5py.vlen_dtype(np.uint8))
        for i, path in enumerate(files):
            images[i] = np.frombuffer(path.read_bytes(), np.uint8)
    return work / "clip.hdf5"
