"""The page itself, in gradio: microphone or file in; for each model text, sound and unit strip out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from slm.demo.talk import AUTOMATIC, TASKS, Reply, replies
from slm.errors import MachineError
from slm.generation.answers import Decoding, Speaker
from slm.generation.generate import Sampling

HOST = "127.0.0.1"
"""The only address: whoever reaches the page can use the machine's models and microphone."""
TITLE = "slm: listen"
CSS = ".units svg { display: block } .units { overflow-x: auto; padding: 4px 0 }"


def gradio() -> Any:
    """The library, told to call nobody.

    Raises:
        MachineError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as library
    except ImportError:
        raise MachineError("the demo needs gradio", mend="pip install 'slm[demo]'") from None
    return library


def build_page(speakers: Mapping[str, Speaker], decoding: Decoding) -> Any:
    """A gradio `Blocks` around models.

    Args:
        speakers: label -> model, one or two; two stand side by side.
        decoding: what the page's controls start from.
    """
    gr = gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"## {' and '.join(speakers)}")
        with gr.Row():
            audio = gr.Audio(sources=["microphone", "upload"], type="filepath", label="Speak, or give a file")
            with gr.Column():
                text = gr.Textbox(label="… or write", lines=2)
                task = gr.Radio(list(TASKS), value=AUTOMATIC, label="Task")
                instruction = gr.Textbox(label="Instruction (asr, tts)", placeholder="the recipe's own")
        with gr.Row():
            limit = gr.Slider(16, 2048, value=decoding.max_new_tokens, step=16, label="Longest answer, tokens")
            temperature = gr.Slider(0, 1.5, value=decoding.sampling.temperature, step=0.05, label="Temperature")
            constrained = gr.Checkbox(decoding.constrained, label="Well-formed answers only")
            button = gr.Button("Ask", variant="primary")
        shown: list[Any] = []
        with gr.Row():
            for label in speakers:
                with gr.Column():
                    shown += _column(gr, label)

        def ask(
            audio: str | None, text: str, task: str, instruction: str, limit: float, temperature: float, strict: bool
        ) -> list[Any]:
            sampling = Sampling(temperature, decoding.sampling.top_p, decoding.sampling.seed)
            chosen = Decoding(int(limit), decoding.batch_size, sampling, strict)
            found = replies(
                speakers, text or "", audio, task=task, instruction=(instruction or "").strip(), decoding=chosen
            )
            return [value for one in found for value in _values(one)]

        inputs = [audio, text, task, instruction, limit, temperature, constrained]
        # One at a time: the models share the machine.
        button.click(ask, inputs, shown, api_name="ask", concurrency_limit=1)
        text.submit(ask, inputs, shown, api_name=False, concurrency_limit=1)
    return page


def _column(gr: Any, label: str) -> list[Any]:
    """One model's outputs, in the order of `_values`."""
    gr.Markdown(f"### {label}")
    return [
        gr.Textbox(label="Heard", interactive=False),
        gr.Textbox(label="Answer", interactive=False, lines=2),
        gr.Audio(label="Spoken answer", interactive=False, format="wav", buttons=["download"]),
        gr.HTML(label="Units"),
        gr.Textbox(label="Note", interactive=False),
    ]


def _values(one: Reply) -> list[Any]:
    return [one.heard, one.text, one.sound, one.strip, one.note]


def serve(page: Any, *, port: int) -> str:
    """Serve a page on this machine alone, in a thread of its own.

    Args:
        port: 0 takes a free one.

    Returns:
        Its address.

    Raises:
        MachineError: the port is taken.
    """
    gr = gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # gradio's own come from the network
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Base(**fonts),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            max_file_size="200mb",
        )
    except OSError as error:
        raise MachineError(f"the page can't be served: {error}", where=f"port {port}", mend="--port 0") from error
    return str(address)
