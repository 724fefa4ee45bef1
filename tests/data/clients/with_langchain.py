"""LangChain's ChatOpenAI: whole, streamed, a tool, and an answer by a schema; and its OpenAIEmbeddings. The argument is
the server's address."""

import sys
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

model = ChatOpenAI(base_url=f"http://{sys.argv[1]}/v1", api_key="none", model="default", max_tokens=400)
whole = model.invoke([("system", "Be brief."), ("user", "hello")])
assert whole.content and whole.usage_metadata["output_tokens"] > 0, whole

pieces = list(model.stream("hello"))
assert len(pieces) > 2 and "".join(piece.content for piece in pieces)


@tool
def weather(town: Literal["Rome", "Oslo"], days: Literal[1, 2]) -> str:
    """The weather in a town."""
    return f"{days} days of sun in {town}"


called = model.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Rome?")
(call,) = called.tool_calls
assert call["name"] == "weather" and set(call["args"]) == {"town", "days"}, call


class Person(BaseModel):
    name: Literal["Ada", "Bob"]
    age: Literal[30, 31]


person = model.with_structured_output(Person, method="json_schema").invoke("Ada is 31.")
assert isinstance(person, Person), person

model.use_responses_api = True
answer = model.invoke("hello")
assert answer.text, answer

# By default it sends the ids of tokens of OpenAI's models, which mean nothing to another model.
texts = OpenAIEmbeddings(
    base_url=f"http://{sys.argv[1]}/v1", api_key="none", model="default", check_embedding_ctx_length=False
)
(one, same, other), query = texts.embed_documents(["a text", "a text", "another"]), texts.embed_query("a text")
assert one == same == query != other and abs(sum(x * x for x in one) - 1) < 1e-3, (len(one), len(query))
print("fine")
