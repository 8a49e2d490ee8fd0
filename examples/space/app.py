"""A Hugging Face Space: a page that takes a video or audio file and shows what a student says of it, with times.

The student is named by the variable STUDENT of the Space: `hf://org/name`, or a folder beside this file.
"""

import os

import gradio as gr

from avdistill import AvdistillError, Student

student = Student.from_pretrained(os.environ.get("STUDENT", "student"), "cpu")
video = student.config.view.modality == "video"


def predict(file: str | None) -> tuple[dict[str, float], list[list[object]]]:
    """Probabilities of the whole file, and a row for each segment: start, end, label, probability."""
    if file is None:
        return {}, []
    try:
        prediction = student.predict(file)
    except AvdistillError as error:
        raise gr.Error(str(error)) from None
    rows = [
        [round(each.start_seconds, 2), round(each.end_seconds, 2), each.label, round(each.probability, 3)]
        for each in prediction.segments
    ]
    return dict(prediction.top), rows


demo = gr.Interface(
    fn=predict,
    inputs=gr.Video(label="Video") if video else gr.Audio(type="filepath", label="Audio"),
    outputs=[
        gr.Label(num_top_classes=5, label="The whole file"),
        gr.Dataframe(headers=["start (s)", "end (s)", "label", "probability"], label="Segments"),
    ],
    title="avdistill",
    description=f"A small {student.config.view.modality} network with {len(student.config.classes)} classes.",
)

if __name__ == "__main__":
    demo.launch()
