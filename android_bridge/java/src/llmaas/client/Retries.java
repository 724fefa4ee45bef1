package llmaas.client;

import java.util.concurrent.ThreadLocalRandom;

/** How long one request is tried again, and how long to wait in between: each time twice as long, and never alike. */
final class Retries {
    private static final long MOST_MS = 5000;
    private final long ms;
    private long late;
    private long wait = 100;

    Retries(long ms) {
        this.ms = ms;
        renew();
    }

    /** The time begins anew. */
    void renew() {
        late = System.nanoTime() + ms * 1_000_000;
    }

    /** Wait before the next try; false if the time is up. */
    boolean pause() {
        long pause = ThreadLocalRandom.current().nextLong(wait / 2, wait + 1);
        if (System.nanoTime() + pause * 1_000_000 > late) {
            return false;
        }
        wait = Math.min(2 * wait, MOST_MS);
        try {
            Thread.sleep(pause);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return false;
        }
        return true;
    }
}
