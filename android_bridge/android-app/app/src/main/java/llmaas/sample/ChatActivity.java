package llmaas.sample;

import android.app.Activity;
import android.content.ComponentName;
import android.content.Context;
import android.content.Intent;
import android.content.ServiceConnection;
import android.os.Bundle;
import android.os.IBinder;
import android.view.View;
import android.widget.Button;
import android.widget.EditText;
import android.widget.LinearLayout;
import android.widget.ScrollView;
import android.widget.TextView;
import java.util.List;
import llmaas.client.Answer;
import llmaas.client.AnswerListener;
import llmaas.client.Done;
import llmaas.client.LlmaasException;
import llmaas.client.Message;

/**
 * A chat whose conversation is still there tomorrow: the daemon keeps the context, and this shows it.
 *
 * <p>Law: views are touched on the main thread only ({@link #runOnUiThread}).
 */
public final class ChatActivity extends Activity implements ServiceConnection, AnswerListener {
    private LlmService service;
    private Answer answer;
    private TextView said;
    private ScrollView scroll;
    private EditText token;
    private EditText message;
    private Button button;
    private boolean answering;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        said = new TextView(this);
        said.setTextIsSelectable(true);
        scroll = new ScrollView(this);
        scroll.addView(said);
        token = new EditText(this);
        token.setHint(R.string.token);
        message = new EditText(this);
        message.setHint(R.string.message);
        button = new Button(this);
        button.setText(R.string.send);
        button.setOnClickListener(this::onButton);
        LinearLayout column = new LinearLayout(this);
        column.setOrientation(LinearLayout.VERTICAL);
        column.addView(token);
        int wide = LinearLayout.LayoutParams.MATCH_PARENT;
        column.addView(scroll, new LinearLayout.LayoutParams(wide, 0, 1));
        column.addView(message);
        column.addView(button);
        setContentView(column);
    }

    @Override
    protected void onStart() {
        super.onStart();
        bindService(new Intent(this, LlmService.class), this, Context.BIND_AUTO_CREATE);
    }

    @Override
    protected void onResume() {
        super.onResume();
        if (service != null) {
            service.hint();
        }
    }

    @Override
    protected void onStop() {
        unbindService(this);
        service = null;
        super.onStop();
    }

    // -- the service

    @Override
    public void onServiceConnected(ComponentName name, IBinder binder) {
        service = ((LlmService.LocalBinder) binder).service();
        token.setText(service.token());
        service.hint();
        showHistory();
    }

    @Override
    public void onServiceDisconnected(ComponentName name) {
        service = null;
    }

    private void showHistory() {
        service.history(
                new LlmService.HistoryListener() {
                    @Override
                    public void onHistory(List<Message> messages) {
                        StringBuilder text = new StringBuilder();
                        for (Message each : messages) {
                            if (!each.role().equals("system")) {
                                text.append(each.role()).append(": ").append(each.content()).append("\n\n");
                            }
                        }
                        runOnUiThread(() -> said.setText(text));
                    }

                    @Override
                    public void onError(LlmaasException error) {
                        ChatActivity.this.onError(error);
                    }
                });
    }

    // -- the user

    private void onButton(View view) {
        if (answering) {
            if (answer != null) {
                answer.cancel();
            }
            return;
        }
        String text = message.getText().toString().trim();
        if (service == null || text.isEmpty()) {
            return;
        }
        if (!token.getText().toString().trim().equals(service.token())) {
            service.setToken(token.getText().toString());
        }
        setAnswering(true);
        message.setText("");
        said.append("user: " + text + "\n\nassistant: ");
        service.ask(text, begun -> runOnUiThread(() -> answer = begun), this);
    }

    private void setAnswering(boolean on) {
        answering = on;
        answer = null; // of the next one, onBegun says it
        button.setText(on ? R.string.stop : R.string.send);
    }

    // -- the answer, on a thread of the service

    @Override
    public void onText(String text) {
        runOnUiThread(
                () -> {
                    said.append(text);
                    scroll.fullScroll(View.FOCUS_DOWN);
                });
    }

    @Override
    public void onDone(Done done) {
        runOnUiThread(
                () -> {
                    said.append("\n\n");
                    setAnswering(false);
                });
    }

    @Override
    public void onError(LlmaasException error) {
        boolean isCancelled = error instanceof LlmaasException.Cancelled;
        String why = isCancelled ? " [stopped]\n\n" : "\n[" + error.getMessage() + " " + error.hint() + "]\n\n";
        runOnUiThread(
                () -> {
                    said.append(why);
                    setAnswering(false);
                });
    }
}
