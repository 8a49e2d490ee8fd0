"""A prediction over time, as a template draws it."""

from typing import Any

from avdistill.inference.prediction import Prediction

_COLORS = 7  # in server.css


def timeline(prediction: Prediction) -> dict[str, Any]:
    """What the template draws: segments as shares of the whole, a color for each label."""
    segments = prediction.segments
    end = max((segment.end_seconds for segment in segments), default=0.0) or 1.0
    colors = {label: i % _COLORS for i, label in enumerate(dict.fromkeys(segment.label for segment in segments))}
    return {
        "seconds": end,
        "segments": [
            {
                "x": 1000 * segment.start_seconds / end,
                "width": max(1.0, 1000 * (segment.end_seconds - segment.start_seconds) / end),
                "color": colors[segment.label],
                "segment": segment,
            }
            for segment in segments
        ],
    }
