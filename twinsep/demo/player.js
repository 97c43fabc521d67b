// The player of the page: one transport for all stems. Their sources start at one time of one audio clock, so that they
// stay in step to the sample. Gradio runs this file as the body of a function of `element`, `props` and `watch`;
// `props.value` is null or a list of {name, file: {url}}.

const LEAD = 0.1; // seconds from the click to the sound: by then every source is ready
const FADE = 0.01; // time constant of a change of volume in seconds: at once, it would click

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

class Transport {
  // buffers: name -> AudioBuffer
  constructor(context, buffers) {
    this.context = context;
    this.duration = Math.max(...[...buffers.values()].map((buffer) => buffer.duration));
    this.stems = new Map();
    for (const [name, buffer] of buffers) {
      const gain = context.createGain();
      gain.connect(context.destination);
      this.stems.set(name, { buffer, gain, volume: 1, muted: false, solo: false, source: null });
    }
    this.playing = false;
    this.offset = 0; // position in seconds while stopped
    this.onchange = () => {};
  }

  get position() {
    if (!this.playing) return this.offset;
    return Math.min(this.duration, Math.max(this.offset, this.context.currentTime - this.began));
  }

  play() {
    if (this.playing) return;
    this.context.resume();
    if (this.offset >= this.duration) this.offset = 0;
    const when = this.context.currentTime + LEAD;
    this.began = when - this.offset;
    this.playing = true;
    for (const stem of this.stems.values()) {
      stem.source = this.context.createBufferSource();
      stem.source.buffer = stem.buffer;
      stem.source.connect(stem.gain);
      stem.source.start(when, this.offset);
    }
    this.onchange();
  }

  pause() {
    if (!this.playing) return;
    this.offset = this.position;
    this.playing = false;
    for (const stem of this.stems.values()) {
      stem.source.stop();
      stem.source.disconnect();
      stem.source = null;
    }
    this.onchange();
  }

  seek(seconds) {
    const playing = this.playing;
    this.pause();
    this.offset = Math.min(Math.max(seconds, 0), this.duration);
    if (playing) this.play();
    this.onchange();
  }

  // change: any of {volume, muted, solo}; a stem is heard unless it is muted or another is solo.
  set(name, change) {
    Object.assign(this.stems.get(name), change);
    const solo = [...this.stems.values()].some((stem) => stem.solo);
    for (const stem of this.stems.values()) {
      const heard = solo ? stem.solo : !stem.muted;
      stem.gain.gain.setTargetAtTime(heard ? stem.volume : 0, this.context.currentTime, FADE);
    }
  }
}

// Two buttons that are pressed or not, and a slider, all reachable by the keyboard and named for screen readers.
function controls(name, transport) {
  const toggle = (label, key) => {
    const button = make("button", { type: "button", "aria-pressed": "false", "aria-label": `${label} ${name}` }, label);
    button.onclick = () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(pressed));
      transport.set(name, { [key]: pressed });
    };
    return button;
  };
  const volume = make("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": `Volume of ${name}` });
  volume.oninput = () => transport.set(name, { volume: volume.value / 100 });
  return make(
    "div",
    { class: "stem", role: "group", "aria-label": name },
    make("span", {}, name),
    toggle("Solo", "solo"),
    toggle("Mute", "muted"),
    volume,
  );
}

function show(root, transport) {
  const play = make("button", { type: "button", class: "play" }, "Play");
  const time = make("span", { class: "time" });
  const position = make("input", { type: "range", min: 0, step: 0.1, value: 0, "aria-label": "Position" });
  position.max = transport.duration;
  const refresh = () => {
    play.textContent = transport.playing ? "Pause" : "Play";
    const text = `${clock(transport.position)} / ${clock(transport.duration)}`;
    if (time.textContent === text && document.activeElement === position) return; // or it would be read out all the time
    time.textContent = text;
    position.value = transport.position;
    position.setAttribute("aria-valuetext", text.replace("/", "of"));
  };
  play.onclick = () => (transport.playing ? transport.pause() : transport.play());
  position.oninput = () => transport.seek(Number(position.value));
  transport.onchange = refresh;
  root.replaceChildren(
    make("div", { class: "transport" }, play, position, time),
    ...[...transport.stems.keys()].map((name) => controls(name, transport)),
  );
  refresh();
  return setInterval(() => {
    if (!root.isConnected) transport.pause();
    if (!transport.playing) return;
    if (transport.position >= transport.duration) {
      transport.pause();
      transport.offset = 0;
    }
    refresh();
  }, 100);
}

let current = null; // {context, transport, timer} of the song on the page

async function load() {
  if (current) {
    clearInterval(current.timer);
    current.transport?.pause();
    current.context.close();
  }
  const root = element.querySelector(".player");
  root.replaceChildren();
  const stems = props.value;
  const own = (current = stems ? { context: new AudioContext() } : null);
  if (!own) return;
  const status = make("p", { role: "status" }, "Loading the stems …");
  root.replaceChildren(status);
  try {
    const decode = async ({ name, file }) => {
      const answer = await fetch(file.url);
      if (!answer.ok) throw new Error(answer.statusText);
      return [name, await own.context.decodeAudioData(await answer.arrayBuffer())];
    };
    const buffers = new Map(await Promise.all(stems.map(decode)));
    if (own !== current) return; // another song has taken its place
    own.transport = new Transport(own.context, buffers);
    own.timer = show(root, own.transport);
    element.transport = own.transport; // for tests
  } catch (error) {
    if (own === current) status.textContent = "This browser cannot play the stems here: download them instead.";
  }
}

watch("value", load);
load();
