"""The tab "Trainings" with 50 jobs in Chromium, on recorded answers: time to its first paint, and how long the page's main thread is busy
with one message and with one drawing.

    python benchmarks/trainings_page.py [--jobs 50] [--repeat 30]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "web")]

from browser import Browser, opened  # noqa: E402
from recorded import Recorded, job, page  # noqa: E402

_PAINT = """
const began = performance.now();
const place = document.createElement("div");
place.style.cssText = "position: fixed; inset: 0 0 0 auto; width: 380px; background: #353535";
document.body.append(place);
window.app.tab.render(place);
while (document.querySelectorAll(".mt-item").length < Math.min(100, args[0])) await new Promise(requestAnimationFrame);
await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
return performance.now() - began;
"""
_MESSAGES = """
const { jobs } = await import("/extensions/pack/trainings/server.js");
for (let round = 0; round < args[0]; round++) {
  const changed = [...jobs.byId.values()].slice(0, args[1]).map((job) => ({ ...job, version: job.version + 1, step: job.step + 1 }));
  window.api.say("musubi_tuner.jobs", { jobs: changed, removed: [] });
  await new Promise(requestAnimationFrame);
}
"""
_CHART = """
const { Chart } = await import("/extensions/pack/trainings/chart.js");
window.chart = new Chart({ title: "loss", height: 210 });
document.body.append(window.chart.whole);
const of = (shift) => {
  const steps = Array.from({ length: 800 }, (_, index) => 250 * (index + 1));
  const mean = steps.map((step) => 0.1 + shift + 1 / (1 + step / 9000) + 0.05 * Math.random());
  return { label: `run ${shift}`, curve: { steps, mean, low: mean.map((one) => one * 0.7), high: mean.map((one) => one * 1.4) } };
};
window.lines = Array.from({ length: args[0] }, (_, index) => of(index));
window.chart.show(window.lines);
"""
_DRAWINGS = """
for (let round = 0; round < args[0]; round++) {
  window.chart.show(window.lines);
  await new Promise(requestAnimationFrame);
}
"""


def measure(window: Browser, url: str, count: int, repeat: int) -> dict[str, float]:
    """Milliseconds, those of the first paint elapsed, the others CPU time of the page's main thread."""
    window.open(url)
    window.wait("window.app?.tab ? 1 : 0")
    found = {"first paint of the tab, elapsed": window.run(_PAINT, count)}
    for changed in (1, 2, count):
        found[f"a message of {changed} of {count} jobs"] = _busy(window, _MESSAGES, repeat, changed)
    window.run("document.querySelector('.mt-trainings').remove();")
    for curves in (1, 3):
        window.run(_CHART, curves)
        found[f"drawing {curves} x 800 points"] = _busy(window, _DRAWINGS, repeat)
        window.run("window.chart.end(); window.chart.whole.remove();")
    return found


def _busy(window: Browser, script: str, repeat: int, *more: int) -> float:
    """CPU milliseconds of one round, what it costs to lay out and paint included."""
    began = window.busy()
    window.run(script, repeat, *more)
    return 1000 * (window.busy() - began) / repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=30)
    arguments = parser.parse_args()
    recorded = Recorded()
    recorded.jobs = [job(number, state="running", outcome=None, seconds_left=60.0, step=640) for number in range(arguments.jobs)]
    with tempfile.TemporaryDirectory() as home, page(recorded) as url, opened(Path(home)) as window:
        found = measure(window, url, arguments.jobs, arguments.repeat)
    for name, value in found.items():
        print(f"{name:40} {value:8.1f} ms")


if __name__ == "__main__":
    main()
