"""Print what the official SDKs hold answers to be, as one JSON object of JSON schemas: made of the types that are installed."""
import json

import anthropic.types as anthropic
import openai.types as openai
import openai.types.chat as chat
import openai.types.responses as responses
from pydantic import TypeAdapter

KINDS = {
    "chat": chat.ChatCompletion,
    "chat event": chat.ChatCompletionChunk,
    "completion": openai.Completion,
    "completion event": openai.Completion,
    "embeddings": openai.CreateEmbeddingResponse,
    "responses": responses.Response,
    "responses event": responses.ResponseStreamEvent,
    "messages": anthropic.Message,
    "messages event": anthropic.RawMessageStreamEvent,
    "count": anthropic.MessageTokensCount,
}
print(json.dumps({name: TypeAdapter(kind).json_schema() for name, kind in KINDS.items()}))
