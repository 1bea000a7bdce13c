// The plane of `flowimg play` for points. A click places a particle as noise, a stroke places several; the server
// returns their paths, which are animated. The value sent is {particles: [[x, y], ...]}; the value received has also
// {paths: [[x, y, x, y, ...], ...], times}, with one path per particle. All listeners are on the element itself, since
// Gradio may replace its contents. `setup` is defined before this script: the plane's half side, the maximum number of
// particles, points of the data, colours.
const TRAIL = 12, SECONDS = 4, HOLD = 1.2;
let particles = [], paths = null, times = null, began = 0, playing = true, at = 0, stroke = null;

const canvas = () => element.querySelector('canvas');
const slider = () => element.querySelector('input[type=range]');
const button = () => element.querySelector('button');

function receive(value) {
  particles = (value && value.particles) || [];
  paths = (value && value.paths) || null;
  times = (value && value.times) || null;
  began = performance.now();
  at = 0;
  playing = true;
}

function position(path, t) {  // linear interpolation between the two times around t
  let right = times.findIndex(time => time >= t);
  right = Math.max(1, right < 0 ? times.length - 1 : right);
  const part = (t - times[right - 1]) / (times[right] - times[right - 1]);
  const left = 2 * (right - 1);
  return [path[left] + part * (path[left + 2] - path[left]), path[left + 1] + part * (path[left + 3] - path[left + 1])];
}

function draw() {
  const board = canvas();
  if (!board || !board.isConnected) { if (!element.isConnected) return; requestAnimationFrame(draw); return; }
  const wide = board.clientWidth * devicePixelRatio;
  if (board.width !== Math.round(wide) || board.height !== board.width) board.width = board.height = Math.round(wide);
  const pen = board.getContext('2d'), scale = board.width / (2 * setup.side);
  const px = x => (x + setup.side) * scale, py = y => (setup.side - y) * scale;
  pen.fillStyle = '#ffffff'; pen.fillRect(0, 0, board.width, board.height);
  pen.fillStyle = setup.data_colour + '66';
  for (const [x, y] of setup.data) pen.fillRect(px(x), py(y), devicePixelRatio * 1.6, devicePixelRatio * 1.6);
  pen.strokeStyle = '#cccccc'; pen.lineWidth = 1; pen.fillStyle = '#555555'; pen.font = `${11 * devicePixelRatio}px sans-serif`;
  for (let mark = -Math.floor(setup.side / 2) * 2; mark <= setup.side; mark += 2) {
    pen.fillText(String(mark), px(mark) + 2, board.height - 4);
    if (mark) pen.fillText(String(mark), 3, py(mark) + 4);
    pen.beginPath(); pen.moveTo(px(mark), board.height); pen.lineTo(px(mark), board.height - 6 * devicePixelRatio);
    pen.moveTo(0, py(mark)); pen.lineTo(6 * devicePixelRatio, py(mark)); pen.stroke();
  }
  if (paths && playing) {
    const passed = (performance.now() - began) / 1000 % (SECONDS + HOLD);
    at = Math.min(1, passed / SECONDS);
    if (slider()) slider().value = at;
  }
  const size = 2.4 * devicePixelRatio;
  if (paths) {
    pen.strokeStyle = '#222222'; pen.lineWidth = 1.2 * devicePixelRatio;
    for (const path of paths.slice(0, TRAIL)) {
      pen.beginPath(); pen.moveTo(px(path[0]), py(path[1]));
      for (let n = 1; n < times.length && times[n] <= at; n++) pen.lineTo(px(path[2 * n]), py(path[2 * n + 1]));
      const [x, y] = position(path, at); pen.lineTo(px(x), py(y)); pen.stroke();
    }
  }
  pen.fillStyle = paths ? setup.flow_colour : setup.noise_colour;
  for (let n = 0; n < particles.length; n++) {
    const [x, y] = paths ? position(paths[n], at) : particles[n];
    pen.beginPath(); pen.arc(px(x), py(y), size, 0, 7); pen.fill();
  }
  element.dataset.at = at.toFixed(3);
  element.dataset.count = particles.length;
  if (button()) button().textContent = playing ? 'pause' : 'play';
  requestAnimationFrame(draw);
}

function pointOf(event) {
  const box = canvas().getBoundingClientRect();
  return [((event.clientX - box.left) / box.width * 2 - 1) * setup.side,
          (1 - (event.clientY - box.top) / box.height * 2) * setup.side];
}

function drop(event) {
  if (particles.length < setup.most) particles = [...particles, pointOf(event)];
}

element.addEventListener('pointerdown', event => {
  if (event.target !== canvas()) return;
  if (paths) { particles = []; paths = null; }  // a click after an animation starts with an empty plane
  stroke = pointOf(event);
  drop(event);
  event.target.setPointerCapture(event.pointerId);
  event.preventDefault();
});
element.addEventListener('pointermove', event => {
  if (!stroke || event.target !== canvas()) return;
  const here = pointOf(event), far = Math.hypot(here[0] - stroke[0], here[1] - stroke[1]);
  if (far > setup.side / 60) { drop(event); stroke = here; }
});
element.addEventListener('pointerup', () => { if (stroke) { stroke = null; props.value = { particles }; } });
element.addEventListener('pointercancel', () => { stroke = null; });
element.addEventListener('input', event => { if (event.target === slider()) { playing = false; at = Number(event.target.value); } });
element.addEventListener('click', event => {
  if (event.target !== button()) return;
  playing = !playing;
  began = performance.now() - 1000 * SECONDS * (at < 1 ? at : 0);
});
watch('value', () => { if (!stroke) { const same = !props.value?.paths && props.value?.particles === particles; if (!same) receive(props.value); } });
receive(props.value);
requestAnimationFrame(draw);
