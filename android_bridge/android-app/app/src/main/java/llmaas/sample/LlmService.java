package llmaas.sample;

import android.app.Service;
import android.content.Intent;
import android.content.SharedPreferences;
import android.os.Binder;
import android.os.IBinder;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import llmaas.client.Answer;
import llmaas.client.AnswerListener;
import llmaas.client.Client;
import llmaas.client.Endpoint;
import llmaas.client.Generation;
import llmaas.client.HttpClient;
import llmaas.client.LlmaasException;
import llmaas.client.Message;

/**
 * Holds the app's client, and its threads, while an activity is bound to it.
 *
 * <p>Law: nothing here waits on the main thread; all that talks to the daemon runs on the threads of {@link #work}.
 * Listeners are called there.
 */
public final class LlmService extends Service {
    static final String CONTEXT = "chat";
    private static final String SYSTEM = "You are a helpful assistant. You are brief.";
    private static final int PORT = 11434;
    private static final int RETRY_MS = 5000;
    private final ExecutorService work = Executors.newCachedThreadPool();
    private final IBinder binder = new LocalBinder();
    private Client client;

    /** What an activity of this app binds to. */
    public final class LocalBinder extends Binder {
        LlmService service() {
            return LlmService.this;
        }
    }

    /** Is told the messages of the conversation, or why they cannot be had. */
    interface HistoryListener {
        void onHistory(List<Message> messages);

        void onError(LlmaasException error);
    }

    /** Is given the answer when it has begun, to cancel it. */
    interface BegunListener {
        void onBegun(Answer answer);
    }

    @Override
    public IBinder onBind(Intent intent) {
        return binder;
    }

    @Override
    public void onDestroy() {
        synchronized (this) {
            if (client != null) {
                client.close();
            }
        }
        work.shutdownNow();
        super.onDestroy();
    }

    private SharedPreferences settings() {
        return getSharedPreferences("llmaas", MODE_PRIVATE);
    }

    String token() {
        return settings().getString("token", "");
    }

    synchronized void setToken(String token) {
        settings().edit().putString("token", token.trim()).apply();
        client = null;
    }

    /** The daemon in Termux by its port on 127.0.0.1: its Unix socket is out of reach (see README.md). */
    private synchronized Client client() {
        if (client == null) {
            client = new HttpClient(Endpoint.tcp("127.0.0.1", PORT), null, token(), RETRY_MS);
        }
        return client;
    }

    /** The conversation so far; it is made if there is none. */
    void history(HistoryListener listener) {
        work.execute(
                () -> {
                    List<Message> messages;
                    try {
                        client().context(CONTEXT, SYSTEM);
                        messages = client().show(CONTEXT);
                    } catch (LlmaasException e) {
                        listener.onError(e);
                        return;
                    }
                    listener.onHistory(messages);
                });
    }

    void ask(String text, BegunListener begun, AnswerListener listener) {
        work.execute(
                () -> {
                    // A person waits: priority 1 comes before what apps do by themselves, where the daemon grants it.
                    Generation generation = Generation.of(text).maxTokens(512).temperature(0.7).priority(1);
                    try {
                        begun.onBegun(client().generate(CONTEXT, generation, listener, work));
                    } catch (LlmaasException e) {
                        listener.onError(e);
                    }
                });
    }

    /** The user looks at the app: the daemon may bring the context back to the engine while they type. */
    void hint() {
        work.execute(
                () -> {
                    try {
                        client().hint(CONTEXT);
                    } catch (LlmaasException e) {
                        // It was a wish. What is wrong is told when the user asks something.
                    }
                });
    }
}
