"""LiteLLM, over both APIs: whole and streamed. The argument is the server's address."""

import sys

import litellm

litellm.drop_params = False
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
for model, base in (("openai/default", f"http://{sys.argv[1]}/v1"), ("ollama_chat/default", f"http://{sys.argv[1]}")):
    named = {"model": model, "api_base": base, "api_key": "none", "messages": messages, "max_tokens": 40}
    whole = litellm.completion(**named)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0, (model, whole)
    text = "".join(piece.choices[0].delta.content or "" for piece in litellm.completion(**named, stream=True))
    assert text, model
print("fine")
