"""The page's player in a browser: stems in step to the sample, whatever is pressed. Sound is rendered, not played."""

import base64
import importlib.util
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from twinsep.demo import app

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="not installed: playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
RATE = 8_000
SCRIPT = app._PLAYER[0]

#: Loads the player with ``stems``, renders ``seconds`` of its sound, presses buttons meanwhile, returns the samples.
RENDER = """async ({code, stems, seconds, rate, presses}) => {
  document.body.innerHTML = '<div id="host"><div class="player"></div></div>';
  const element = document.querySelector("#host");
  const context = new OfflineAudioContext(2, seconds * rate, rate);
  const proceed = context.resume.bind(context);
  context.resume = async () => {};  // the player's own, before the sound begins
  window.AudioContext = function () { return context; };
  new Function("element", "props", "watch", code)(element, {value: stems}, () => {});
  while (!element.transport) {
    if (element.textContent.includes("cannot play")) return element.textContent;
    await new Promise((done) => setTimeout(done, 10));
  }
  const press = (label) => {
    const found = element.querySelector(`[aria-label="${label}"]`)
      ?? [...element.querySelectorAll("button")].find((button) => button.textContent === label);
    found.click();
  };
  for (const [time, labels, position] of presses) {
    const act = () => {
      labels.forEach(press);
      if (position !== null) element.transport.seek(position);
    };
    if (time) context.suspend(time).then(() => { act(); proceed(); });
    else act();
  }
  const sound = await context.startRendering();
  return [0, 1].map((channel) => {
    const bytes = new Uint8Array(sound.getChannelData(channel).buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return btoa(text);
  });
}"""


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


def url(samples):
    """A WAV of ``samples`` (s, c) as an address that holds it."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


def render(page, stems, seconds, presses):
    values = [{"name": name, "file": {"url": address}} for name, address in stems.items()]
    given = {"code": Path(SCRIPT).read_text(), "stems": values, "seconds": seconds, "rate": RATE, "presses": presses}
    found = page.evaluate(RENDER, given)
    return found if isinstance(found, str) else [np.frombuffer(base64.b64decode(x), np.float32) for x in found]


def test_the_stems_stay_in_step_for_a_minute_of_seeking_soloing_and_muting(page):
    noise = (0.2 * np.random.default_rng(0).standard_normal(60 * RATE)).astype(np.float32)
    nothing = np.zeros_like(noise)
    # One stem on the left, the same sound in the other stem on the right.
    stems = {"Instrumental": url(np.stack([noise, nothing], 1)), "Vocals": url(np.stack([nothing, noise], 1))}
    presses = [
        (0, ["Play"], None),
        (8, ["Solo Vocals"], None),
        (16, ["Solo Vocals"], 3.0),  # released, and back to the third second
        (24, ["Mute Instrumental"], None),
        (32, ["Mute Instrumental", "Pause"], None),
        (40, ["Play"], None),
        (48, ["Solo Instrumental", "Solo Vocals", "Mute Vocals"], None),  # solo counts more than mute
    ]
    left, right = render(page, stems, 60, presses)

    def during(start, end):
        return slice(round(start * RATE), round(end * RATE))

    for start, end, begins in [(1, 8, 0.1), (17, 24, 13.1), (41, 48, 21.2), (49, 59, 21.2)]:
        both = during(start, end)
        assert np.abs(right[both]).max() > 0.5
        np.testing.assert_allclose(left[both], right[both], atol=1e-6)
        np.testing.assert_allclose(right[both], noise[during(start - begins, end - begins)], atol=1e-2)
    for start, end in [(9, 16), (25, 32)]:
        assert np.abs(left[during(start, end)]).max() < 1e-6
        assert np.abs(right[during(start, end)]).max() > 0.5
    paused = during(33, 40)
    assert not left[paused].any()
    assert not right[paused].any()


def test_stems_that_the_browser_cannot_play_are_answered_in_words(page):
    stems = {"Instrumental": url(np.zeros((8, 2))), "Vocals": "data:audio/wav;base64,bm8gc291bmQ="}
    assert render(page, stems, 1, []) == "This browser cannot play the stems here: download them instead."
