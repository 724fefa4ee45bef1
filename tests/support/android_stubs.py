"""Declarations of those classes and methods of Android that the sample app uses, from the platform's reference.

They let javac read the app where no platform is installed. R has what ``res/values/strings.xml`` names.
"""

from __future__ import annotations

import re
from pathlib import Path

STUBS = {
    "android.app.Activity": """public class Activity extends android.content.Context {
        protected void onCreate(android.os.Bundle state) {} protected void onStart() {} protected void onResume() {}
        protected void onStop() {} public void setContentView(android.view.View view) {}
        public final void runOnUiThread(Runnable action) {} }""",
    "android.app.Service": """public abstract class Service extends android.content.Context {
        public abstract android.os.IBinder onBind(android.content.Intent intent); public void onDestroy() {} }""",
    "android.content.Context": """public abstract class Context {
        public static final int BIND_AUTO_CREATE = 1; public static final int MODE_PRIVATE = 0;
        public boolean bindService(Intent intent, ServiceConnection to, int flags) { return true; }
        public void unbindService(ServiceConnection from) {}
        public SharedPreferences getSharedPreferences(String name, int mode) { return null; } }""",
    "android.content.ComponentName": "public final class ComponentName {}",
    "android.content.Intent": "public class Intent { public Intent(Context from, Class<?> to) {} }",
    "android.content.ServiceConnection": """public interface ServiceConnection {
        void onServiceConnected(ComponentName name, android.os.IBinder binder);
        void onServiceDisconnected(ComponentName name); }""",
    "android.content.SharedPreferences": """public interface SharedPreferences {
        String getString(String key, String otherwise); Editor edit();
        interface Editor { Editor putString(String key, String value); void apply(); } }""",
    "android.net.Credentials": "public class Credentials { public int getUid() { return 0; } }",
    "android.net.LocalSocket": """public class LocalSocket implements java.io.Closeable {
        public void connect(LocalSocketAddress to) throws java.io.IOException {}
        public Credentials getPeerCredentials() throws java.io.IOException { return null; }
        public java.io.InputStream getInputStream() throws java.io.IOException { return null; }
        public java.io.OutputStream getOutputStream() throws java.io.IOException { return null; }
        public void shutdownInput() throws java.io.IOException {}
        public void shutdownOutput() throws java.io.IOException {}
        @Override public void close() throws java.io.IOException {} }""",
    "android.net.LocalSocketAddress": """public class LocalSocketAddress {
        public enum Namespace { ABSTRACT, RESERVED, FILESYSTEM }
        public LocalSocketAddress(String name, Namespace namespace) {} }""",
    "android.os.Binder": "public class Binder implements IBinder {}",
    "android.os.Bundle": "public final class Bundle {}",
    "android.os.IBinder": "public interface IBinder {}",
    "android.os.Process": "public class Process { public static final int myUid() { return 0; } }",
    "android.view.View": """public class View {
        public static final int FOCUS_DOWN = 130;
        public interface OnClickListener { void onClick(View view); }
        public void setOnClickListener(OnClickListener listener) {} }""",
    "android.view.ViewGroup": """public abstract class ViewGroup extends View {
        public static class LayoutParams { public static final int MATCH_PARENT = -1; }
        public void addView(View child) {} public void addView(View child, LayoutParams how) {} }""",
    "android.widget.Button": """public class Button extends TextView {
        public Button(android.content.Context context) { super(context); } }""",
    "android.widget.EditText": """public class EditText extends TextView {
        public EditText(android.content.Context context) { super(context); }
        @Override public android.text.Editable getText() { return null; } }""",
    "android.text.Editable": "public interface Editable extends CharSequence {}",
    "android.widget.LinearLayout": """public class LinearLayout extends android.view.ViewGroup {
        public static final int VERTICAL = 1; public LinearLayout(android.content.Context context) {}
        public void setOrientation(int orientation) {}
        public static class LayoutParams extends android.view.ViewGroup.LayoutParams {
            public LayoutParams(int width, int height, float weight) {} } }""",
    "android.widget.ScrollView": """public class ScrollView extends android.view.ViewGroup {
        public ScrollView(android.content.Context context) {}
        public boolean fullScroll(int direction) { return true; } }""",
    "android.widget.TextView": """public class TextView extends android.view.View {
        public TextView(android.content.Context context) {} public CharSequence getText() { return null; }
        public final void append(CharSequence text) {} public final void setHint(int text) {}
        public final void setText(CharSequence text) {} public final void setText(int text) {}
        public void setTextIsSelectable(boolean is) {} }""",
}


def write_stubs(folder: Path) -> list[Path]:
    """The declarations as source files."""
    files = []
    for name, text in STUBS.items():
        package, _, _ = name.rpartition(".")
        file = folder / f"{name.replace('.', '/')}.java"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"package {package};\n{text}\n", "utf-8")
        files.append(file)
    return files


def write_resources(folder: Path, package: str, strings: Path) -> Path:
    """The class R that Android's build makes of ``strings.xml``."""
    names = re.findall(r'<string name="(\w+)"', strings.read_text("utf-8"))
    fields = " ".join(f"public static final int {name} = {i};" for i, name in enumerate(names))
    file = folder / "R.java"
    file.write_text(f"package {package};\npublic final class R {{ public static final class string {{ {fields} }} }}\n")
    return file
