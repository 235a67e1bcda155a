/** One at a time, first come first served. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve();

  /** Do some work when everything before it is done, whatever came of that. */
  take<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work, work);
    this.#last = turn.catch(() => undefined);
    return turn;
  }
}
