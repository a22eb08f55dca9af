// @ts-check

const RESTING = 1000; // milliseconds between two reads

/**
 * A reader of what is shown: each call of `ask` is followed by a read, soon; reads do not overlap, and there is at most one a second.
 * @param {() => Promise<void>} read
 * @param {(error: unknown) => void} problem told of a read that failed
 */
export function steadily(read, problem) {
  let busy = false;
  let wanted = false;
  let over = false;
  let timer = 0;
  const ask = () => {
    if (over) return;
    wanted = busy;
    if (busy) return;
    busy = true;
    read()
      .catch((error) => (over ? undefined : problem(error)))
      .finally(() => {
        timer = window.setTimeout(() => {
          busy = false;
          if (wanted) ask();
        }, RESTING);
      });
  };
  const end = () => {
    over = true;
    clearTimeout(timer);
  };
  return { ask, end };
}
