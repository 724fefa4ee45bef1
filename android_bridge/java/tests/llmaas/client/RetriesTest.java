package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

/** The time for new tries is kept, however slow the machine is: nothing here asks for a wait to be short. */
final class RetriesTest {
    private static int pauses(Retries retries) {
        int n = 0;
        while (retries.pause()) {
            n++;
        }
        return n;
    }

    @Test
    void noTimeIsNoTry() {
        assertFalse(new Retries(0).pause());
        assertFalse(new Retries(40).pause(), "the first pause takes 50 ms at least");
    }

    @Test
    void pausesDoubleSoThatFewFitIntoTheTime() {
        // The shortest are 50, 100, 200 and 400 ms.
        assertTrue(pauses(new Retries(700)) <= 3);
    }

    @Test
    void aPauseTakesItsTime() {
        long before = System.nanoTime();
        Retries retries = new Retries(60_000);
        assertTrue(retries.pause() && retries.pause());
        assertTrue(System.nanoTime() - before >= 150_000_000);
    }

    @Test
    void aThreadThatIsInterruptedGivesUpAndStaysInterrupted() {
        Thread.currentThread().interrupt();
        assertFalse(new Retries(60_000).pause());
        assertTrue(Thread.interrupted());
    }
}
