"""The real gradio server, asked over HTTP."""

from __future__ import annotations

import psutil
import pytest
from generation.conftest import tone

from slm.generation.answers import Decoding, Speaker
from slm.speech.audio import read_audio, write_audio

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'slm[demo]')")


@pytest.fixture(scope="module")
def address(speaker):
    from slm.demo.page import build_page, serve

    page = build_page({"one": speaker, "two": Speaker(speaker.loaded)}, Decoding(60, constrained=True))
    yield serve(page, port=0)
    page.close()


@pytest.fixture
def client(address, tmp_path):
    from gradio_client import Client

    return Client(address, download_files=str(tmp_path), verbose=False)


def test_it_listens_on_this_machine_alone(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    bound = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == port}
    assert bound == {"127.0.0.1"}


def test_it_loads_nothing_from_elsewhere(address):
    import re
    import urllib.request

    page = urllib.request.urlopen(address).read().decode()
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    foreign = [url for url in loaded if not url.startswith(address.rstrip("/"))]
    assert not [url for url in foreign if "font" in url], foreign


def test_text_in_text_sound_and_strip_out_for_two_models(client):
    found = client.predict(None, "paris", "tts", "", 60, 0.0, True, api_name="/ask")
    heard, text, sound, strip, note = found[:5]
    assert heard == "" and text and strip.startswith('<div class="units"')
    wave, rate = read_audio(sound)
    assert rate == 16_000 and len(wave)
    assert found[6] == text and found[7] is None and "nothing can be heard" in found[9]
    assert note in ("", "form: unfinished")


def test_a_recording_in(client, tmp_path):
    from gradio_client import handle_file

    write_audio(tmp_path / "q.wav", tone(2))
    found = client.predict(handle_file(str(tmp_path / "q.wav")), "", "asr", "", 20, 0.0, True, api_name="/ask")
    assert found[1] and found[2] is None and "need the extractor" in found[9]
    (tmp_path / "no.wav").write_text("not a song")
    found = client.predict(handle_file(str(tmp_path / "no.wav")), "", "asr", "", 20, 0.0, True, api_name="/ask")
    assert "not a readable audio file" in found[4]
