"""The audio of the synthetic dataset: twelve moving objects, and music, babble and street noise.

Each is a function `(motion, times, pitch, rng) -> waveform` (S,). `times` (S,) are seconds, `pitch` multiplies every
frequency. The level of a waveform is arbitrary; mixing sets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class AudioDifficulty:
    """How hard the audio is to classify; none of these changes the video.

    Attributes:
        floor_db: The level of the recording noise in dB, RMS relative to the rest of the audio over the clip; each clip
            draws a level within 4 dB of it.
        pitch_spread_octaves: The largest distance of a clip's pitch from that of its class in octaves.
        room: The strength of echo and of coloring by the microphone, 0 (none) to 1.
    """

    floor_db: float = -14.0
    pitch_spread_octaves: float = 0.8
    room: float = 0.5


@dataclass(frozen=True)
class Motion:
    """The periodic motion that the video and the audio of one object share."""

    rate_hz: float  # cycles per second on average
    phase: float  # cycles completed at second 0
    wobble: float  # unevenness in cycles, small enough for the number of cycles to increase with time

    @staticmethod
    def draw(rates_hz: tuple[float, float], rng: Generator) -> Motion:
        """A random motion with a rate within `rates_hz`."""
        return Motion(rate_hz=rng.uniform(*rates_hz), phase=rng.uniform(0, 2), wobble=rng.uniform(-0.05, 0.05))

    def cycles(self, times: FloatArray) -> FloatArray:
        """Cycles completed at `times` (seconds, any shape)."""
        return self.phase + self.rate_hz * times + self.wobble * np.sin(2 * np.pi * 0.4 * self.rate_hz * times)

    def events(self, start_seconds: float, end_seconds: float) -> FloatArray:
        """The times in [start, end), in seconds, at which a cycle is completed; struck objects are struck then."""
        times = np.linspace(start_seconds, end_seconds, 2000)
        cycles = self.cycles(times)
        return np.interp(np.arange(np.ceil(cycles[0]), np.ceil(cycles[-1])), cycles, times)


Voice = Callable[[Motion, FloatArray, float, Generator], FloatArray]


def bouncing_ball(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A thud that falls in pitch."""
    noise = _noise(len(times), rng, high_hz=600 * pitch, rate_hz=_rate(times))

    def thud(age: FloatArray) -> FloatArray:
        return np.sin(2 * np.pi * pitch * (110 * age + 3 * (1 - np.exp(-age / 0.02)))) * np.exp(-age / 0.06)

    return _strike(motion, times, thud) + noise * _strike(motion, times, lambda age: np.exp(-age / 0.02))


def pendulum(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A dry tick, a resonance of a few milliseconds."""
    return _strike(motion, times, lambda age: np.sin(2 * np.pi * 1700 * pitch * age) * np.exp(-age / 0.008))


def hammer(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A clang: inharmonic partials and a burst of noise."""
    noise = _noise(len(times), rng, low_hz=800, rate_hz=_rate(times))
    ratios = np.array([1.0, 1.62, 2.41, 3.27, 4.6]) * rng.uniform(0.97, 1.03, 5)
    clang = _partials(850 * pitch * ratios, [1.0, 0.8, 0.7, 0.5, 0.4], decay_seconds=0.12)
    return _strike(motion, times, clang) + noise * _strike(motion, times, lambda age: np.exp(-age / 0.012))


def siren(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """Two tones in turn, changing with a short glide at every whole cycle."""
    upper = 0.5 + 0.5 * np.tanh(6 * np.sin(np.pi * motion.cycles(times)))
    return _tone(_integrate(pitch * (520 + 190 * upper), times), [1.0, 0.5, 0.35, 0.15])


def rotor(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """Low noise that swells each time a blade passes."""
    noise = _noise(len(times), rng, low_hz=60 * pitch, high_hz=900 * pitch, rate_hz=_rate(times))
    return noise * (0.1 + (0.5 + 0.5 * np.cos(2 * np.pi * motion.cycles(times))) ** 3)


def water_drops(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A plink whose pitch rises as the bubble closes."""

    def plink(age: FloatArray) -> FloatArray:
        return np.sin(2 * np.pi * 900 * pitch * (age + 5 * age**2)) * np.exp(-age / 0.05) * (1 - np.exp(-age / 0.003))

    return _strike(motion, times, plink)


def passing_engine(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A hum that swells, falls in pitch as it passes (at whole cycles), and fades."""
    cycles = motion.cycles(times)
    along = 5 * (cycles - np.round(cycles))  # distance along the road in units of the distance to the road
    near = 1 / (1 + along**2)
    doppler = 1 - 0.12 * along * np.sqrt(near)
    hum = _tone(_integrate(85 * pitch * doppler, times), 1 / np.arange(1, 13))
    return hum * (0.15 + near) + 0.3 * near * _noise(len(times), rng, high_hz=1500, rate_hz=_rate(times))


def sliding_saw(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A scrape as loud as the blade is fast, brighter on the way out than on the way back."""
    speed = np.sin(np.pi * motion.cycles(times))
    out = _noise(len(times), rng, low_hz=1800 * pitch, high_hz=4200 * pitch, rate_hz=_rate(times))
    back = _noise(len(times), rng, low_hz=1100 * pitch, high_hz=2800 * pitch, rate_hz=_rate(times))
    rasp = 0.6 + 0.4 * np.sin(2 * np.pi * 22 * pitch * motion.cycles(times))
    return rasp * (out * np.clip(speed, 0, 1) + back * np.clip(-speed, 0, 1))


def hopping_frog(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A croak at the landing: a throaty tone chopped some forty times a second."""

    def croak(age: FloatArray) -> FloatArray:
        chopped = (0.5 - 0.5 * np.cos(2 * np.pi * 42 * age)) ** 2
        return _tone(240 * pitch * age, [0.6, 1.0, 0.8, 0.3, 0.5]) * chopped * (age < 0.22) * (1 - age / 0.25)

    return _strike(motion, times, croak)


def fluttering_bird(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """Three quick falling whistles."""

    def chirp(age: FloatArray) -> FloatArray:
        within = age % 0.07
        whistle = np.sin(2 * np.pi * pitch * (3300 * within - 9000 * within**2))
        return whistle * np.sin(np.pi * within / 0.07) * (age < 0.21)

    return _strike(motion, times, chirp)


def buzzing_insect(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A reedy buzz, highest in mid-flight and lowest where the insect turns."""
    flight = np.abs(np.sin(np.pi * motion.cycles(times)))
    buzz = _tone(_integrate(190 * pitch * (1 + 0.25 * flight), times), np.ones(14) / np.sqrt(np.arange(1, 15)))
    return buzz * (0.5 + 0.5 * flight)


def bell(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A struck bell: hum, prime, tierce, quint and nominal, ringing for most of a second."""
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.6]) * rng.uniform(0.99, 1.01, 6)
    return _strike(motion, times, _partials(520 * pitch * ratios, [0.6, 1.0, 0.8, 0.5, 0.7, 0.3], decay_seconds=0.5))


def music(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """A random progression of four-note chords over a bass and a drum beat; independent of `motion`."""
    beat_seconds = rng.uniform(0.28, 0.5)
    beat = np.floor(times / beat_seconds + rng.random()).astype(int)
    age = times - np.array([times[np.argmax(beat == b)] for b in range(beat[-1] + 1)])[beat]
    roots = rng.choice([-5, -3, 0, 2, 4, 5, 7], beat[-1] // 2 + 1)
    scale = np.array([rng.choice([0, 12]), rng.choice([3, 4]), 7, rng.choice([9, 10, 11, 14])])
    timbre = rng.uniform(0, 1, 5) / np.arange(1, 6)
    mix = np.zeros(len(times))
    for step in (-12, *scale):
        semitones = (roots[beat // 2] + step) / 12
        mix += _tone(_integrate(220 * pitch * 2.0**semitones, times), timbre) * np.exp(-age / rng.uniform(0.2, 0.8))
    drum = _noise(len(times), rng, low_hz=float(rng.choice([80, 2000])), rate_hz=_rate(times)) * np.exp(-age / 0.03)
    return mix + rng.uniform(0, 3) * drum


def babble(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """Three or four voices at once, pulses of varying pitch filtered by formants; independent of `motion`."""
    vowels_hz = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
    frequencies = np.fft.rfftfreq(len(times), 1 / _rate(times))
    mix = np.zeros(len(times))
    for _ in range(int(rng.integers(3, 5))):
        glide = np.sin(2 * np.pi * (rng.uniform(0.3, 1.5) * times + rng.random()))
        glottis = _integrate(pitch * rng.uniform(95, 230) * (1 + 0.15 * glide), times)
        spectrum = np.fft.rfft(np.diff(np.floor(glottis), prepend=0.0))
        syllable = np.floor(rng.uniform(3, 5.5) * times + rng.random()).astype(int)
        vowel = rng.integers(0, 4, syllable[-1] + 1)[syllable]  # three vowels; the fourth is a pause
        throat = rng.uniform(0.9, 1.15)
        for number, formants_hz in enumerate(rng.permutation(vowels_hz)[:3]):
            response = sum(1 / (1 + ((frequencies - throat * f) / 70) ** 2) / i for i, f in enumerate(formants_hz, 1))
            mix += np.fft.irfft(spectrum * response, len(times)) * _smooth(vowel == number, _rate(times))
    return mix


def street(motion: Motion, times: FloatArray, pitch: float, rng: Generator) -> FloatArray:
    """Noise of a random color that swells and fades; independent of `motion`."""
    swell = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.2, 1.0) * times + rng.random()))
    return swell * _noise(len(times), rng, tilt=rng.uniform(0.2, 1.0), rate_hz=_rate(times))


def scale_to_snr(foreground: FloatArray, background: FloatArray, snr_db: float) -> FloatArray:
    """`background` (S,) scaled so that 10 log10(mean foreground² / mean background²) is `snr_db`; silence stays."""
    power = np.mean(background**2)
    return background * (np.sqrt(np.mean(foreground**2) / power) * 10 ** (-snr_db / 20)) if power else background


def add_room(waveform: FloatArray, rng: Generator, *, sample_rate_hz: int, room: float) -> FloatArray:
    """`waveform` (S,) as recorded in a room: with a decaying echo and the smooth, random response of a microphone."""
    length = len(waveform) + sample_rate_hz // 5
    delay = np.arange(sample_rate_hz // 5) / sample_rate_hz
    echo = rng.normal(size=len(delay)) * np.exp(-delay / rng.uniform(0.015, 0.06))
    echo *= room * rng.uniform(0.2, 0.8) / np.sqrt(np.sum(echo**2))
    echo[0] += 1  # the direct audio
    octave = np.log2(np.fft.rfftfreq(length, 1 / sample_rate_hz) / 1000 + 0.02)
    gain_db = np.interp(octave, [-5, -3, -1, 1, 3], 8 * room * rng.normal(size=5))
    wave, reply = waveform.astype(np.float32), echo.astype(np.float32)
    spectrum = np.fft.rfft(wave, length) * np.fft.rfft(reply, length) * (10 ** (gain_db / 20)).astype(np.float32)
    return np.fft.irfft(spectrum, length)[: len(waveform)]


def recording_floor(samples: int, rng: Generator, *, sample_rate_hz: int) -> FloatArray:
    """Noise of a recorder (S,), of random color and unit RMS."""
    return _noise(samples, rng, tilt=rng.uniform(0.0, 0.8), rate_hz=sample_rate_hz)


def _rate(times: FloatArray) -> float:
    return float(1 / (times[1] - times[0]))


def _strike(motion: Motion, times: FloatArray, voice: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """The sum of `voice(seconds since the event)` over all events, from a second before the clip on."""
    total = np.zeros(len(times))
    for event in motion.events(times[0] - 1.0, times[-1]):
        first = int(np.searchsorted(times, event))
        last = int(np.searchsorted(times, event + 1.5))
        total[first:last] += voice(times[first:last] - event)
    return total


def _partials(hz: FloatArray, gains: list[float], *, decay_seconds: float) -> Callable[[FloatArray], FloatArray]:
    """A struck body: one decaying sine per partial, higher ones decay faster."""

    def voice(age: FloatArray) -> FloatArray:
        total = np.zeros(len(age))
        for frequency, gain in zip(hz, gains, strict=True):
            decay = decay_seconds * np.sqrt(hz[0] / frequency)
            total += gain * np.sin(2 * np.pi * frequency * age) * np.exp(-age / decay)
        return total

    return voice


def _tone(cycles: FloatArray, harmonics: FloatArray | list[float]) -> FloatArray:
    """A periodic tone read from a table of one period; `harmonics` are the gains of 1, 2, 3... times the pitch."""
    orders = np.arange(1, len(harmonics) + 1)
    table = np.asarray(harmonics) @ np.sin(2 * np.pi * orders[:, None] * np.arange(2048) / 2048 + orders[:, None] ** 2)
    return table[(cycles * 2048).astype(np.int64) % 2048]


def _integrate(frequency_hz: FloatArray, times: FloatArray) -> FloatArray:
    """The cycles completed by an oscillator of the given frequency (S,)."""
    return np.cumsum(frequency_hz) / _rate(times)


def _smooth(gate: NDArray[np.bool_], rate_hz: float) -> FloatArray:
    """A gate as a gain with edges of 20 milliseconds."""
    ramp = int(0.02 * rate_hz)
    padded = np.cumsum(np.pad(gate.astype(float), (ramp, 0)))
    return (padded[ramp:] - padded[:-ramp]) / ramp


def _noise(
    samples: int, rng: Generator, *, rate_hz: float, low_hz: float = 20.0, high_hz: float = 1e5, tilt: float = 0.0
) -> FloatArray:
    """Gaussian noise (S,) of unit RMS between two frequencies, falling by 6 * `tilt` dB an octave."""
    frequencies = np.fft.rfftfreq(samples, 1 / rate_hz)
    gain = (1 + (low_hz / np.maximum(frequencies, 1)) ** 4) ** -0.5 * (1 + (frequencies / high_hz) ** 4) ** -0.5
    gain *= np.maximum(frequencies, 40) ** -tilt
    spectrum = rng.standard_normal(2 * len(frequencies), dtype=np.float32).view(np.complex64)
    noise = np.fft.irfft(gain.astype(np.float32) * spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))
